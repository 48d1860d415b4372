"""AmbigSQL: requests to a database that are answered by SQL, each beside an ambiguous twin (section 4.1.3, appendix C).

    How many singers do we have?   -> SELECT count(*) FROM singer                      ANSWER

    Tell me about the singers.     -> What would you like to know about the singers?   CLARIFY
    How many singers do we have?   -> SELECT count(*) FROM singer                      ANSWER

The clear requests and their queries are Spider's. What is ambiguous is made from them: the asset `ambiguous_requests`
asks for a twin of each request, and `AmbigSqlTwins` turns the two into conversations.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from act_assets.conversation import (
    ANSWER,
    CLARIFY,
    AmbiguousTwin,
    ClearRequest,
    ContextBlock,
    Conversation,
    Reference,
    Turn,
    TurnState,
)
from act_assets.metrics.execution_match import execution_matches, runs
from act_assets.tasks.ambig_sql.phrases import stems
from act_assets.tasks.ambig_sql.rules import AmbigSqlRules
from act_assets.tasks.ambig_sql.spider import (
    DEV,
    SECTION,
    TABLES,
    TASK,
    TRAIN,
    Spider,
    SpiderQuestion,
    database_name,
    database_names,
    plain_database,
    read_schemas,
    read_spider,
)
from act_assets.tasks.ambig_sql.strategy import read_perturbation, strategy_of
from act_assets.tasks.base import SIDES, Scores, Task, TaskData, TaskJudge, TaskReader, Tools, TwinMaker
from act_assets.tasks.files import find_file
from act_assets.tasks.rules import Draw
from resources.errors import ActError, DataError

INSTRUCTION = (
    "You are an Assistant helping a User to get information out of the SQL database with the schema below. Where it is "
    "clear what the User wants, reply with the SQL query; otherwise ask the User a clarifying question."
)
SQL = "sql"
"""The answer type of a query; that of a clarifying question is what it asks for (the strategy of its twin)."""
FORM = "execution match"
_SEED = 0
"""Of the choice of requests and strategies, and of the held-out databases. Not a run's: all seeds share the twins."""
_HELD_OUT = 10
"""One training database of so many is kept for validation: OURS. The paper evaluates on Spider's dev set."""


# Reading


class AmbigSqlReader(TaskReader):
    """Reads Spider's files. `dev.json` is the test side; `train_spider.json` is split by database, so that validation
    asks about databases that are never trained on, and no checkpoint is chosen on what is evaluated."""

    files: tuple[str, ...] = (TABLES, TRAIN, DEV)

    def read(self, folder: Path) -> TaskData:
        """The clear conversations alone, one turn each: the ambiguous ones come from the asset `ambiguous_requests`."""
        spider = read_spider(folder)
        contexts = {db_id: schema.blocks for db_id, schema in spider.schemas.items()}
        return TaskData(
            *(
                tuple(_clear(_request_id(q), contexts[q.db_id], q.db_id, q.question, q.query) for q in questions)
                for questions in _sides(spider)
            )
        )

    def system_message(self, context: Sequence[ContextBlock]) -> str:
        tables = "\n".join(b.text for b in context)
        return f"{INSTRUCTION}\n[{SECTION}]\n{tables}"

    def further_files(self, folder: Path) -> Sequence[str]:
        return database_names(folder)

    def removal_order(self, turn: TurnState) -> Sequence[int]:
        """By words in the singular, names taken apart: requests say `singers` where the table is `singer`."""
        request = stems(" ".join(m.content for m in turn.history[turn.open_request :]))
        shared = [len(request & stems(block.text)) for block in turn.context]
        return sorted(range(len(shared)), key=lambda i: (shared[i], -i))


