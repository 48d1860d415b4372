"""A policy, a task and its roles in; every evaluated trajectory and a report out (section 4.2,
appendix D).

Turn level: the first response against r. Trajectory level: the outcome of the simulated conversation
against g; one that was never settled scores 0. Post-clarification: trajectory level over the
trajectories in which the policy clarified; with none of them the figure is null with a count of 0. A
request with several readings is run once for each: every trajectory counts in all figures, actions
included (appendix D), but for the turn-level score, which counts once for each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from act_assets.conversation import Trajectory, TurnState
from act_assets.metrics.actions import accuracy, bootstrap_macro_f1, confusion, macro_f1
from act_assets.tasks.base import Scores, Task
from act_assets.trajectory import ActionClassifier, ConversationPolicy, UserSimulator, dialogue_seeds, simulate
from resources.artifacts import MANIFEST, Artifact
from resources.errors import DataError, RoleError


@dataclass(frozen=True, slots=True)
class NamedScore:
    """One score of one turn: `level` is `turn` or `trajectory`, `form` the metric's form."""

    level: str
    form: str
    value: float


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance of an evaluated trajectory; `action` is empty for the user's."""

    speaker: str
    text: str
    action: str
    truncated: bool


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
    utterances: tuple[Said, ...]
    outcome: str | None
    ended: str
    clarified: bool
    truncated: bool
    scores: tuple[NamedScore, ...]

    def score(self, level: str, form: str) -> float | None:
        """None where the form says nothing of this turn."""
        return next((s.value for s in self.scores if s.level == level and s.form == form), None)

    @property
    def trajectory(self) -> str:
        """What was said, readable."""
        return "\n".join(f"{u.speaker.capitalize()}: {u.text}" for u in self.utterances)


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
class Provenance:
    """Who was evaluated, with what. `judge` names what scores, an embedder's weights included; `side` is
    the split that is evaluated."""

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


@dataclass(frozen=True, slots=True)
class EvaluationReport(Provenance):
    """What a method scored. `confusion` has a row for each gold action, in the order of `actions`."""

    actions: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    metrics: tuple[Metric, ...]
    breakdown: tuple[Breakdown, ...] = ()
    notes: tuple[str, ...] = ()

    def metric(self, name: str) -> Metric | None:
        return next((m for m in self.metrics if m.name == name), None)


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
        EvaluatedTurn(
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
            utterances=tuple(Said(u.speaker, u.text, u.action, u.truncated) for u in trajectory.utterances),
            outcome=trajectory.outcome,
            ended=trajectory.ended,
            clarified=trajectory.clarified,
            truncated=any(u.truncated for u in trajectory.utterances),
            scores=tuple(
                NamedScore(level, form, scores[form])
                for level, scores in (("turn", at_turn[i]), ("trajectory", at_end.get(i, unsettled)))
                for form in task.judge.forms
                if form in scores
            ),
        )
        for i, (turn, trajectory) in enumerate(zip(turns, trajectories, strict=True))
    ]


def evaluate_actions(
    task: Task,
    turns: Sequence[TurnState] | Sequence[EvaluatedTurn],
    predicted: Sequence[str],
    provenance: Provenance,
    *,
    bootstrap_samples: int,
) -> EvaluationReport:
    """The action metrics alone: all there is of predictors that name an action and write nothing.

    The interval of macro F1 is a bootstrap over conversations.
    """
    gold, groups = [t.action for t in turns], [t.group for t in turns]
    interval = bootstrap_macro_f1(
        gold, predicted, groups, task.action_names, seed=provenance.seed, samples=bootstrap_samples
    )
    return EvaluationReport(
        **asdict(provenance),
        actions=task.action_names,
        confusion=confusion(gold, predicted, task.action_names),
        metrics=(
            Metric("accuracy", accuracy(gold, predicted), len(gold)),
            Metric("macro F1", macro_f1(gold, predicted, task.action_names), len(gold), interval.low, interval.high),
        ),
        notes=(f"{len(turns)} turns of {len({t.conversation_id for t in turns})} conversations",),
    )


def summarise(
    task: Task, rows: Sequence[EvaluatedTurn], provenance: Provenance, bootstrap_samples: int
) -> EvaluationReport:
    """All figures of a method over its evaluated trajectories."""
    predicted = [r.predicted_action for r in rows]
    report = evaluate_actions(task, rows, predicted, provenance, bootstrap_samples=bootstrap_samples)
    forms = {
        level: list(dict.fromkeys(s.form for r in rows for s in r.scores if s.level == level))
        for level in ("turn", "trajectory")
    }

    def means(level: str, of: Sequence[EvaluatedTurn], name: str | None = None) -> list[Metric]:
        """The mean of every form of a level."""
        if level == "turn":  # once for each prompt
            of = list({r.prompt_id: r for r in reversed(of)}.values())
        found = []
        for form in forms[level]:
            values = [value for r in of if (value := r.score(level, form)) is not None]
            mean = sum(values) / len(values) if values else None
            found.append(Metric(f"{name or level} {form}", mean, len(values)))
        return found

    prompts = len({r.prompt_id for r in rows})
    more = f" ({len(rows)} trajectories: one for each way a request may be meant)" if prompts < len(rows) else ""
    return replace(
        report,
        metrics=(
            *report.metrics,
            *means("turn", rows),
            *means("trajectory", rows),
            *means("trajectory", [r for r in rows if r.clarified], "post-clarification"),
        ),
        breakdown=tuple(
            Breakdown(
                answer_type,
                (
                    *means("turn", [r for r in rows if r.answer_type == answer_type]),
                    *means("trajectory", [r for r in rows if r.goal_answer_type == answer_type]),
                ),
            )
            for answer_type in sorted({t for r in rows for t in (r.answer_type, r.goal_answer_type)})
        ),
        notes=(
            f"{prompts} turns of {len({r.conversation_id for r in rows})} conversations{more}",
            f"{sum(r.truncated for r in rows)} trajectories with a response that hit the token limit",
            f"{sum(r.ended != 'settled' for r in rows)} trajectories never settled (they score 0)",
        ),
    )


def write_report(path: Path, report: EvaluationReport) -> None:
    """One JSON file; never NaN."""
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> EvaluationReport:
    """The report that `write_report` wrote."""
    return TypeAdapter(EvaluationReport).validate_json(path.read_bytes())


def reports_in(artifacts: Iterable[Artifact]) -> list[EvaluationReport]:
    """All evaluation reports of some artifacts."""
    return [read_report(path) for a in artifacts for path in sorted(a.path.glob("*.json")) if path.name != MANIFEST]
