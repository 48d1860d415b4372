"""A policy, a task and its roles in; every evaluated trajectory and a report out (section 4.2, appendix D).

Turn level: the first response against r. Trajectory level: the outcome of the simulated conversation against g;
one that was never settled scores 0. Post-clarification: trajectory level over the trajectories in which the
policy clarified; with none of them the figure is null with a count of 0. A request with several readings is run once
for each: every trajectory counts in all figures, actions included (appendix D), but for the turn-level score, which
counts once for each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from act_assets.conversation import Trajectory, TurnState, Utterance
from act_assets.metrics.actions import accuracy, bootstrap_macro_f1, confusion, macro_f1
from act_assets.tasks.base import Scores, Task
from act_assets.trajectory import (
    ActionClassifier,
    ConversationPolicy,
    Dialogue,
    UserSimulator,
    dialogue_seeds,
    simulate,
)
from resources.errors import DataError, RoleError


@dataclass(frozen=True, slots=True)
class NamedScore:
    """One score of one turn: `level` is `turn` or `trajectory`, `form` the metric's form."""

    level: str
    form: str
    value: float


@dataclass(frozen=True, slots=True)
class EvaluatedTurn:
    """One evaluated trajectory: a row of `trajectories.parquet`."""

    task: str
    conversation_id: str
    group: str
    prompt_id: str
    turn_id: str
    request: str
    action: str
    predicted_action: str
    reference: str
    goal: str
    answer_type: str
    goal_answer_type: str
    response: str
    trajectory: str
    outcome: str | None
    ended: str
    clarified: bool
    truncated: bool
    scores: tuple[NamedScore, ...]

    def score(self, level: str, form: str) -> float | None:
        """None where the form says nothing of this turn."""
        return next((s.value for s in self.scores if s.level == level and s.form == form), None)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with the number of examples behind it; `low` and `high` bound its 95 % interval where there is one.

    `value` is a fraction (0 to 1), or None where `count` is 0.
    """

    name: str
    value: float | None
    count: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Figures of one answer type: of the reference (turn level) and of the goal (trajectory level)."""

    answer_type: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What a method scored, and what that was measured with. `judge` names what scored it, an embedder's weights
    included; `side` the split that was evaluated."""

    method: str
    task: str
    train_size: int | None
    seed: int
    profile: str
    policy: str
    simulator: str
    classifier: str
    judge: str
    side: str
    action_supervision: str
    actions: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    metrics: tuple[Metric, ...]
    breakdown: tuple[Breakdown, ...]
    notes: tuple[str, ...] = ()

    def metric(self, name: str) -> Metric | None:
        return next((m for m in self.metrics if m.name == name), None)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who was evaluated, with what; copied into the report."""

    method: str
    train_size: int | None
    seed: int
    profile: str
    policy: str
    simulator: str
    classifier: str
    judge: str
    side: str
    action_supervision: str = "gold"


class OraclePolicy:
    """Responds with the gold response, then with the goal: scores 1.0 everywhere with the gold user."""

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        return [Utterance("assistant", (d.turn.goal if d.utterances else d.turn.response).text, "") for d in dialogues]


