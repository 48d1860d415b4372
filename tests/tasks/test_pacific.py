"""The reader and the answers of PACIFIC, over all 1,982 turns of the sample."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from act_assets.conversation import Conversation, TurnState
from act_assets.tasks.base import Task, TaskData, fit_prompt, messages_of
from act_assets.tasks.pacific.answer import SCALE_NOTES, parse, render
from resources.errors import PromptError


def test_the_sample_is_the_documented_split(sample: TaskData, every_turn: list[TurnState]) -> None:
    assert (len(sample.train), len(sample.validation)) == (250, 27)
    assert Counter(t.response.answer_type for t in every_turn) == {
        "arithmetic": 715,
        "span": 698,
        "question": 320,
        "multi-span": 217,
        "count": 32,
    }


def test_uid_answer_type_and_scale_are_carried_through(sample: TaskData) -> None:
    turn = next(t for c in sample.train for t in c.turns if t.turn_id == "05b670d3-5b19-438c-873f-9bf6de29c69e")
    assert (turn.response.answer_type, turn.response.scale, turn.response.answer) == ("arithmetic", "percent", -22.22)
    assert turn.response.text == "(44.1-56.7)/56.7 = -22.22 (in percent)"


def test_a_prompt_is_the_earlier_turns_once_each_and_never_its_own_answer(
    pacific: Task, every_conversation: list[Conversation]
) -> None:
    for conversation in every_conversation:
        states = pacific.turn_states(conversation)
        for position, state in enumerate(states):
            said = [m.content for m in state.history if m.role == "assistant"]
            asked = [m.content for m in state.history if m.role == "user"]
            assert said == [t.response.text for t in conversation.turns[:position]]
            assert asked == [t.user for t in conversation.turns[: position + 1]]
            assert [m.role for m in state.history] == ["user", "assistant"] * position + ["user"]
            assert state.response == conversation.turns[position].response


def test_goal_and_gold_replies_follow_the_clarification(pacific: Task, every_conversation: list[Conversation]) -> None:
    for conversation in every_conversation:
        states = pacific.turn_states(conversation)
        for position, state in enumerate(states):
            if state.action == "CLARIFY":
                assert state.goal == conversation.turns[position + 1].response
                assert state.gold_replies == (conversation.turns[position + 1].user,)
                assert state.goal.answer_type != "question"
            else:
                assert state.goal == state.response
                assert state.gold_replies == ()


def test_rendering_then_parsing_is_exact_for_every_gold_turn(every_turn: list[TurnState]) -> None:
    for turn in every_turn:
        parsed = parse(turn.response.text)
        gold = turn.response.answer
        if turn.response.answer_type == "arithmetic":
            assert (type(parsed.answer), parsed.answer) == (type(gold), gold), turn.where
        else:
            assert parsed.answer == tuple(gold if isinstance(gold, list) else [gold]), turn.where
        assert parsed.scale == turn.response.scale, turn.where


@given(st.lists(st.text(), min_size=1, max_size=4), st.sampled_from(sorted(SCALE_NOTES)))
def test_any_span_survives_the_round_trip_or_reads_as_an_equation(items: list[str], scale: str) -> None:
    text = render(items, scale, "multi-span", "")
    parsed = parse(text)
    if isinstance(parsed.answer, tuple):
        assert (list(parsed.answer), parsed.scale) == (items, scale)
    else:
        assert " = " in text


@pytest.mark.parametrize(
    ("text", "answer", "scale"),
    [
        ("$14.2 million", ("$14.2 million",), ""),
        ("$14.2 (in millions)", ("$14.2",), "million"),
        ("a | b (in percent)", ("a", "b"), "percent"),
        ("1 - 3 = -2", -2, ""),
        ("60.3 million + 32,137 thousand = 92.44", 92.44, ""),
        ("net income = 5", ("net income = 5",), ""),
        ("", ("",), ""),
        ("5 = five", ("5 = five",), ""),
        ("1" * 4000 + " = " + "1" * 4000, float("inf"), ""),
    ],
)
def test_parse_reads_what_a_policy_may_write(text: str, answer: object, scale: str) -> None:
    parsed = parse(text)
    assert (parsed.answer, parsed.scale) == (answer, scale)


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Expression):
        return _value(node.body)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand)
    assert isinstance(node, ast.Constant)
    return float(node.value)


def test_rendered_arithmetic_is_true(every_turn: list[TurnState]) -> None:
    """`derivation = answer (in percent)` holds as a share or as percentages; annotation errors stay few."""
    false = []
    for turn in every_turn:
        if turn.response.answer_type != "arithmetic":
            continue
        left, right = turn.response.text.rsplit(" = ", 1)
        formula = re.sub(r"[$,%\s]", "", left).replace("[", "(").replace("]", ")")
        try:
            value = _value(ast.parse(formula, mode="eval"))
        except (SyntaxError, AssertionError, KeyError, ZeroDivisionError):
            continue
        stated = parse(turn.response.text).answer
        assert isinstance(stated, int | float), right
        factors = (1, 100) if turn.response.scale == "percent" else (1,)
        if not any(abs(value * f - stated) <= 0.011 * max(1, abs(stated) * 0.001) for f in factors):
            false.append((turn.turn_id, turn.response.text))
    assert len(false) <= 0.03 * 715, false


def test_shortening_drops_oldest_exchanges_first_then_distant_grounding(
    pacific: Task, every_turn: list[TurnState]
) -> None:
    words = lambda messages: sum(len(m.content.split()) for m in messages)  # noqa: E731
    for turn in every_turn[::7]:
        full = messages_of(pacific, turn)
        for budget in (400, 220, 150):
            kept = fit_prompt(pacific, turn, words, budget)
            assert words(kept) <= budget
            assert kept[1:] == full[len(full) - len(kept) + 1 :], "history is cut from its beginning only"
            assert len(kept) - 1 >= len(turn.history) - turn.open_request, "the open request stays"
            if kept[0] != full[0]:
                assert len(kept) - 1 == len(turn.history) - turn.open_request, "grounding goes after history"
                rows, all_rows = (m.content.split("[data]\n")[1].split("\n") for m in (kept[0], full[0]))
                assert set(rows) <= set(all_rows)
                assert rows[0] == all_rows[0], "the header row stays"


def test_a_prompt_that_cannot_fit_is_an_error_that_names_the_turn(pacific: Task, every_turn: list[TurnState]) -> None:
    with pytest.raises(PromptError, match=every_turn[3].turn_id):
        fit_prompt(pacific, every_turn[3], lambda messages: sum(len(m.content) for m in messages), 40)


def test_the_rule_classifies_every_gold_response(pacific: Task, every_turn: list[TurnState]) -> None:
    assert all(pacific.judge.rule_action(t.response.text) == t.action for t in every_turn)


def test_gold_scores_one_in_every_form(pacific: Task, every_turn: list[TurnState]) -> None:
    assert pacific.judge.forms == ("official", "bag", "exact match")
    for level in (
        pacific.judge.turn_scores(every_turn, [t.response.text for t in every_turn]),
        pacific.judge.outcome_scores(every_turn, [t.goal.text for t in every_turn]),
    ):
        for turn, scores in zip(every_turn, level, strict=True):
            assert scores == dict.fromkeys(pacific.judge.forms, 1.0), (turn.where, json.dumps(turn.response.text))


def test_exact_match_is_all_or_nothing_and_a_form_of_its_own(pacific: Task, every_turn: list[TurnState]) -> None:
    turn = next(t for t in every_turn if t.goal.answer_type == "span" and len(t.goal.text.split()) > 6)
    words = turn.goal.text.split()
    (scores,) = pacific.judge.outcome_scores([turn], [" ".join(words[1:])])
    assert 0.0 < scores["official"] < 1.0
    assert scores["exact match"] == 0.0


def test_the_heuristic_is_the_official_score_of_each_outcome_in_order(
    pacific: Task, every_turn: list[TurnState]
) -> None:
    turns = every_turn[:40]
    outcomes = [t.goal.text if i % 2 else "no idea" for i, t in enumerate(turns)]
    scores = pacific.judge.outcome_scores(turns, outcomes)
    assert pacific.judge.heuristic(turns, outcomes) == [s["official"] for s in scores]
    assert pacific.judge.heuristic(turns, outcomes) == [float(i % 2) for i in range(40)]
    assert pacific.judge.heuristic([], []) == []


@pytest.mark.parametrize("level", ["turn_scores", "outcome_scores", "heuristic"])
def test_lists_of_different_lengths_are_refused(pacific: Task, every_turn: list[TurnState], level: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        getattr(pacific.judge, level)(every_turn[:2], ["one"])


@pytest.mark.parametrize("text", ["Assistant:", "Assistant: ", "User:", "[]"])
def test_a_bare_prefix_scores_nothing(pacific: Task, every_turn: list[TurnState], text: str) -> None:
    """In the published code predictions and golds share the prefix `Assistant:`, which alone scores 0.47."""
    scores = pacific.judge.outcome_scores(every_turn, [text] * len(every_turn))
    assert sum(s["official"] for s in scores) / len(every_turn) < 0.001


def test_a_wrong_scale_is_a_wrong_answer(pacific: Task, every_turn: list[TurnState]) -> None:
    turn = next(t for t in every_turn if t.response.scale == "million" and t.response.answer_type == "arithmetic")
    assert pacific.judge.heuristic([turn], [turn.goal.text.replace("(in millions)", "(in thousands)")]) == [0.0]
