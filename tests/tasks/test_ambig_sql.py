"""AmbigSQL: sides, twins, conversations, prompts and execution match, on the bundled files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_assets.conversation import AmbiguousTwin, ClearRequest, Conversation, Reference, TurnState, Utterance
from act_assets.pipeline.checks import balanced
from act_assets.profile import LLMRole
from act_assets.roles.classifier import Classifier
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.perturbation import Perturber
from act_assets.roles.prompt import load_template
from act_assets.roles.simulator import Simulator
from act_assets.tasks.ambig_sql.spider import database_name, read_spider
from act_assets.tasks.ambig_sql.strategy import query_facts
from act_assets.tasks.ambig_sql.task import AMBIG_SQL, AmbigSqlTwins, cleaned
from act_assets.tasks.base import SIDES, TaskData, Tools, fit_prompt, messages_of
from act_assets.tasks.rules import same_text
from resources.errors import ActError, DataError
from resources.llm.client import LLM

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).resolve().parents[2] / "datasets" / "sample" / "ambig_sql"
SETTINGS = LLMRole(provider="embedded", model=MODEL)
LIMITS: dict[str, int | None] = {"train": 250, "validation": 50, "test": 200}
TWINS = AmbigSqlTwins()


@pytest.fixture(scope="module")
def data() -> TaskData:
    return AMBIG_SQL.reader.read(SAMPLE)


@pytest.fixture(scope="module")
def requests() -> list[ClearRequest]:
    return TWINS.requests(SAMPLE, LIMITS)


@pytest.fixture(scope="module")
def twins(requests: list[ClearRequest]) -> list[AmbiguousTwin]:
    """Those that the embedded rules can make."""
    made = []
    for request, text in zip(
        requests, Perturber(LLM(EmbeddedProvider()), SETTINGS, AMBIG_SQL).perturb(requests), strict=True
    ):
        assert isinstance(text, str)
        read = TWINS.read_reply(text)
        assert read is not None, text
        if not same_text(read[0], request.request):
            made.append(AmbiguousTwin(request, *read))
    return made


@pytest.fixture(scope="module")
def paired(twins: list[AmbiguousTwin]) -> TaskData:
    return TWINS.conversations(SAMPLE, twins)


@pytest.fixture(scope="module")
def states(paired: TaskData) -> list[TurnState]:
    return [s for c in every(paired) for s in AMBIG_SQL.turn_states(c)]


def every(data: TaskData) -> list[Conversation]:
    return [*data.train, *data.validation, *data.test]


# Sides and requests.


def test_the_sides_share_no_database(data: TaskData) -> None:
    databases = [
        {t.response.answer["database"] for c in side for t in c.turns}
        for side in (data.train, data.validation, data.test)
    ]
    assert [len(d) for d in databases] == [121, 14, 10]
    assert len(set.union(*databases)) == 145
    assert (len(data.train) + len(data.validation), len(data.test)) == (6627, 484), "one question of train stands twice"


def test_the_reader_gives_the_clear_requests_alone(data: TaskData) -> None:
    assert Counter((len(c.turns), c.turns[0].action) for c in every(data)) == {(1, "ANSWER"): 7111}
    assert len({c.conversation_id for c in every(data)}) == 7111
    turn = data.test[0].turns[0]
    assert (turn.user, turn.clear_request) == ("How many singers do we have?",) * 2
    assert turn.response == Reference("SELECT COUNT(*) FROM singer", '{"database": "concert_singer"}', "", "sql")


def test_fewer_requests_are_the_first_of_more(requests: list[ClearRequest]) -> None:
    by_side = {side: [r for r in requests if r.side == side] for side in SIDES}
    assert {side: len(found) for side, found in by_side.items()} == LIMITS
    fewer = TWINS.requests(SAMPLE, {"train": 40, "validation": 0, "test": 7})
    assert fewer == [*by_side["train"][:40], *by_side["test"][:7]]


def test_requests_are_spread_over_the_databases(requests: list[ClearRequest]) -> None:
    train = Counter(r.source for r in requests if r.side == "train")
    assert len(train) == 121 and max(train.values()) <= 3
    assert len({(r.source, r.request) for r in requests}) == len({r.request_id for r in requests}) == len(requests)


def test_strategies_follow_the_query(requests: list[ClearRequest]) -> None:
    for r in requests:
        assert (r.strategy == "presentation") == query_facts(r.target).presents, r
    shares = Counter(r.strategy for r in requests)
    assert all(number > 0.2 * len(requests) for number in shares.values()), shares


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder as the stage raw_dataset leaves it, with two databases, one gold query broken and one that fails."""
    spider = read_spider(SAMPLE)
    tables = json.loads(gzip.decompress((SAMPLE / "tables.json.gz").read_bytes()))
    dev = [q for q in spider.dev if q.db_id == "concert_singer"][:6]
    train = [q for q in spider.train if q.db_id == "aircraft"][:3]
    row = lambda q: {"db_id": q.db_id, "question": q.question, "query": q.query}  # noqa: E731
    broken = [{"db_id": "aircraft", "question": "Broken?", "query": "SELECT FROM ((("}]
    failing = [{"db_id": "aircraft", "question": "Failing?", "query": "SELECT wings FROM aircraft"}]
    (tmp_path / "tables.json").write_text(
        json.dumps([t for t in tables if t["db_id"] in ("concert_singer", "aircraft")])
    )
    (tmp_path / "train_spider.json").write_text(json.dumps([*map(row, train), *broken, *failing]))
    (tmp_path / "dev.json").write_text(json.dumps([row(q) for q in dev]))
    for name in AMBIG_SQL.reader.further_files(tmp_path):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(gzip.decompress((SAMPLE / f"{name}.gz").read_bytes()))
    return tmp_path