def evaluate(
    task: Task,
    turns: Sequence[TurnState],
    policy: ConversationPolicy,
    classifier: ActionClassifier,
    simulator: UserSimulator,
    intents: dict[str, str],
    provenance: Provenance,
    *,
    max_clarifications: int,
    bootstrap_samples: int,
    group_size: int = 64,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[EvaluationReport, list[EvaluatedTurn]]:
    """Runs every turn to the end of its trajectory and scores it. Raises RoleError where a role failed."""
    if not turns:
        raise DataError("nothing to evaluate", where=f"task {task.name}", todo="check the validation split")
    rows: list[EvaluatedTurn] = []
    for start in range(0, len(turns), group_size):
        group = turns[start : start + group_size]
        trajectories = simulate(
            group,
            dialogue_seeds(provenance.seed, group, "evaluation"),
            policy,
            classifier,
            simulator,
            [intents.get(t.intent_id, "") for t in group],
            task,
            max_clarifications,
        )
        rows += score_trajectories(task, group, trajectories)
        for _ in group:
            on_done()
    return summarise(task, rows, provenance, bootstrap_samples), rows


def score_trajectories(
    task: Task, turns: Sequence[TurnState], trajectories: Sequence[Trajectory]
) -> list[EvaluatedTurn]:
    """Each trajectory against r and g, in order."""
    for turn, trajectory in zip(turns, trajectories, strict=True):
        if not trajectory.utterances:
            raise RoleError("no room for a response", where=turn.where, todo="check max_length in the profile")
    at_turn = task.judge.turn_scores(turns, [t.first.text for t in trajectories])
    settled = [(i, t.outcome) for i, t in enumerate(trajectories) if t.outcome is not None]
    scored = task.judge.outcome_scores([turns[i] for i, _ in settled], [outcome for _, outcome in settled])
    at_end = dict(zip((i for i, _ in settled), scored, strict=True))
    unsettled: Scores = dict.fromkeys(task.judge.forms, 0.0)
    return [
        _evaluated(turn, trajectory, at_turn[i], at_end.get(i, unsettled), task.judge.forms)
        for i, (turn, trajectory) in enumerate(zip(turns, trajectories, strict=True))
    ]


def _evaluated(
    turn: TurnState, trajectory: Trajectory, at_turn: Scores, at_end: Scores, forms: Sequence[str]
) -> EvaluatedTurn:
    return EvaluatedTurn(
        task=turn.task,
        conversation_id=turn.conversation_id,
        group=turn.group,
        prompt_id=turn.prompt_id,
        turn_id=turn.turn_id,
        request=turn.request,
        action=turn.action,
        predicted_action=trajectory.first.action,
        reference=turn.response.text,
        goal=turn.goal.text,
        answer_type=turn.response.answer_type,
        goal_answer_type=turn.goal.answer_type,
        response=trajectory.first.text,
        trajectory=trajectory.text,
        outcome=trajectory.outcome,
        ended=trajectory.ended,
        clarified=trajectory.clarified,
        truncated=any(u.truncated for u in trajectory.utterances),
        scores=tuple(
            NamedScore(level, form, scores[form])
            for level, scores in (("turn", at_turn), ("trajectory", at_end))
            for form in forms
            if form in scores
        ),
    )


def summarise(
    task: Task, rows: Sequence[EvaluatedTurn], provenance: Provenance, bootstrap_samples: int
) -> EvaluationReport:
    """All figures of a method over its evaluated trajectories."""
    clarified = [r for r in rows if r.clarified]
    metrics = [
        *action_metrics(
            task,
            [r.action for r in rows],
            [r.predicted_action for r in rows],
            [r.group for r in rows],
            provenance.seed,
            bootstrap_samples,
        ),
        *_means("turn", "turn", rows),
        *_means("trajectory", "trajectory", rows),
        *_means("post-clarification", "trajectory", clarified, like=rows),
    ]
    breakdown = tuple(
        Breakdown(
            answer_type,
            tuple(
                metric
                for level in ("turn", "trajectory")
                for metric in _means(level, level, [r for r in rows if _type(r, level) == answer_type], like=rows)
            ),
        )
        for answer_type in sorted({r.answer_type for r in rows} | {r.goal_answer_type for r in rows})
    )
    cut = sum(1 for r in rows if r.truncated)
    unsettled = sum(1 for r in rows if r.ended != "settled")
    prompts = len({r.prompt_id for r in rows})
    more = f" ({len(rows)} trajectories: one for each way a request may be meant)" if prompts < len(rows) else ""
    notes = (
        f"{prompts} turns of {len({r.conversation_id for r in rows})} conversations{more}",
        f"{cut} trajectories with a response that hit the token limit",
        f"{unsettled} trajectories never settled (they score 0)",
    )
    return _report(task, rows, provenance, tuple(metrics), breakdown, notes)


def evaluate_actions(
    task: Task,
    turns: Sequence[TurnState],
    predicted: Sequence[str],
    provenance: Provenance,
    *,
    bootstrap_samples: int,
) -> EvaluationReport:
    """A report for predictors that name an action and write nothing: action metrics alone."""
    gold, groups = [t.action for t in turns], [t.group for t in turns]
    return EvaluationReport(
        **asdict(provenance),
        task=task.name,
        actions=task.action_names,
        confusion=confusion(gold, predicted, task.action_names),
        metrics=tuple(action_metrics(task, gold, predicted, groups, provenance.seed, bootstrap_samples)),
        breakdown=(),
        notes=(f"{len(turns)} turns of {len({t.conversation_id for t in turns})} conversations",),
    )


def action_metrics(
    task: Task, gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str], seed: int, samples: int
) -> list[Metric]:
    """Accuracy, and macro F1 with its bootstrap interval over conversations."""
    interval = bootstrap_macro_f1(gold, predicted, groups, task.action_names, seed=seed, samples=samples)
    return [
        Metric("accuracy", accuracy(gold, predicted), len(gold)),
        Metric("macro F1", macro_f1(gold, predicted, task.action_names), len(gold), interval.low, interval.high),
    ]


def write_report(path: Path, report: EvaluationReport) -> None:
    """One JSON file; never NaN."""
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> EvaluationReport:
    """The report that `write_report` wrote."""
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    metrics = lambda rows: tuple(Metric(**m) for m in rows)  # noqa: E731
    return EvaluationReport(
        **{
            **raw,
            "actions": tuple(raw["actions"]),
            "confusion": tuple(tuple(row) for row in raw["confusion"]),
            "metrics": metrics(raw["metrics"]),
            "breakdown": tuple(Breakdown(b["answer_type"], metrics(b["metrics"])) for b in raw["breakdown"]),
            "notes": tuple(raw["notes"]),
        }
    )


def _report(
    task: Task,
    rows: Sequence[EvaluatedTurn],
    provenance: Provenance,
    metrics: tuple[Metric, ...],
    breakdown: tuple[Breakdown, ...],
    notes: tuple[str, ...],
) -> EvaluationReport:
    return EvaluationReport(
        **asdict(provenance),
        task=task.name,
        actions=task.action_names,
        confusion=confusion([r.action for r in rows], [r.predicted_action for r in rows], task.action_names),
        metrics=metrics,
        breakdown=breakdown,
        notes=notes,
    )


def _type(row: EvaluatedTurn, level: str) -> str:
    return row.answer_type if level == "turn" else row.goal_answer_type


def _means(name: str, level: str, rows: Sequence[EvaluatedTurn], like: Sequence[EvaluatedTurn] = ()) -> list[Metric]:
    """The mean of every form of a level; `like` are rows with the forms, where `rows` may be empty."""
    forms = dict.fromkeys(s.form for r in like or rows for s in r.scores if s.level == level)
    if level == "turn":
        rows = list({r.prompt_id: r for r in reversed(rows)}.values())
    scored = {form: [value for r in rows if (value := r.score(level, form)) is not None] for form in forms}
    return [_mean(f"{name} {form}", values) for form, values in scored.items()]


def _mean(name: str, values: Sequence[float]) -> Metric:
    return Metric(name, sum(values) / len(values) if values else None, len(values))
