"""What there is to report of one task, profile and seed: the artifacts' contents, what is missing, and how
a method compares with the one that it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from act_assets.evaluation.evaluate import EvaluatedTurn, EvaluationReport, read_report, reports_in
from act_assets.evaluation.leaderboard import MethodRow, in_order, paper_value
from act_assets.metrics.actions import Interval, paired_bootstrap_macro_f1_difference
from act_assets.profile import Profile
from act_assets.rows import read_rows
from act_assets.tasks.base import Task
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact

REPORT, TRAJECTORIES, HISTORY, ROLLOUTS = "report.json", "trajectories.parquet", "history.parquet", "rollouts"


@dataclass(frozen=True)
class Evidence:
    """What a page is made from: `artifacts` by (asset, train size), their contents by (method, train size)."""

    task: Task
    profile: Profile
    seed: int
    train_sizes: Sequence[int]
    artifacts: Mapping[tuple[str, int], Artifact]
    methods: Sequence[MethodRow]
    predictors: Sequence[MethodRow] = ()  # what only names actions

    @cached_property
    def sizes(self) -> list[int]:
        """The train sizes that the page speaks of."""
        return sorted({*self.train_sizes, *(size for _, size in self.artifacts)})

    @cached_property
    def sizes_evaluated(self) -> list[int]:
        return [s for s in self.sizes if any((m.evaluation, s) in self.artifacts for m in self.methods)]

    def file(self, asset: str, size: int, name: str) -> Path | None:
        """A file of an artifact, None where either is not there."""
        artifact = self.artifacts.get((asset, size))
        return artifact.file(name) if artifact is not None and artifact.file(name).exists() else None

    def _evaluation_files(self, name: str) -> dict[tuple[str, int], Path]:
        found = {(m.name, s): self.file(m.evaluation, s, name) for s in self.sizes for m in self.methods}
        return {place: path for place, path in found.items() if path is not None}

    @cached_property
    def evaluated(self) -> dict[tuple[str, int], EvaluationReport]:
        """The reports of the trained methods."""
        return {place: read_report(path) for place, path in self._evaluation_files(REPORT).items()}

    @cached_property
    def trajectories(self) -> dict[tuple[str, int], list[EvaluatedTurn]]:
        files = self._evaluation_files(TRAJECTORIES)
        return {place: read_rows(path, EvaluatedTurn) for place, path in files.items()}

    @cached_property
    def reports(self) -> list[EvaluationReport]:
        """All reports, those of the baselines included, in the order of the leaderboard."""
        assets = {m.evaluation for m in self.predictors}
        baselines = [a for (asset, _), a in sorted(self.artifacts.items()) if asset in assets]
        return in_order([*reports_in(baselines), *self.evaluated.values()], self.methods)

    def history(self, method: MethodRow, size: int) -> list[TrainingPoint]:
        path = self.file(method.checkpoint, size, HISTORY)
        return [] if path is None else read_rows(path, TrainingPoint)

    def rollouts(self, method: MethodRow, size: int) -> list[Rollout]:
        folder = self.file(method.checkpoint, size, ROLLOUTS)
        files = [] if folder is None else sorted(folder.glob("epoch-*.parquet"))
        return [rollout for path in files for rollout in read_rows(path, Rollout)]


def parts(methods: Sequence[MethodRow], predictors: Sequence[MethodRow] = ()) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What the page shows of each asset, and the files that it reads of it."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {m.evaluation: (f"figures of {m.title}", ()) for m in predictors}
    for m in methods:
        found[m.evaluation] = (f"figures and trajectories of {m.title}", (REPORT, TRAJECTORIES))
    for m in methods:
        what = "training curves and rollouts" if m.rollout_epochs else "training curves"
        found[m.checkpoint] = (f"{what} of {m.title}", (HISTORY, ROLLOUTS) if m.rollout_epochs else (HISTORY,))
    return found | {"contrastive_pairs": ("numbers of contrastive pairs", ())}


def missing_parts(evidence: Evidence) -> dict[int, list[tuple[str, str]]]:
    """(asset, what the page shows of it) where that is not on the page, by train size; an empty list: all of it."""
    wanted, found = parts(evidence.methods, evidence.predictors), {}
    for size in evidence.sizes:
        absent = [(asset, what) for asset, (what, _) in wanted.items() if (asset, size) not in evidence.artifacts]
        damaged = [
            (asset, f"its artifact holds no {name}: materialize it again")
            for asset, (_, files) in wanted.items()
            for name in files
            if (asset, size) in evidence.artifacts and evidence.file(asset, size, name) is None
        ]
        if absent or damaged:
            found[size] = [] if len(absent) == len(wanted) else absent + damaged
    return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method against the one it starts from, in macro F1 at one train size; `reason` says why there is
    no difference, or what the verdict rests on."""

    train_size: int
    verdict: str
    reason: str
    difference: float | None = None
    interval: Interval | None = None
    paper: float | None = None


def compare(evidence: Evidence, start: MethodRow, method: MethodRow, size: int) -> Comparison:
    """A paired bootstrap over the same turns; without trajectories, whether the two intervals overlap."""
    both = (start, method)
    absent = [m.evaluation for m in both if (m.name, size) not in evidence.evaluated]
    if absent:
        return Comparison(size, "not compared", f"{' and '.join(absent)} missing")
    reports = [evidence.evaluated[m.name, size] for m in both]
    identities = [evidence.artifacts[m.evaluation, size].identity for m in both]
    turns = [evidence.trajectories.get((m.name, size), []) for m in both]
    places = [[(t.conversation_id, t.turn_id, t.action) for t in rows] for rows in turns]
    evaluated: dict[str, list[Any]] = {
        "with different simulators": [r.simulator for r in reports],
        "with different classifiers": [r.classifier for r in reports],
        "with different seeds": [r.seed for r in reports],
        "with different judges": [r.judge for r in reports],
        "with different settings": [i.get("settings") for i in identities],
        "with different prompts": [i.get("prompts") for i in identities],
        "on different turns": places if all(turns) else [None, None],
    }
    for how, (one, other) in evaluated.items():
        if one != other:
            return Comparison(size, "not compared", f"they were evaluated {how}; materialize both again")
    before, after = (r.metric("macro F1") for r in reports)
    if before is None or after is None or before.value is None or after.value is None:
        return Comparison(size, "not compared", "there is no macro F1")
    papers = [paper_value(evidence.task.name, m.paper_approach, size, "macro F1") for m in both]
    paper = None if papers[0] is None or papers[1] is None else papers[1] - papers[0]
    difference, interval = after.value - before.value, None
    if all(turns):
        interval = paired_bootstrap_macro_f1_difference(
            [t.action for t in turns[0]],
            [t.predicted_action for t in turns[1]],
            [t.predicted_action for t in turns[0]],
            [t.group for t in turns[0]],
            evidence.task.action_names,
            seed=evidence.seed,
            samples=evidence.profile.evaluation.bootstrap_samples,
        )
        noise = interval.low <= 0 <= interval.high
        reason = f"paired bootstrap over conversations: the interval {'contains' if noise else 'excludes'} 0"
    elif before.low is None or before.high is None or after.low is None or after.high is None:
        return Comparison(size, "not judged", "neither trajectories nor intervals are there", difference, None, paper)
    else:
        noise = before.low <= after.high and after.low <= before.high
        reason = f"the two intervals {'overlap' if noise else 'do not overlap'}; there are no trajectories to pair"
    return Comparison(size, "within noise" if noise else "outside noise", reason, difference, interval, paper)