def test_targets_that_do_not_work_are_told(small: Path) -> None:
    requests = TWINS.requests(small, dict.fromkeys(SIDES))
    told = {r.request: TWINS.problem(small, r) for r in requests}
    assert len(told) == 11 and sum(problem is None for problem in told.values()) == 9
    assert "cannot be parsed" in str(told["Broken?"])
    assert "no such column: wings" in str(told["Failing?"])
    assert {r.strategy for r in requests if r.request == "Broken?"} == {"information"}


def test_targets_of_packed_databases_can_be_tried(requests: list[ClearRequest]) -> None:
    assert [TWINS.problem(SAMPLE, r) for r in requests[:3]] == [None] * 3


def test_one_training_database_is_not_held_out(small: Path) -> None:
    data = AMBIG_SQL.reader.read(small)
    assert (len(data.train), len(data.validation), len(data.test)) == (5, 0, 6)


# Conversations of twins.


def test_a_twin_is_two_conversations_of_one_group(paired: TaskData, twins: list[AmbiguousTwin]) -> None:
    conversations = every(paired)
    assert len(conversations) == 2 * len(twins) and len(twins) > 200
    for twin, clear, ambiguous in zip(
        sorted(twins, key=lambda t: SIDES.index(t.clear.side)), conversations[::2], conversations[1::2], strict=True
    ):
        assert clear.group == ambiguous.group
        assert clear.conversation_id == twin.clear.request_id
        assert [(t.user, t.response.text, t.action, t.evaluated) for t in (*clear.turns, *ambiguous.turns)] == [
            (twin.clear.request, twin.clear.target, "ANSWER", True),
            (twin.request, twin.clarifying_question, "CLARIFY", True),
            (twin.clear.request, twin.clear.target, "ANSWER", False),
        ]
        assert {t.clear_request for t in (*clear.turns, *ambiguous.turns)} == {twin.clear.request}
        assert ambiguous.turns[0].response.answer_type == twin.clear.strategy
    assert len({c.conversation_id for c in conversations}) == len(conversations)
    assert len({t.turn_id for c in conversations for t in c.turns}) == 3 * len(twins)
    assert balanced(conversations, AMBIG_SQL).passed


def test_wordings_of_one_query_are_one_group(data: TaskData) -> None:
    groups: dict[str, set[tuple[str, str]]] = {}
    for c in every(data):
        query = " ".join(c.turns[0].response.text.lower().split())
        groups.setdefault(c.group_id, set()).add((c.turns[0].response.answer["database"], query))
    assert all(len(queries) == 1 for queries in groups.values())
    assert len(groups) < len(every(data)) * 0.7


