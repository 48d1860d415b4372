"""Simulated conversations: each turn at its own step, counted, batched, and failing in typed ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from act_assets.conversation import Trajectory, TurnState, Utterance
from act_assets.roles import RuleClassifier
from act_assets.tasks.base import Task
from act_assets.trajectory import Dialogue, dialogue_seeds, simulate
from resources.errors import RoleError
from resources.llm.base import LLMFailure


class Scripted:
    """Says the n-th line of a turn's script as its n-th response."""

    def __init__(self, scripts: dict[str, list[str | None]]) -> None:
        self.scripts, self.batches = scripts, []  # type: ignore[var-annotated]

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        self.batches.append([d.turn.turn_id for d in dialogues])
        lines = [self.scripts[d.turn.turn_id][sum(u.speaker == "user" for u in d.utterances)] for d in dialogues]
        return [None if line is None else Utterance("assistant", line, "", (1,)) for line in lines]


class Echo:
    """A user who answers every question with its number."""

    def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
        return [f"{intent}:{len(t)}" for intent, t in zip(intents, trajectories, strict=True)]


def _simulate(  # type: ignore[no-untyped-def]
    task: Task, turns: list[TurnState], policy: Scripted, limit: int = 3, user=None, classifier=None, **options
) -> list[Trajectory]:
    intents = [f"i{n}" for n in range(len(turns))]
    classifier, user = classifier or RuleClassifier(task), user or Echo()
    return simulate(turns, dialogue_seeds(0, turns), policy, classifier, user, intents, task, limit, **options)


def test_each_conversation_continues_until_it_is_settled(pacific: Task, few_turns: list[TurnState]) -> None:
    a, b, c = few_turns[:3]
    policy = Scripted({a.turn_id: ["5"], b.turn_id: ["Which?", "6"], c.turn_id: ["Which?", "What?", "7"]})
    first, second, third = _simulate(pacific, [a, b, c], policy)
    assert [u.text for u in first.utterances] == ["5"]
    assert [u.text for u in second.utterances] == ["Which?", "i1:1", "6"]
    assert [u.text for u in third.utterances] == ["Which?", "i2:1", "What?", "i2:3", "7"]
    assert [u.action for u in third.utterances] == ["CLARIFY", "", "CLARIFY", "", "ANSWER"]
    assert [t.ended for t in (first, second, third)] == ["settled"] * 3
    assert [t.outcome for t in (first, second, third)] == ["5", "6", "7"]
    assert [t.clarified for t in (first, second, third)] == [False, True, True]
    assert policy.batches == [[a.turn_id, b.turn_id, c.turn_id], [b.turn_id, c.turn_id], [c.turn_id]]


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        (["Which?"] * 9, {"limit": 1}, ("max_clarifications", 3, 2)),
        (["Which?"] * 9, {"limit": 3}, ("max_clarifications", 7, 4)),
        (["Which?", "5"], {"continue_first": lambda turn, action: False}, ("not_rolled_out", 1, 1)),
        (["Which?", None], {}, ("too_long", 2, 2)),
    ],
    ids=["clarified twice of once", "four times of three", "wrong first action", "no room"],
)
def test_a_trajectory_that_is_not_settled_has_no_outcome(
    pacific: Task, few_turns: list[TurnState], said: list[str | None], options: Any, expected: tuple[str, int, int]
) -> None:
    policy = Scripted({few_turns[0].turn_id: said})
    (trajectory,) = _simulate(pacific, few_turns[:1], policy, **options)
    assert (trajectory.ended, len(trajectory.utterances), len(policy.batches)) == expected
    assert trajectory.outcome is None


class Failing:
    """A user and a classifier, neither of which answers."""

    def reply(self, turns: Sequence[TurnState], *further: object) -> list[LLMFailure]:
        return [LLMFailure("timeout", "no answer", True, t.where) for t in turns]

    classify = reply


@pytest.mark.parametrize("role", ["user", "classifier"])
def test_a_role_that_fails_is_an_error_that_names_the_turns(
    pacific: Task, few_turns: list[TurnState], role: str
) -> None:
    policy = Scripted({t.turn_id: ["Which?"] for t in few_turns[:2]})
    with pytest.raises(RoleError) as error:
        _simulate(pacific, few_turns[:2], policy, **{role: Failing()})
    assert [f.label for f in error.value.failures] == [t.where for t in few_turns[:2]]


def test_seeds_depend_on_the_turn_and_not_on_its_neighbours(few_turns: list[TurnState]) -> None:
    together = dialogue_seeds(7, few_turns, "rollout", 3)
    assert together == [dialogue_seeds(7, [t], "rollout", 3)[0] for t in few_turns]
    assert len(set(together)) == len(few_turns)
    assert together != dialogue_seeds(7, few_turns, "rollout", 4)
