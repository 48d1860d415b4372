"""Simulated conversations: lines 6-12 of Algorithm 2, for many turns at once, each at its own step.

trajectories = simulate(turns, seeds, policy, classifier, simulator, intents, task, max_clarifications=3)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from act_assets.conversation import Trajectory, TurnState, Utterance
from act_assets.roles.role import require_all
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from resources.llm.base import LLMFailure


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt and what was said since; the policy speaks next. `seed` decides its sampling."""

    turn: TurnState
    utterances: tuple[Utterance, ...]
    seed: int


class ConversationPolicy(Protocol):
    """Whatever responds: a language model, the oracle, a constant."""

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        """The next response of each dialogue (action left empty); None where no room is left for one."""
        ...


class ActionClassifier(Protocol):
    """A: names the action of the response that each trajectory ends with."""

    def classify(
        self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[str | LLMFailure]: ...


class UserSimulator(Protocol):
    """U: the user's next utterance of each trajectory."""

    def reply(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[str | LLMFailure]: ...


def simulate(
    turns: Sequence[TurnState],
    seeds: Sequence[int],
    policy: ConversationPolicy,
    classifier: ActionClassifier,
    simulator: UserSimulator,
    intents: Sequence[str],
    task: Task,
    max_clarifications: int,
    continue_first: Callable[[TurnState, str], bool] = lambda turn, action: True,
) -> list[Trajectory]:
    """One trajectory per turn, in order.

    While the action of the latest response does not end the trajectory, U replies and the policy responds
    again, up to `max_clarifications` such responses. `continue_first(turn, action)` says whether a first
    response is worth rolling out (Algorithm 2 rolls out only those whose action is right). Raises RoleError,
    naming every turn, where A or U has no answer: a trajectory without it is no trajectory.
    """
    done: dict[int, Trajectory] = {}
    active: dict[int, tuple[Utterance, ...]] = dict.fromkeys(range(len(turns)), ())
    for step in range(max_clarifications + 1):
        if not active:
            break
        order = list(active)
        said = policy.respond([Dialogue(turns[i], active[i], derive_seed(seeds[i], step)) for i in order])
        spoken: list[int] = []
        for i, utterance in zip(order, said, strict=True):
            if utterance is None:
                done[i] = Trajectory(turns[i].turn_id, active.pop(i), "too_long")
            else:
                active[i] = (*active[i], utterance)
                spoken.append(i)
        labels = require_all(
            classifier.classify([turns[i] for i in spoken], [active[i] for i in spoken]),
            "actions of simulated responses",
        )
        waiting: list[int] = []
        for i, label in zip(spoken, labels, strict=True):
            active[i] = (*active[i][:-1], replace(active[i][-1], action=label))
            if task.action(label).ends_trajectory:
                done[i] = Trajectory(turns[i].turn_id, active.pop(i), "settled")
            elif step == 0 and not continue_first(turns[i], label):
                done[i] = Trajectory(turns[i].turn_id, active.pop(i), "not_rolled_out")
            elif step == max_clarifications:
                done[i] = Trajectory(turns[i].turn_id, active.pop(i), "max_clarifications")
            else:
                waiting.append(i)
        replies = require_all(
            simulator.reply([turns[i] for i in waiting], [intents[i] for i in waiting], [active[i] for i in waiting]),
            "replies of the simulated user",
        )
        for i, reply in zip(waiting, replies, strict=True):
            active[i] = (*active[i], Utterance("user", reply, ""))
    return [done[i] for i in range(len(turns))]


def dialogue_seeds(seed: int, turns: Sequence[TurnState], *parts: object) -> list[int]:
    """One seed per turn, independent of batching and order."""
    return [derive_seed(seed, *parts, turn.turn_id) for turn in turns]
