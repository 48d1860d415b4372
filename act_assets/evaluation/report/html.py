"""The report: one static page that needs nothing but a browser.

Everything on it comes from the artifacts of one run. Parts that are not there yet are named on the page, with
the asset that makes them. The page holds no times and no dates: the same artifacts give the same bytes. Results are
read from the evaluations themselves, so that the table and the trajectories below it always agree.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from act_assets.evaluation.evaluate import Breakdown, EvaluatedTurn, EvaluationReport, read_report
from act_assets.evaluation.leaderboard import (
    LEVELS,
    NO_VALUE,
    LeaderboardRow,
    by_method,
    leaderboard_rows,
    main_metrics,
    paper_table,
    paper_value,
    show,
    show_interval,
)
from act_assets.evaluation.report.figures import (
    VERDICT_COLOURS,
    macro_f1_bars,
    rollout_verdicts,
    training_curves,
    verdict_counts,
)
from act_assets.metrics.actions import Interval, paired_bootstrap_macro_f1_difference
from act_assets.pipeline.stage import TRAIN_SIZES, StageRun
from act_assets.roles.build import describe, describe_labels
from act_assets.rows import read_rows
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact

METHODS = ("sft", "act")
# What the page shows of each asset.
PARTS = {
    "evaluation_baselines": "figures of the baselines",
    "evaluation_sft": "figures and trajectories of SFT",
    "evaluation_act": "figures and trajectories of ACT",
    "sft_checkpoint": "training curves of SFT",
    "act_checkpoint": "training curves and rollouts of ACT",
    "contrastive_pairs": "numbers of contrastive pairs",
}
_TEMPLATE = "report.html.j2"
_VERDICTS = {True: "within noise", False: "outside noise"}


def write_html(run: StageRun, path: Path) -> dict[str, Any]:
    """Writes the page of a run. Returns how many methods and trajectories are on it."""
    evidence = Evidence(run)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"show": show, "csp_hash": _csp_hash}
    rows = leaderboard_rows(evidence.reports)
    text = environment.get_template(_TEMPLATE).render(
        title=run.task.title,
        subtitle=f"Supervised fine-tuning (SFT) and action-based contrastive self-training (ACT); "
        f"profile {run.profile.name}, seed {run.seed}",
        settings=_settings(evidence),
        remarks=_remarks(evidence),
        missing=missing_parts(evidence),
        paper=paper_table(run.task.name),
        metric_name=run.task.judge.metric_name,
        metrics=main_metrics(rows),
        results=_results(rows),
        figures=rows,
        bars=_bars(rows),
        comparisons=[comparison(evidence, size) for size in evidence.sizes_evaluated],
        notes=[(method, size, "; ".join(r.notes)) for (method, size), r in evidence.evaluated.items() if r.notes],
        confusions=_confusions(evidence),
        breakdowns=_breakdowns(evidence),
        curves=_curves(evidence),
        rollouts=_rollouts(evidence),
        pairs=_pairs(evidence),
        trajectory_count=sum(len(rows) for rows in evidence.trajectories.values()),
        data=_script_json(trajectory_data(evidence)),
    )
    path.write_bytes(text.encode("utf-8"))
    return {
        "methods": len(by_method(rows)),
        "trajectories": sum(len(rows) for rows in evidence.trajectories.values()),
    }


# --- what there is ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """The inputs of a page, read once. Keys are (method or asset, train size)."""

    run: StageRun

    @cached_property
    def artifacts(self) -> dict[tuple[str, int], Artifact]:
        split = ((key.partition("@"), artifact) for key, artifact in self.run.inputs.items() if "@" in key)
        return {(asset, int(size)): artifact for (asset, _, size), artifact in split}

    @cached_property
    def sizes(self) -> list[int]:
        """The train sizes that the page speaks of."""
        return sorted({*TRAIN_SIZES, *(size for _, size in self.artifacts)})

    @cached_property
    def sizes_evaluated(self) -> list[int]:
        return [s for s in self.sizes if any((f"evaluation_{m}", s) in self.artifacts for m in METHODS)]

    def file(self, asset: str, size: int, name: str) -> Path | None:
        """A file of an artifact, None where either is not there."""
        artifact = self.artifacts.get((asset, size))
        return artifact.file(name) if artifact is not None and artifact.file(name).exists() else None

    @cached_property
    def evaluated(self) -> dict[tuple[str, int], EvaluationReport]:
        """The reports of the trained methods."""
        found = ((m, s, self.file(f"evaluation_{m}", s, "report.json")) for s in self.sizes for m in METHODS)
        return {(method, size): read_report(path) for method, size, path in found if path is not None}

    @cached_property
    def reports(self) -> list[EvaluationReport]:
        """All reports, those of the baselines included."""
        baselines = [a for (asset, _), a in sorted(self.artifacts.items()) if asset == "evaluation_baselines"]
        paths = [p for a in baselines for p in sorted(a.path.glob("*.json")) if p.name != "artifact.json"]
        return [*map(read_report, paths), *self.evaluated.values()]

    @cached_property
    def trajectories(self) -> dict[tuple[str, int], list[EvaluatedTurn]]:
        found = ((m, s, self.file(f"evaluation_{m}", s, "trajectories.parquet")) for s in self.sizes for m in METHODS)
        return {(method, size): read_rows(path, EvaluatedTurn) for method, size, path in found if path is not None}

    def history(self, method: str, size: int) -> list[TrainingPoint]:
        path = self.file(f"{method}_checkpoint", size, "history.parquet")
        return [] if path is None else read_rows(path, TrainingPoint)

    def rollouts(self, size: int) -> list[Rollout]:
        folder = self.file("act_checkpoint", size, "rollouts")
        files = [] if folder is None else sorted(folder.glob("epoch-*.parquet"))
        return [rollout for path in files for rollout in read_rows(path, Rollout)]


@dataclass(frozen=True, slots=True)
class Missing:
    """What the page lacks of one train size: (asset, what it makes); no parts: all of it."""

    partition: str
    command: str
    parts: tuple[tuple[str, str], ...]


def missing_parts(evidence: Evidence) -> list[Missing]:
    """What is not on the page, and which asset makes it."""
    task, found = evidence.run.task.name, []
    files = [
        *((f"evaluation_{m}", name) for m in METHODS for name in ("report.json", "trajectories.parquet")),
        *((f"{m}_checkpoint", "history.parquet") for m in METHODS),
        ("act_checkpoint", "rollouts"),
    ]
    for size in evidence.sizes:
        absent = {a: what for a, what in PARTS.items() if (a, size) not in evidence.artifacts}
        damaged = [
            (asset, f"its artifact holds no {name}: materialize it again")
            for asset, name in files
            if asset not in absent and evidence.file(asset, size, name) is None
        ]
        if absent or damaged:
            command = f"act run --task {task} --train-size {size}"
            parts = () if len(absent) == len(PARTS) else (*absent.items(), *damaged)
            found.append(Missing(f"{task}|{size}", command, parts))
    return found


# --- what was run -------------------------------------------------------------------------------------------


def _settings(evidence: Evidence) -> list[tuple[str, str]]:
    run = evidence.run
    roles = run.profile.roles
    policies = dict.fromkeys(r.policy for r in evidence.evaluated.values())
    return [
        ("Task", f"{run.task.name}, actions {', '.join(run.task.action_names)}"),
        ("Profile", run.profile.name),
        ("Policy", "; ".join(policies) or run.profile.policy.model),
        ("Seed", f"{run.seed}: one training run per method and train size"),
        ("Train sizes", _sizes(evidence.sizes_evaluated)),
        ("Evaluated on", _evaluated(evidence)),
        ("Scored by", "; ".join(dict.fromkeys(r.judge for r in evidence.evaluated.values())) or "nothing yet"),
        ("Generator (M)", describe(roles.generator)),
        ("Action supervision", _supervision(evidence)),
        ("Action classifier (A)", describe(roles.classifier.llm, roles.classifier.source)),
        ("Intent summaries", describe(roles.intent) if run.task.asks("intent") else "none: U is told the goal"),
        ("User simulator (U)", describe(roles.simulator)),
        *([("Ambiguous requests by", describe(roles.played()["perturbation"]))] if run.task.twins else []),
        ("Most clarifications", f"{run.profile.act.max_clarifications} per trajectory"),
    ]


def _supervision(evidence: Evidence) -> str:
    profile = evidence.run.profile
    named = describe_labels(profile)
    return profile.action_supervision + ("" if named == "gold" else f": {named}")


def _sizes(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes))} (conversations)" if sizes else "none evaluated yet"


def _evaluated(evidence: Evidence) -> str:
    """How much was evaluated, each different amount once."""
    counted = [
        f"{len({r.prompt_id for r in rows})} turns of {len({r.conversation_id for r in rows})} conversations of the "
        f"{evidence.evaluated[place].side} side"
        for place, rows in evidence.trajectories.items()
    ]
    noted = [f"{r.metrics[0].count} turns of the {r.side} side" for r in evidence.reports if r.metrics]
    return "; ".join(dict.fromkeys(counted or noted)) or "nothing yet"


def _remarks(evidence: Evidence) -> list[str]:
    """What a reader has to know before the figures."""
    run, remarks = evidence.run, []
    roles = run.profile.roles
    players = [role for name, role in roles.played().items() if run.task.asks(name)]
    embedded = any(p.provider == "embedded" for p in players)
    if embedded:
        remarks.append("The embedded provider is rule-based: it follows fixed rules and is not a language model.")
    if run.profile.policy.scratch is not None:
        remarks.append("The policy is a small model that was built from scratch, without pretrained weights.")
    if embedded or run.profile.policy.scratch is not None or run.profile.name == "laptop":
        remarks.append(
            f"Figures of the profile {run.profile.name} say nothing about the paper's, which stand beside them "
            "for orientation."
        )
    remarks.append(
        "Intervals are 95 % bootstraps over the evaluated conversations. They do not cover the differences "
        "between one training run and another."
    )
    if any(report.side == "validation" for report in evidence.evaluated.values()):
        remarks.append(
            "Checkpoints are chosen on the validation conversations, which are the ones evaluated here, as in the "
            "paper: figures of trained methods lean to the good side."
        )
    named = {
        "simulator": describe(roles.simulator),
        "classifier": describe(roles.classifier.llm, roles.classifier.source),
    }
    for (method, size), report in evidence.evaluated.items():
        remarks += [
            f"{method} at {size} was evaluated with the {role} {getattr(report, role)}, the profile now names "
            f"{name}: materialize evaluation_{method} for {run.task.name}|{size} again."
            for role, name in named.items()
            if getattr(report, role) != name
        ]
    return remarks


# --- results ------------------------------------------------------------------------------------------------


def _results(rows: Sequence[LeaderboardRow]) -> list[dict[str, Any]]:
    """Methods with their figures, grouped by train size."""
    groups: dict[int | None, list[dict[str, Any]]] = {}
    for (method, size), figures in by_method(rows).items():
        groups.setdefault(size, []).append({"method": method, "figures": figures})
    return [{"size": size, "methods": methods} for size, methods in groups.items()]


@dataclass(frozen=True, slots=True)
class Comparison:
    """ACT against SFT in macro F1 at one train size; `reason` says why there is none."""

    train_size: int
    verdict: str
    difference: float | None = None
    interval: Interval | None = None
    paper: float | None = None
    reason: str = ""

    @property
    def figures(self) -> str:
        shown = NO_VALUE if self.difference is None else f"{self.difference:+.3f}"
        return shown if self.interval is None else f"{shown} [{self.interval.low:+.3f}, {self.interval.high:+.3f}]"


def comparison(evidence: Evidence, size: int) -> Comparison:
    """A paired bootstrap over the same turns; without trajectories, whether the two intervals overlap."""
    reports = [evidence.evaluated.get((m, size)) for m in METHODS]
    refused = _incomparable(evidence, size)
    if refused:
        return Comparison(size, "not compared", reason=refused)
    sft, act = (r.metric("macro F1") for r in reports if r is not None)
    if sft is None or act is None or sft.value is None or act.value is None:
        return Comparison(size, "not compared", reason="there is no macro F1")
    difference, paper = act.value - sft.value, _paper_difference(evidence.run.task.name, size)
    turns = [evidence.trajectories.get((m, size)) for m in METHODS]
    if turns[0] and turns[1]:
        interval = _paired(evidence, turns[0], turns[1])
        noise = interval.low <= 0 <= interval.high
        reason = "paired bootstrap over conversations: the interval " + ("contains 0" if noise else "excludes 0")
        return Comparison(size, _VERDICTS[noise], difference, interval, paper, reason)
    if sft.low is None or sft.high is None or act.low is None or act.high is None:
        return Comparison(size, "not judged", difference, None, paper, "neither trajectories nor intervals are there")
    noise = sft.low <= act.high and act.low <= sft.high
    reason = "the two intervals " + ("overlap" if noise else "do not overlap") + "; there are no trajectories to pair"
    return Comparison(size, _VERDICTS[noise], difference, None, paper, reason)


def _incomparable(evidence: Evidence, size: int) -> str:
    """Why SFT and ACT cannot be compared at a train size; empty where they can."""
    absent = [f"evaluation_{m}" for m in METHODS if (m, size) not in evidence.evaluated]
    if absent:
        return f"{' and '.join(absent)} missing"
    artifacts = [evidence.artifacts[f"evaluation_{m}", size] for m in METHODS]
    reports = [evidence.evaluated[m, size] for m in METHODS]
    measured_with: dict[str, list[Any]] = {
        "simulators": [r.simulator for r in reports],
        "classifiers": [r.classifier for r in reports],
        "seeds": [r.seed for r in reports],
        "judges": [r.judge for r in reports],
        "settings": [a.identity.get("settings") for a in artifacts],
        "prompts": [a.identity.get("prompts") for a in artifacts],
    }
    for what, (sft, act) in measured_with.items():
        if sft != act:
            return f"they were evaluated with different {what}; materialize both again"
    turns = [evidence.trajectories.get((m, size)) for m in METHODS]
    if turns[0] and turns[1] and list(map(_place, turns[0])) != list(map(_place, turns[1])):
        return "they were evaluated on different turns; materialize both again"
    return ""


def _place(turn: EvaluatedTurn) -> tuple[str, str, str]:
    return turn.conversation_id, turn.turn_id, turn.action


def _paired(evidence: Evidence, sft: Sequence[EvaluatedTurn], act: Sequence[EvaluatedTurn]) -> Interval:
    return paired_bootstrap_macro_f1_difference(
        [t.action for t in sft],
        [t.predicted_action for t in act],
        [t.predicted_action for t in sft],
        [t.group for t in sft],
        evidence.run.task.action_names,
        seed=evidence.run.seed,
        samples=evidence.run.profile.evaluation.bootstrap_samples,
    )


def _paper_difference(task: str, size: int) -> float | None:
    sft, act = (paper_value(task, m, size, "macro F1") for m in METHODS)
    return None if sft is None or act is None else act - sft


def _confusions(evidence: Evidence) -> list[dict[str, Any]]:
    """Confusion matrices per train size, each count with its share of the row, without constant predictors."""
    reports = {(r.method, r.train_size): r for r in evidence.reports if not r.method.startswith("always ")}
    groups: dict[int | None, list[dict[str, Any]]] = {}
    for method, size in by_method(leaderboard_rows(list(reports.values()))):
        report = reports[method, size]
        lines = [
            (action, [(count, count / max(sum(counts), 1)) for count in counts])
            for action, counts in zip(report.actions, report.confusion, strict=True)
        ]
        groups.setdefault(size, []).append({"method": method, "actions": report.actions, "lines": lines})
    return [{"size": size, "matrices": matrices} for size, matrices in groups.items()]


def _breakdowns(evidence: Evidence) -> list[dict[str, Any]]:
    """Per train size: the main form of turn and trajectory level by answer type, methods side by side."""
    tables = []
    for size in evidence.sizes_evaluated:
        reports = {m: evidence.evaluated[m, size] for m in METHODS if (m, size) in evidence.evaluated}
        types = sorted({b.answer_type for r in reports.values() for b in r.breakdown})
        levels = [n for r in reports.values() for n in main_metrics(leaderboard_rows([r])) if n.startswith(LEVELS[:2])]
        columns = [(level, method) for level in dict.fromkeys(levels) for method in reports]
        lines = [(t, [_of_type(reports[method], t, level) for level, method in columns]) for t in types]
        if lines:
            tables.append(
                {
                    "size": size,
                    "methods": list(reports),
                    "levels": list(dict.fromkeys(levels)),
                    "lines": lines,
                }
            )
    return tables


def _of_type(report: EvaluationReport, answer_type: str, metric: str) -> dict[str, Any]:
    empty = Breakdown(answer_type, ())
    metrics = next((b for b in report.breakdown if b.answer_type == answer_type), empty).metrics
    found = next((m for m in metrics if m.name == metric), None)
    return {"value": found.value if found else None, "count": found.count if found else 0}


# --- figures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Image:
    """A PNG for the page; `text` says in words what it shows, `caption` stands below it."""

    source: str
    text: str
    caption: str


def _image(png: bytes, text: str, caption: str | None = None) -> Image:
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return Image(source, text, text if caption is None else caption)


def _bars(rows: Sequence[LeaderboardRow]) -> Image | None:
    figures = [r for r in rows if r.metric == "macro F1" and r.value is not None]
    if not figures:
        return None
    said = (f"{r.method} at {r.train_size} {show(r.value)} {show_interval(r.low, r.high)}".strip() for r in figures)
    text = f"Macro F1 with 95 % intervals: {'; '.join(said)}."
    return _image(macro_f1_bars(rows), text, "Macro F1 with 95 % intervals; the figures are those of the table.")


def _curves(evidence: Evidence) -> list[dict[str, Any]]:
    """The curves of each checkpoint, with what was kept."""
    shown = []
    for size in evidence.sizes:
        for method in METHODS:
            points = evidence.history(method, size)
            if not points:
                continue
            title = f"{method.upper()}, {size} conversations"
            caption = f"{title}: {_course(points)}{_kept(evidence.artifacts[f'{method}_checkpoint', size])}."
            shown.append({"size": size, "image": _image(training_curves(points, title), caption)})
    return shown


def _course(points: Sequence[TrainingPoint]) -> str:
    said = [f"{max(p.step for p in points)} steps"]
    for split in ("train", "validation"):
        losses = [p.loss for p in points if p.split == split]
        if losses:
            said.append(f"{split} loss {losses[0]:.3f} to {losses[-1]:.3f}")
    margins = [p.reward_margin for p in points if p.split == "validation" and p.reward_margin is not None]
    if margins:
        said.append(f"validation reward margin {margins[0]:.3f} to {margins[-1]:.3f}")
    return ", ".join(said)


def _kept(artifact: Artifact) -> str:
    epoch = artifact.facts.get("kept_epoch")
    return "" if epoch is None else f"; the checkpoint of epoch {epoch:g} was kept"


def _rollouts(evidence: Evidence) -> list[dict[str, Any]]:
    """What became of ACT's rollouts, per train size: a figure and its numbers."""
    shown = []
    for size in evidence.sizes:
        rollouts = evidence.rollouts(size)
        if not rollouts:
            continue
        counts = verdict_counts(rollouts)
        total = sum(counts.values(), Counter())
        verdicts = [v for v in VERDICT_COLOURS if total[v]]
        text = ", ".join(f"{v.replace('_', ' ')} {total[v]}" for v in verdicts)
        shown.append(
            {
                "size": size,
                "image": _image(rollout_verdicts(rollouts), f"Verdicts of {len(rollouts)} rollouts: {text}."),
                "verdicts": [v.replace("_", " ") for v in verdicts],
                "epochs": [(epoch, [count[v] for v in verdicts]) for epoch, count in counts.items()],
                "replaced": Counter(r.replaced for r in rollouts),
                "total": len(rollouts),
            }
        )
    return shown