def _sides(spider: Spider) -> tuple[list[SpiderQuestion], ...]:
    """The questions of SIDES, in file order, each question about a database once."""
    draw = Draw(f"{TASK}|{_SEED}")
    databases = draw.shuffled("held out", sorted({q.db_id for q in spider.train}))
    number = len(databases)  # a tenth is held out, rounded; at least one where there are two
    held_out = set(databases[: max(round(number / _HELD_OUT), min(1, number - 1))])
    train, test = (
        sorted({(q.db_id, q.question): q for q in reversed(side)}.values(), key=lambda q: q.number)
        for side in (spider.train, spider.dev)
    )
    return [q for q in train if q.db_id not in held_out], [q for q in train if q.db_id in held_out], test


def _request_id(question: SpiderQuestion) -> str:
    """A database has questions in one file only, so that its name and the place in the file are unique."""
    return f"{question.db_id}-{question.number}"


def _clear(request_id: str, context: tuple[ContextBlock, ...], db_id: str, request: str, query: str) -> Conversation:
    goal = Reference(query, json.dumps({"database": db_id}), answer_type=SQL)
    turn = Turn(f"{request_id}.clear", request, request, goal, ANSWER.name)
    # Spider asks most queries in several wordings: none may stand as an example in the prompt of another, for it shows
    # its answer, and they are no independent evidence.
    plain = " ".join(query.lower().split()).rstrip("; ")
    group = f"{db_id} {hashlib.sha256(plain.encode()).hexdigest()[:12]}"
    return Conversation(TASK, request_id, context, (turn,), group=group)


# Twins


class AmbigSqlTwins(TwinMaker):
    """The ambiguous twins of Spider's requests."""

    def requests(self, folder: Path, limits: dict[str, int | None]) -> list[ClearRequest]:
        """At most `limits[side]` requests of each side (None: all), side by side.

        The order is fixed, so that fewer are the first of more; one of each database comes first, then a second of
        each, and so on. A request whose query cannot be parsed is among them, as one of the strategy "information":
        `problem` says what is wrong with it.
        """
        spider = read_spider(folder)
        schemas = {db_id: schema.text for db_id, schema in spider.schemas.items()}
        return [
            ClearRequest(
                task=TASK,
                side=side,
                request_id=_request_id(q),
                source=q.db_id,
                strategy=_strategy(q.query, _request_id(q)),
                request=q.question,
                target=q.query,
                grounding=schemas[q.db_id],
            )
            for side, questions in zip(SIDES, _sides(spider), strict=True)
            for q in _spread(questions)[: limits[side]]
        ]

    def problem(self, folder: Path, request: ClearRequest) -> str | None:
        """Why the target cannot be parsed or does not run on its database; None where it does."""
        try:
            strategy_of(request.target, request.request_id, _SEED)
        except ValueError as error:
            return str(error)
        with plain_database(folder, request.source) as database:
            return runs(database, request.target)

    def read_reply(self, text: str) -> tuple[str, str] | None:
        twin = read_perturbation(text)
        return (twin.request, twin.clarifying_question) if twin else None

    def conversations(self, folder: Path, twins: Sequence[AmbiguousTwin]) -> TaskData:
        """The clear conversation and the ambiguous one of each twin, one after the other.

        The last turn of the ambiguous one is not evaluated: it asks what the clear one asks, and without it there is
        one request to clarify for each to answer.
        """
        path = find_file(TASK, folder, TABLES)
        contexts = {db_id: schema.blocks for db_id, schema in read_schemas(path).items()}
        sides: dict[str, list[Conversation]] = {side: [] for side in SIDES}
        for twin in twins:
            clear = twin.clear
            if clear.source not in contexts:
                raise DataError(
                    f"{path.name} does not describe the database {clear.source!r}",
                    where=f"{clear.where}, {path}",
                    todo="make the ambiguous requests again from these files",
                )
            alone = _clear(clear.request_id, contexts[clear.source], clear.source, clear.request, clear.target)
            asked = Turn(
                turn_id=f"{clear.request_id}.ambiguous",
                user=twin.request,
                clear_request=clear.request,
                response=Reference(twin.clarifying_question, answer_type=clear.strategy),
                action=CLARIFY.name,
            )
            answered = replace(alone.turns[0], turn_id=f"{clear.request_id}.reply", evaluated=False)
            ambiguous = replace(alone, conversation_id=f"{clear.request_id}-ambiguous", turns=(asked, answered))
            sides[clear.side] += [alone, ambiguous]
        return TaskData(*map(tuple, sides.values()))


