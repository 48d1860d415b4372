"""The embedded rules for AmbigSQL: right action, SQL that parses and runs, never the reference."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import sqlglot

from act_assets.conversation import AmbiguousTwin, ClearRequest, ContextBlock, Message, TurnState, Utterance
from act_assets.metrics.execution_match import runs
from act_assets.tasks.ambig_sql.guess import by_overlap, guesses, same_query
from act_assets.tasks.ambig_sql.rules import STOCK_QUESTION
from act_assets.tasks.ambig_sql.spider import parse_tables
from act_assets.tasks.ambig_sql.task import AMBIG_SQL, AmbigSqlTwins
from act_assets.tasks.rules import Draw

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).resolve().parents[2] / "datasets" / "sample" / "ambig_sql"
RULES = AMBIG_SQL.rules
TWINS = AmbigSqlTwins()
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def requests() -> list[ClearRequest]:
    return TWINS.requests(SAMPLE, {"train": 240, "validation": 0, "test": 60})


@pytest.fixture(scope="module")
def states(requests: list[ClearRequest]) -> list[TurnState]:
    twins = []
    for r in requests:
        read = TWINS.read_reply(str(RULES.perturb(r)))
        assert read is not None
        twins.append(AmbiguousTwin(r, *read))
    data = TWINS.conversations(SAMPLE, twins)
    return [s for c in (*data.train, *data.test) for s in AMBIG_SQL.turn_states(c)]


@pytest.fixture(scope="module")
def guessed(states: list[TurnState]) -> list[tuple[TurnState, str]]:
    """Answers to every request that is to be clarified."""
    asked = [s for s in states if s.action == "CLARIFY"]
    return [(s, str(RULES.generate(s, "ANSWER", seed))) for s in asked for seed in SEEDS]


def test_questions_take_their_action_and_are_not_the_reference(states: list[TurnState]) -> None:
    made = []
    for s in states:
        for seed in SEEDS:
            question = RULES.generate(s, "CLARIFY", seed)
            assert question is not None and AMBIG_SQL.judge.rule_action(question) == "CLARIFY"
            assert question not in {s.response.text, *(m.content for m in s.history)}
            assert question == RULES.generate(s, "CLARIFY", seed)
            made.append(question)
    assert len(set(made)) > 0.3 * len(states), "they vary"


def test_guesses_take_their_action_and_are_not_the_goal(guessed: list[tuple[TurnState, str]]) -> None:
    for s, sql in guessed:
        assert AMBIG_SQL.judge.rule_action(sql) == "ANSWER"
        assert not same_query(sql, s.goal.text), (s.where, sql)
    assert len({sql for _, sql in guessed}) > 0.5 * len(guessed), "they vary"


def test_guesses_can_be_parsed(guessed: list[tuple[TurnState, str]]) -> None:
    for _, sql in guessed:
        assert isinstance(sqlglot.parse_one(sql, read="sqlite"), sqlglot.exp.Select), sql


def test_guesses_run_on_their_database(guessed: list[tuple[TurnState, str]], tmp_path: Path) -> None:
    tried = 0
    for db_id in ("concert_singer", "aircraft", "pets_1", "museum_visit"):
        path = tmp_path / f"{db_id}.sqlite"
        path.write_bytes(gzip.decompress((SAMPLE / "database" / db_id / f"{db_id}.sqlite.gz").read_bytes()))
        for s, sql in guessed:
            if s.goal.answer["database"] == db_id:
                assert runs(path, sql) is None, sql
                tried += 1
    assert tried > 20


def test_other_guesses_than_the_reference_remain(states: list[TurnState]) -> None:
    """Whatever the reference is: here it is always what the rule says first."""
    for s in [s for s in states if s.action == "CLARIFY"][:40]:
        first = str(RULES.generate(s, "ANSWER", 0))
        second = RULES.generate(replace(s, goal=replace(s.goal, text=first.upper())), "ANSWER", 0)
        assert second and not same_query(first, second)
        question = str(RULES.generate(s, "CLARIFY", 0))
        assert RULES.generate(replace(s, response=replace(s.response, text=question)), "CLARIFY", 0) != question


SCHEMA = parse_tables(
    [
        'singer (Singer_ID number primary key, Name text, Age number, "Home Town" text)',
        "concert (Concert_ID number primary key, Title text, Year number)",
        "singer_in_concert (Concert_ID number, Singer_ID number; Singer_ID -> singer.Singer_ID)",
        "note (x text)",
    ]
)


def test_tables_are_ranked_by_shared_words() -> None:
    draw = Draw("x")
    assert by_overlap("How old are the singers?", SCHEMA, draw)[0].name == "singer"
    assert by_overlap("List the title and year of the concerts", SCHEMA, draw)[0].name == "concert"


def test_guesses_follow_the_request() -> None:
    many = [next(guesses("How many singers are there?", SCHEMA, Draw(str(i)))) for i in range(40)]
    assert sum(sql == "SELECT count(*) FROM singer" for sql in many) > 20
    towns = [next(guesses("Which singers are from the home town 'O'' Hara'?", SCHEMA, Draw(str(i)))) for i in range(40)]
    assert all('"Home Town"' in sql for sql in towns)
    assert all(isinstance(sqlglot.parse_one(sql, read="sqlite"), sqlglot.exp.Select) for sql in towns)
    every = list(guesses("Tell me about it.", SCHEMA, Draw("x")))
    assert len(every) == len(set(every)) > 20


def test_queries_that_differ_in_writing_alone_are_the_same() -> None:
    assert same_query("SELECT count( * ) FROM Singer;", 'select COUNT(*)\nfrom "singer"')
    assert not same_query("SELECT count(*) FROM singer", "SELECT count(*) FROM concert")


def test_the_user_says_the_clear_request_however_often(states: list[TurnState]) -> None:
    said = (Utterance("assistant", "What?", "CLARIFY"), Utterance("user", "How many singers?", ""))
    for utterances in ((), said):
        assert (
            RULES.reply(states[0], "How many  singers?\nSELECT\ncount(*) FROM singer", utterances)
            == "How many singers?"
        )
    assert RULES.reply(states[0], " \n", ()) is None


def test_requests_that_no_rule_masks_come_back(requests: list[ClearRequest]) -> None:
    odd = replace(requests[0], request="Hm", strategy="information")
    assert TWINS.read_reply(str(RULES.perturb(odd))) == ("Hm", STOCK_QUESTION)
    unreadable = replace(requests[0], target="SELECT FROM (((")
    assert TWINS.read_reply(str(RULES.perturb(unreadable))) == (requests[0].request, STOCK_QUESTION)


def test_without_a_schema_nothing_is_said(states: list[TurnState]) -> None:
    bare = replace(states[0], context=(ContextBlock("other", "x"),))
    assert RULES.generate(bare, "ANSWER", 0) is None
    assert RULES.generate(states[0], "REFUSE", 0) is None


def test_no_more_is_read_than_schema_history_and_references(states: list[TurnState]) -> None:
    """What else a turn holds changes nothing."""
    for s in states[:60]:
        other = replace(
            s,
            clear_request="x",
            gold_replies=("y",),
            intent_id="z",
            history=(*s.history[:-1], Message("user", s.request)),
        )
        for action in ("CLARIFY", "ANSWER"):
            assert RULES.generate(other, action, 0) == RULES.generate(s, action, 0)
