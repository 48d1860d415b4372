"""Simulated conversations: each turn at its own step, counted, batched, and failing in typed ways."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from act_assets.conversation import TurnState, Utterance
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


class Refusing:
    def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
        return [LLMFailure("timeout", "no answer", True, t.turn_id) for t in turns]


def _simulate(task: Task, turns: list[TurnState], policy: Scripted, user: object = None, limit: int = 3, **options):  # type: ignore[no-untyped-def]
    intents = [f"i{n}" for n in range(len(turns))]
    seeds = dialogue_seeds(0, turns)
    return simulate(turns, seeds, policy, RuleClassifier(task), user or Echo(), intents, task, limit, **options)  # type: ignore[arg-type]


def test_each_conversation_goes_on_until_it_is_settled(pacific: Task, few_turns: list[TurnState]) -> None:
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


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_clarifying_once_too_often_is_a_failed_trajectory(
    pacific: Task, few_turns: list[TurnState], limit: int
) -> None:
    policy = Scripted({few_turns[0].turn_id: ["Which?"] * 9})
    (trajectory,) = _simulate(pacific, few_turns[:1], policy, limit=limit)
    assert (trajectory.ended, trajectory.replies, trajectory.outcome) == ("max_clarifications", limit, None)
    assert len(policy.batches) == limit + 1


def test_a_wrong_first_action_is_not_rolled_out(pacific: Task, few_turns: list[TurnState]) -> None:
    policy = Scripted({few_turns[0].turn_id: ["Which?", "5"]})
    (trajectory,) = _simulate(pacific, few_turns[:1], policy, continue_first=lambda turn, action: False)
    assert (trajectory.ended, len(trajectory.utterances)) == ("not_rolled_out", 1)


def test_no_room_ends_a_trajectory(pacific: Task, few_turns: list[TurnState]) -> None:
    policy = Scripted({few_turns[0].turn_id: ["Which?", None]})
    (trajectory,) = _simulate(pacific, few_turns[:1], policy)
    assert (trajectory.ended, trajectory.outcome) == ("too_long", None)


def test_a_silent_user_is_an_error_that_names_the_turns(pacific: Task, few_turns: list[TurnState]) -> None:
    policy = Scripted({t.turn_id: ["Which?"] for t in few_turns[:2]})
    with pytest.raises(RoleError, match="2 of 2") as error:
        _simulate(pacific, few_turns[:2], policy, Refusing())
    assert [f.message for f in error.value.failures] == ["no answer"] * 2


def test_a_classifier_failure_is_an_error_that_names_the_turn(pacific: Task, few_turns: list[TurnState]) -> None:
    class Broken:
        def classify(self, turns, responses):  # type: ignore[no-untyped-def]
            return [LLMFailure("blocked", "policy", False, t.where) for t in turns]

    with pytest.raises(RoleError, match=few_turns[0].turn_id):
        simulate(few_turns[:1], [0], Scripted({few_turns[0].turn_id: ["5"]}), Broken(), Echo(), ["i"], pacific, 3)


def test_seeds_depend_on_the_turn_and_not_on_its_neighbours(few_turns: list[TurnState]) -> None:
    together = dialogue_seeds(7, few_turns, "rollout", 3)
    assert together == [dialogue_seeds(7, [t], "rollout", 3)[0] for t in few_turns]
    assert len(set(together)) == len(few_turns)
    assert together != dialogue_seeds(7, few_turns, "rollout", 4)
