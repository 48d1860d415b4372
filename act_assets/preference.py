"""Algorithm 1: contrastive action pairs (section 3.2.1).

For every turn: a = G(p, r); a' is drawn from S without a; y_w = r; y_l is sampled from M under a'. Both
directions occur: an answer where clarifying was right, a clarifying question where answering was right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from act_assets.conversation import ActionLabel, Conversation, PreferencePair, TurnState, once_per_prompt
from act_assets.roles.generator import Generator
from act_assets.roles.role import require_all
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task, messages_of
from resources.errors import ActError, DataError
from resources.llm.base import LLMFailure


class Annotator(Protocol):
    """G: names the action of a reference response."""

    def label(self, turns: Sequence[TurnState]) -> list[str | LLMFailure]: ...


def annotate(task: Task, conversations: Sequence[Conversation], annotator: Annotator, source: str) -> list[ActionLabel]:
    """Line 3 for every turn, once however many readings it has: a_i = G(p_i, r_i).

    Raises RoleError naming the turns that G could not label.
    """
    turns = [t for c in conversations for t in task.turn_states(c)]
    unique = once_per_prompt(turns)
    labels = require_all(annotator.label(unique), "action labels")
    return [
        ActionLabel(t.task, t.conversation_id, t.prompt_id, t.action, label, source)
        for t, label in zip(unique, labels, strict=True)
    ]


def rejected_action(task: Task, turn: TurnState, seed: int) -> str:
    """Line 4: a' from S without a, as the task's policy has it; drawn with a seed where several remain."""
    others = task.judge.rejected_actions(turn, task.actions)
    if not others:
        raise ActError(
            f"no action is left to reject beside {turn.action}",
            where=turn.where,
            todo="rejected_actions of the task's judge has to name one at least",
        )
    return random.Random(derive_seed(seed, "rejected_action", turn.turn_id)).choice(others)


def build_pairs(
    task: Task,
    turns: Sequence[TurnState],
    generator: Generator,
    seed: int,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Algorithm 1 over turns whose `action` is G's label: the pairs, and what building them came to.

    `identical` losing responses equalled the winning one and were dropped; `wrong_action` ones read as another
    action than M was asked for, and were dropped. Raises RoleError where M failed for some turns.
    """
    if not turns:
        raise DataError("no turns to build pairs from", where=f"task {task.name}", todo="choose a larger train size")
    rejected = [rejected_action(task, turn, seed) for turn in turns]
    seeds = [derive_seed(seed, "generator", turn.turn_id) for turn in turns]
    losers = require_all(generator.generate(turns, rejected, seeds, on_done), "losing responses")
    pairs, identical, wrong_action = [], 0, 0
    for turn, other, text in zip(turns, rejected, losers, strict=True):
        if text.strip() == turn.response.text.strip():
            identical += 1
        elif task.judge.rule_action(text) != other:
            wrong_action += 1
        else:
            pairs.append(
                PreferencePair(
                    task=turn.task,
                    conversation_id=turn.conversation_id,
                    turn_id=turn.turn_id,
                    action=turn.action,
                    rejected_action=other,
                    prompt=messages_of(task, turn),
                    chosen=turn.response.text,
                    rejected=text,
                    goal=turn.goal.text,
                )
            )
    return pairs, {"pairs": len(pairs), "identical": identical, "wrong_action": wrong_action}
