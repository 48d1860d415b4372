"""What must hold before anything is trained, and after a training: of the machine, and of artifacts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from act_assets.conversation import AmbiguousTwin, Conversation, PreferencePair
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import up_to_date
from act_assets.run import Run
from act_assets.tasks.base import Task
from act_assets.tasks.rules import same_text
from act_assets.training.logging import TrainingPoint
from act_assets.training.preflight import check_training
from resources.artifacts import Artifact, Key


def check_machine(run: Run, checkpoints: Sequence[str]) -> None:
    """Raises ProfileError where this machine cannot make those of a run's checkpoints that are not up to date."""
    known: dict[Key, Artifact | None] = {}
    check_training(run.profile, lambda: all(up_to_date(STAGES, name, run, known) for name in checkpoints))


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `offenders` names up to ten examples that fail it."""

    passed: bool
    description: str
    offenders: tuple[str, ...] = ()


def no_leak(pairs: Sequence[PreferencePair], conversations: Sequence[Conversation]) -> Finding:
    """A prompt holds the earlier utterances of its conversation, each once, then the request: never the answer."""
    by_turn = {
        state: (c, i) for c in conversations for i, t in enumerate(c.turns) for state in (t.turn_id, *t.state_ids)
    }
    offenders = []
    for pair in pairs:
        if pair.turn_id not in by_turn:
            offenders.append(pair.turn_id)
            continue
        conversation, position = by_turn[pair.turn_id]
        expected = [*((m.role, m.content) for m in conversation.history), ("user", conversation.turns[0].user)]
        for earlier, later in zip(conversation.turns[:position], conversation.turns[1:], strict=False):
            expected += [("assistant", earlier.response.text), ("user", later.user)]
        if [(m.role, m.content) for m in pair.prompt[1:]] != expected:
            offenders.append(pair.turn_id)
    return _finding(offenders, "prompts hold more or less than the earlier turns of their conversation", len(pairs))


def no_empty_response(pairs: Sequence[PreferencePair]) -> Finding:
    """Both responses of a pair say something."""
    offenders = [p.turn_id for p in pairs if not p.chosen.strip() or not p.rejected.strip()]
    return _finding(offenders, "pairs hold an empty response", len(pairs))


def chosen_differs(pairs: Sequence[PreferencePair]) -> Finding:
    """y_w is not y_l."""
    offenders = [p.turn_id for p in pairs if p.chosen.strip() == p.rejected.strip()]
    return _finding(offenders, "pairs have equal responses", len(pairs))


def covers_actions(pairs: Sequence[PreferencePair], task: Task) -> Finding:
    """Every action of the task wins somewhere and loses somewhere."""
    winners, losers = {p.action for p in pairs}, {p.rejected_action for p in pairs}
    missing = [f"{a} never wins" for a in task.action_names if a not in winners]
    missing += [f"{a} never loses" for a in task.action_names if a not in losers]
    return Finding(not missing, "; ".join(missing) or f"all of {', '.join(task.action_names)}", tuple(missing))


def twins_differ(twins: Sequence[AmbiguousTwin]) -> Finding:
    """No ambiguous request equals the clear one that it was made from."""
    offenders = [t.clear.request_id for t in twins if same_text(t.request, t.clear.request)]
    return _finding(offenders, "twins equal their original", len(twins))


def targets_run(twins: Sequence[AmbiguousTwin], task: Task, data: Path) -> Finding:
    """Every target can be used: gold SQL executes on its database."""
    if task.twins is None:
        return _finding([], "", 0)
    offenders = [t.clear.request_id for t in twins if task.twins.problem(data, t.clear)]
    return _finding(offenders, "targets cannot be used", len(twins))


def balanced(conversations: Sequence[Conversation], task: Task) -> Finding:
    """Where twins are made, as many evaluated requests need a clarification as need none, group by group."""
    if task.twins is None:
        return Finding(True, "this task makes no twins")
    settles = {a.name: a.ends_trajectory for a in task.actions}
    groups: dict[str, list[bool]] = {}
    for c in conversations:
        groups.setdefault(c.group_id, []).extend(settles[t.action] for t in c.turns if t.evaluated)
    uneven = [g for g, ends in groups.items() if 2 * sum(ends) != len(ends)]
    return _finding(uneven, "groups are not balanced", len(groups))


def finite_loss(points: Sequence[TrainingPoint]) -> Finding:
    """A training that logged something, and nothing that is NaN or infinite."""
    offenders = [f"step {p.step}" for p in points if not math.isfinite(p.loss)]
    if not points:
        return Finding(False, "no loss was logged")
    return _finding(offenders, "logged losses are not finite", len(points))


def reward_margin(points: Sequence[TrainingPoint]) -> Finding:
    """The kept checkpoint prefers the winners of the validation pairs more than the initial policy does."""
    margins = [p.reward_margin for p in points if p.split == "validation" and p.reward_margin is not None]
    if not margins:
        return Finding(False, "no reward margin was measured")
    return Finding(max(margins) > 0, f"best reward margin on the validation pairs: {max(margins):+.4f}")


def _finding(offenders: Sequence[str], what: str, of: int) -> Finding:
    if not offenders:
        return Finding(True, f"{of} checked")
    return Finding(False, f"{len(offenders)} of {of} {what}", tuple(offenders[:10]))