def _pairs(evidence: Evidence) -> dict[str, Any]:
    """Numbers of phase 1, per train size."""
    columns = {
        "turns": "turns",
        "pairs": "pairs",
        **{f"pairs_{a.lower()}": f"{a} wins" for a in evidence.run.task.action_names},
        "identical": "dropped: loser equals winner",
        "wrong_action": "dropped: loser took another action than it was to",
        "in_context_conversations": "in-context conversations",
    }
    made = [(s, evidence.artifacts.get(("contrastive_pairs", s))) for s in evidence.sizes]
    lines = [(s, [str(a.facts.get(c, NO_VALUE)) for c in columns]) for s, a in made if a is not None]
    return {"columns": list(columns.values()), "lines": lines}


# --- trajectories -------------------------------------------------------------------------------------------


def trajectory_data(evidence: Evidence) -> dict[str, Any]:
    """The browsable table as plain values: turns once, and one row per method, train size and turn.

    Rows of one turn stand together, so that methods can be compared. `chat` alternates, the assistant first.
    """
    turns: dict[tuple[str, ...], int] = {}
    rows: list[tuple[int, int, int, list[Any]]] = []
    for (method, size), evaluated in evidence.trajectories.items():
        for row in evaluated:
            subject = (
                row.conversation_id,
                row.turn_id,
                row.request,
                row.action,
                row.reference,
                row.goal,
                row.answer_type,
                row.goal_answer_type,
            )
            turn = turns.setdefault(subject, len(turns))
            place = METHODS.index(method)
            scores = [_main_score(row, level) for level in LEVELS[:2]]
            cells = [
                place,
                size,
                turn,
                row.predicted_action,
                list(chat(row)),
                row.outcome,
                row.ended,
                *scores,
                row.truncated,
            ]
            rows.append((size, turn, place, cells))
    rows.sort(key=lambda r: r[:3])
    return {
        "methods": list(METHODS),
        "actions": list(evidence.run.task.action_names),
        "turns": [list(t) for t in turns],
        "rows": [cells for *_, cells in rows],
    }


def _main_score(row: EvaluatedTurn, level: str) -> float | None:
    return next((round(s.value, 4) for s in row.scores if s.level == level), None)


def chat(row: EvaluatedTurn) -> Iterator[str]:
    """The utterances of a trajectory, the assistant's and the user's in turn.

    The first response and the outcome are known by themselves, so a response that imitates a user's line is
    not taken apart.
    """
    middle = row.trajectory.removeprefix(f"Assistant: {row.response}")
    yield row.response
    last = None
    if row.outcome is not None and middle.endswith(f"\nAssistant: {row.outcome}"):
        middle, last = middle.removesuffix(f"\nAssistant: {row.outcome}"), row.outcome
    speaker = "User"
    while middle:
        other = "Assistant" if speaker == "User" else "User"
        text, mark, rest = middle.removeprefix(f"\n{speaker}: ").partition(f"\n{other}: ")
        yield text
        middle, speaker = mark + rest, other
    if last is not None:
        yield last


def _script_json(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}))  # noqa: S704


def _csp_hash(script: str) -> str:
    """What a content security policy calls an inline script: only the page's own may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"