def _spread(questions: Sequence[SpiderQuestion]) -> list[SpiderQuestion]:
    """All questions in a fixed order in which the databases take turns."""
    draw = Draw(f"{TASK}|{_SEED}|requests")
    by_database: dict[str, list[SpiderQuestion]] = {}
    for q in sorted(questions, key=lambda q: (draw.unit(_request_id(q)), q.number)):
        by_database.setdefault(q.db_id, []).append(q)
    databases = draw.shuffled("databases", sorted(by_database))
    turns = max(map(len, by_database.values()), default=0)
    return [by_database[d][i] for i in range(turns) for d in databases if i < len(by_database[d])]


def _strategy(query: str, request_id: str) -> str:
    try:
        return strategy_of(query, request_id, _SEED)
    except ValueError:
        return "information"


# Judging

_FENCE = re.compile(r"```(?:sql|sqlite)?\s+(?P<text>.*?)(?:```)?", re.DOTALL | re.IGNORECASE)
_BEFORE = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
# `With which of them ...?` is no query.
_QUERY = re.compile(r"select\b|with\s+(?:recursive\s+)?\S+\s*(?:\([^()]*\)\s*)?as\b", re.IGNORECASE)


def cleaned(response: str) -> str:
    """A response without the white space and the one code fence (```sql) around it; nothing else is fixed."""
    fenced = _FENCE.fullmatch(response.strip())
    return (fenced["text"] if fenced else response).strip()


@dataclass(frozen=True)
class AmbigSqlJudge(TaskJudge):
    """Scores SQL by what it returns: 1 where the result is that of the gold query on its database, else 0.

    There are no scores at turn level (appendix D). `data` is the folder with the databases, which scoring needs.
    """

    data: Path | None = None

    forms = (FORM,)
    metric_name = FORM
    tolerance = 1.0
    """H is 0 or 1: an outcome is right where its result is."""

    def rule_action(self, response: str) -> str:
        """ANSWER for a query (after comments and opening brackets), else CLARIFY where there is a question mark."""
        text = cleaned(response)
        before = _BEFORE.match(text)
        if _QUERY.match(text, before.end() if before else 0):
            return ANSWER.name
        return CLARIFY.name if "?" in text else ANSWER.name

    def turn_scores(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[Scores]:
        return [{} for _ in turns]

    def outcome_scores(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[Scores]:
        """Raises ActError where the judge was not equipped, and DataError where a gold query does not run."""
        if self.data is None:
            raise ActError(
                "this judge cannot score: it was not told where the databases are",
                where=f"task {TASK}",
                todo="score with task.equipped(Tools(data, embedder)).judge",
            )
        # Under pseudo labels a clarifying question can be the goal: no query is right then.
        goals = [t.goal.answer["database"] if t.goal.answer_type == SQL else None for t in turns]
        pairs = [
            (self.data / database_name(db_id), cleaned(outcome), turn.goal.text)
            for db_id, turn, outcome in zip(goals, turns, outcomes, strict=True)
            if db_id is not None
        ]
        matches = iter(execution_matches(pairs))
        return [{FORM: float(db_id is not None and next(matches).match)} for db_id in goals]

    def equipped(self, tools: Tools) -> AmbigSqlJudge:
        return replace(self, data=tools.data)

    @property
    def identity(self) -> str:
        """SQLite decides what a query returns."""
        return f"{FORM} (SQLite {sqlite3.sqlite_version})"


AMBIG_SQL = Task(
    name=TASK,
    title="AmbigSQL: text to SQL",
    actions=(CLARIFY, ANSWER),
    reader=AmbigSqlReader(),
    judge=AmbigSqlJudge(),
    rules=AmbigSqlRules(),
    beta=0.5,
    grounding="goal",
    twins=AmbigSqlTwins(),
)