def test_the_clear_half_is_what_the_reader_gives(paired: TaskData, data: TaskData) -> None:
    for side in SIDES:
        read = {c.conversation_id: c for c in getattr(data, side)}
        assert all(read[c.conversation_id] == c for c in getattr(paired, side)[::2])


def test_goals_and_replies_are_those_of_the_clear_request(states: list[TurnState]) -> None:
    for s in states:
        assert s.goal.answer_type == "sql" and s.goal.answer["database"]
        assert s.gold_replies == ((s.clear_request,) if s.action == "CLARIFY" else ())


def test_a_twin_about_an_unknown_database_is_refused(twins: list[AmbiguousTwin]) -> None:
    stray = replace(twins[0], clear=replace(twins[0].clear, source="nowhere"))
    with pytest.raises(DataError, match=rf"(?s)'nowhere'.*{twins[0].clear.request_id}"):
        TWINS.conversations(SAMPLE, [stray])


# Prompts.


def test_the_prompt_is_the_instruction_the_schema_and_what_was_said(states: list[TurnState]) -> None:
    turn = next(s for s in states if s.turn_id.endswith(".reply"))
    system, *said = messages_of(AMBIG_SQL, turn)
    instruction, schema = system.content.split("\n[schema]\n")
    assert "clarifying question" in instruction
    assert schema.splitlines() == [b.text for b in turn.context]
    assert [m.role for m in said] == ["user", "assistant", "user"] and said[-1].content == turn.clear_request


def test_the_table_that_is_asked_about_leaves_last(data: TaskData) -> None:
    (turn,) = AMBIG_SQL.turn_states(data.test[0])
    words = lambda messages: sum(len(m.content.split()) for m in messages)  # noqa: E731
    system, _ = fit_prompt(AMBIG_SQL, turn, words, words(messages_of(AMBIG_SQL, turn)) - 30)
    assert "\nsinger (" in system.content and "\nstadium (" not in system.content
    assert turn.context[AMBIG_SQL.reader.removal_order(turn)[-1]].text.startswith("singer (")


@pytest.mark.parametrize("role", ["generator", "annotator", "classifier", "simulator", "intent", "perturbation"])
def test_every_role_has_a_prompt(role: str) -> None:
    assert load_template(role, "ambig_sql").sections


def test_prompts_are_rendered_with_what_they_need(states: list[TurnState], paired: TaskData) -> None:
    llm = LLM(EmbeddedProvider())
    turn = next(s for s in states if s.action == "CLARIFY" and "\n" not in s.goal.text)
    (asked,) = Generator(llm, SETTINGS, AMBIG_SQL, paired.train[4:8]).requests([turn], ["ANSWER"], [1])
    text = asked.messages[-1].content
    assert turn.context[0].text in text and text.endswith(
        "The request is taken as it stands. Next, the Assistant directly answers the user's request.)\nAssistant:"
    )
    assert text.count("=== Conversation") == 5
    (asked,) = Classifier(llm, SETTINGS, AMBIG_SQL, paired.train[4:8]).requests(
        [turn], [(Utterance("assistant", "SELECT 1", ""),)]
    )
    assert asked.messages[-1].content.endswith("Assistant: SELECT 1\n\nLabel of the last Assistant utterance:")


def test_the_simulated_user_is_told_the_request_and_the_query(states: list[TurnState]) -> None:
    turn = next(s for s in states if s.action == "CLARIFY")
    intent = f"{turn.clear_request}\n{turn.goal.text}"
    user = Simulator(LLM(EmbeddedProvider()), SETTINGS, AMBIG_SQL)
    (asked,) = user.requests([turn], [intent], [()])
    last = asked.messages[-1].content.split("=== Conversation 4 ===\n")[1]
    assert last.startswith(
        f"The User wants: {turn.clear_request}\nThe query that the Assistant should arrive at: {turn.goal.text}\n\n"
        f"User: {turn.request}\n"
    )
    assert turn.context[0].text not in asked.messages[-1].content
    assert user.reply([turn], [intent], [()]) == [turn.clear_request]


# Judging.


