"""Algorithm 1 on requests with several readings, and with a policy of the task's own for the losing action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from act_assets.conversation import Action, Conversation, TurnState
from act_assets.preference import annotate, build_pairs, rejected_action
from act_assets.tasks.base import Task, messages_of
from act_assets.tasks.pacific.answer import PacificJudge
from resources.errors import ActError, RoleError
from resources.llm.base import LLMFailure


class Labels:
    """Calls everything a clarification, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[TurnState] = []

    def label(self, turns: Sequence[TurnState]) -> list[str | LLMFailure]:
        self.asked += turns
        return ["CLARIFY" for _ in turns]


class Writes:
    """A response of the wanted action that says for which turn it is."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def generate(
        self, turns: Sequence[TurnState], actions: Sequence[str], seeds: Sequence[int], on_done: object = None
    ) -> list[str | LLMFailure]:
        assert len(set(seeds)) == len(turns)
        self.asked += [(t.turn_id, a) for t, a in zip(turns, actions, strict=True)]
        return [f"for {t.turn_id}" + ("?" if a == "CLARIFY" else "") for t, a in zip(turns, actions, strict=True)]


def test_a_turn_is_annotated_once_however_many_readings_it_has(
    pacific: Task, ambiguous: Conversation, every_conversation: list[Conversation]
) -> None:
    annotator = Labels()
    plain = every_conversation[0]
    labels = annotate(pacific, [ambiguous, plain], annotator, "rule")
    turn_ids = ["sales-1", *(t.turn_id for t in plain.turns)]
    assert [t.prompt_id for t in annotator.asked] == turn_ids
    assert [x.turn_id for x in labels] == turn_ids, "labels are of turns, not of their readings"
    assert [x.gold for x in labels] == ["CLARIFY", *(t.action for t in plain.turns)]
    assert {(x.label, x.source) for x in labels} == {("CLARIFY", "rule")}


def test_a_label_that_fails_is_named(pacific: Task, ambiguous: Conversation) -> None:
    failing = SimpleNamespace(label=lambda turns: [LLMFailure("timeout", "no answer", True, t.where) for t in turns])
    with pytest.raises(RoleError) as error:
        annotate(pacific, [ambiguous], failing, "llm")
    assert [f.label for f in error.value.failures] == [pacific.turn_states(ambiguous)[0].where]


def test_every_reading_has_a_pair_with_one_prompt_and_a_goal_of_its_own(pacific: Task, ambiguous: Conversation) -> None:
    turns = pacific.turn_states(ambiguous)
    generator = Writes()
    pairs, report = build_pairs(pacific, turns, generator, 0)
    assert generator.asked == [(t.turn_id, "ANSWER") for t in turns]
    assert report == {"pairs": 3, "identical": 0, "wrong_action": 0}
    assert [(p.turn_id, p.goal, p.rejected) for p in pairs] == [
        (t.turn_id, t.goal.text, f"for {t.turn_id}") for t in turns
    ]
    assert {(p.prompt, p.chosen) for p in pairs} == {(messages_of(pacific, turns[0]), turns[0].response.text)}


class Careful(PacificJudge):
    """Rejects what it is told that may be rejected."""

    def __init__(self, *may: str) -> None:
        self.may = may

    def rejected_actions(self, turn: TurnState, actions: Sequence[Action]) -> Sequence[str]:
        return [a.name for a in actions if a.name != turn.action and a.name in self.may]


def test_the_losing_action_is_drawn_with_the_seed_from_what_the_task_allows(
    pacific: Task, few_turns: list[TurnState]
) -> None:
    task = replace(pacific, actions=(*pacific.actions, Action("DECLINE", True, "declines")))
    drawn = [[rejected_action(task, t, seed) for t in few_turns] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {"CLARIFY", "ANSWER", "DECLINE"}
    assert all(a != t.action for t, a in zip(few_turns, drawn[0], strict=True))
    careful = replace(task, judge=Careful("CLARIFY", "ANSWER"))
    other = {"CLARIFY": "ANSWER", "ANSWER": "CLARIFY"}
    for seed in range(5):
        assert [rejected_action(careful, t, seed) for t in few_turns] == [other[t.action] for t in few_turns]
    with pytest.raises(ActError) as error:
        rejected_action(replace(task, judge=Careful()), few_turns[0], 0)
    assert error.value.where == few_turns[0].where