def equipped(folder: Path):
    class NoEmbedder:
        identity = "none"

        def embed(self, texts):
            return np.zeros((len(texts), 1), np.float32)

    return AMBIG_SQL.equipped(Tools(folder, NoEmbedder())).judge


def test_gold_matches_on_its_database_and_others_do_not(small: Path) -> None:
    turns = [s for c in AMBIG_SQL.reader.read(small).test for s in AMBIG_SQL.turn_states(c)]
    judge = equipped(small)
    assert judge.heuristic(turns, [t.goal.text for t in turns]) == [1.0] * 6
    assert judge.turn_scores(turns, ["?"] * 6) == [{}] * 6
    first = turns[0]
    outcomes = [
        "```sql\nselect count(Singer_ID)\nfrom singer;\n```",
        "  SELECT count(*) FROM singer  ",
        "SELECT count(*) FROM stadium",
        "It is SELECT count(*) FROM singer",
        "How many do you want?",
        "",
    ]
    scores = judge.outcome_scores([first] * len(outcomes), outcomes)
    assert [s["execution match"] for s in scores] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert all(score >= judge.tolerance for score in judge.heuristic([first], ["SELECT count(*) FROM singer"]))


def test_a_goal_that_is_no_query_is_never_met(small: Path) -> None:
    """Under pseudo labels a clarifying question can be the last response, and so the goal."""
    turn = AMBIG_SQL.turn_states(AMBIG_SQL.reader.read(small).test[0])[0]
    asked = replace(turn, goal=Reference("Which?", answer_type="population"))
    assert equipped(small).heuristic([asked, turn], ["Which?", turn.goal.text]) == [0.0, 1.0]


def test_what_judging_needs_is_said(states: list[TurnState], tmp_path: Path) -> None:
    with pytest.raises(ActError, match="not told where the databases are"):
        AMBIG_SQL.judge.outcome_scores(states[:1], ["SELECT 1"])
    with pytest.raises(DataError, match=database_name(states[0].goal.answer["database"])):
        equipped(tmp_path).outcome_scores(states[:1], ["SELECT 1"])
    assert AMBIG_SQL.judge.identity.startswith("execution match (SQLite 3.")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" SELECT 1 \n", "SELECT 1"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("```\nSELECT 1;\n```\n", "SELECT 1;"),
        ("```SQLite\nSELECT\n 1", "SELECT\n 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("Here it is:\n```sql\nSELECT 1\n```", "Here it is:\n```sql\nSELECT 1\n```"),
        ("", ""),
    ],
)
def test_a_fence_around_a_response_is_taken_off(text: str, left: str) -> None:
    assert cleaned(text) == left


def test_the_rule_knows_every_gold_query_and_question(data: TaskData, states: list[TurnState]) -> None:
    rule = AMBIG_SQL.judge.rule_action
    assert {rule(t.response.text) for c in every(data) for t in c.turns} == {"ANSWER"}
    assert all(rule(s.response.text) == s.action for s in states)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("```sql\nSELECT 1\n```", "ANSWER"),
        ("-- the singers?\n/* all */ ((select name FROM singer))", "ANSWER"),
        ("WITH x AS (SELECT 1) SELECT * FROM x WHERE a = '?'", "ANSWER"),
        ("with recursive x(a, b) as (select 1) select * from x", "ANSWER"),
        ("SELECT name FROM singer WHERE name LIKE '%?%'", "ANSWER"),
        ("With which of the tables should I begin?", "CLARIFY"),
        ("Selected by what?", "CLARIFY"),
        ("There are 4.", "ANSWER"),
        ("", "ANSWER"),
        ("(" * 20000 + "?", "CLARIFY"),
    ],
)
def test_the_rule_reads_what_a_policy_may_write(text: str, action: str) -> None:
    assert AMBIG_SQL.judge.rule_action(text) == action


def test_the_task_is_the_papers() -> None:
    assert (AMBIG_SQL.beta, AMBIG_SQL.grounding, AMBIG_SQL.action_names) == (0.5, "goal", ("CLARIFY", "ANSWER"))
    assert AMBIG_SQL.judge.forms == ("execution match",) and AMBIG_SQL.judge.tolerance == 1.0
