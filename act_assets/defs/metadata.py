"""What a person wants to see of an artifact in the UI: numbers that Dagster plots, samples, curves, tables."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from act_assets.conversation import ActionLabel, AmbiguousTwin, Conversation, IntentSummary, PreferencePair
from act_assets.evaluation.evaluate import EvaluatedTurn, read_report
from act_assets.evaluation.leaderboard import LeaderboardRow
from act_assets.evaluation.report.figures import rollout_verdicts, training_curves
from act_assets.pipeline.stage import StageResult
from act_assets.rows import read_rows
from act_assets.training.act import Rollout
from act_assets.training.logging import TENSORBOARD, TrainingPoint
from resources.artifacts import Artifact
from resources.errors import ActError, RoleError

SAMPLES = 3
TABLE_ROWS = 20
FAILED_ROWS = 1_000


def metadata_of(result: StageResult) -> dict[str, Any]:
    """Metadata of any stage's artifact: its facts, its identity, and what its kind has to show."""
    artifact = result.artifact
    shown: dict[str, Any] = {
        "reused": result.reused,
        "seconds": artifact.seconds,
        "path": dg.MetadataValue.path(artifact.path),
        "identity": dg.MetadataValue.json(dict(artifact.identity)),
    }
    for name, value in {**artifact.facts, **result.published}.items():
        key = name.replace(" ", "_").replace("-", "_")
        if key == "seconds" or key.startswith(("share_", "overlapped_")):
            continue  # in the table `time`; and `seconds` are the artifact's
        if key == "llm_sample":
            shown[key] = _exchanges(value)
        elif key.startswith("llm_") and result.reused:
            shown[key] = 0  # plotted over time: nothing was asked now
        elif isinstance(value, dict | list):
            shown[key] = dg.MetadataValue.json(value)
        elif value is not None:
            shown[key] = value
    shown["dagster/row_count"] = next(
        (v for k, v in artifact.facts.items() if k in ("pairs", "turns", "intents", "train_turns")), None
    )
    for name, show in _SHOWN.items():
        if artifact.file(name).exists():
            shown |= show(artifact)
    return {k: v for k, v in shown.items() if v is not None}


def failed_items(error: ActError) -> dict[str, Any]:
    """Metadata of a failure: the items without an answer, where the error knows them."""
    failures = error.failures if isinstance(error, RoleError) else ()
    if not failures:
        return {}
    rows = [(f.label, f.kind, f.message) for f in failures[:FAILED_ROWS]]
    return {"failed": len(failures), "failed_items": _table(("item", "kind", "message"), rows)}


def _exchanges(samples: list[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Some questions and answers, as they were sent and came back."""
    parts = []
    for sample in samples:
        said = [f"- **{m['role']}:** {_inline(m['content'])}" for m in sample["messages"]]
        memoized = " (from the memo)" if sample["memoized"] else ""
        head = f"**{sample['role']}**, {_inline(sample['label'])}"
        parts.append("\n".join([head, "", *said, f"- **answer{memoized}:** {_inline(sample['answer'])}"]))
    return dg.MetadataValue.md("\n\n---\n\n".join(parts))


def _labels_or_conversations(artifact: Artifact) -> dict[str, Any]:
    if artifact.key.asset == "action_labels":
        rows = read_rows(artifact.file("train.parquet"), ActionLabel)
        rows += read_rows(artifact.file("validation.parquet"), ActionLabel)
        names = sorted({name for r in rows for name in (r.gold, r.label)})
        pairs = Counter((r.gold, r.label) for r in rows)
        cells = [(gold, *(pairs[gold, label] for label in names)) for gold in names]
        return {"confusion": _table(("gold \\ label", *names), cells)}
    parts = []
    for conversation in read_rows(artifact.file("train.parquet"), Conversation)[:SAMPLES]:
        lines = [f"**Conversation {conversation.conversation_id}**"]
        for turn in conversation.turns:
            lines += [
                f"- **User:** {_inline(turn.user)}",
                f"- **Assistant** ({turn.action}): {_inline(turn.response.text)}",
            ]
        parts.append("\n".join(lines))
    return {"sample": dg.MetadataValue.md("\n\n---\n\n".join(parts))}


def _twins(artifact: Artifact) -> dict[str, Any]:
    rows = read_rows(artifact.file("twins.parquet"), AmbiguousTwin)[:TABLE_ROWS]
    cells = [(t.clear.strategy, t.clear.request, t.request, t.clarifying_question, t.clear.target) for t in rows]
    return {"sample": _table(("strategy", "clear request", "ambiguous request", "question", "target"), cells)}


def _intents(artifact: Artifact) -> dict[str, Any]:
    rows = read_rows(artifact.file("intents.parquet"), IntentSummary)[:TABLE_ROWS]
    return {"sample": _table(("conversation", "summary"), [(r.conversation_id, r.summary) for r in rows])}


def _pairs(artifact: Artifact) -> dict[str, Any]:
    rows = read_rows(artifact.file("pairs.parquet"), PreferencePair)[:TABLE_ROWS]
    cells = [(p.prompt[-1].content, p.action, p.chosen, p.rejected_action, p.rejected) for p in rows]
    return {"sample": _table(("request", "action", "winning", "rejected action", "losing"), cells)}


def _training(artifact: Artifact) -> dict[str, Any]:
    shown: dict[str, Any] = {"time": _times(artifact.facts)}
    path, events = artifact.file("history.parquet"), artifact.file("logs") / TENSORBOARD
    if path.is_file():
        shown["curves"] = _image(training_curves(read_rows(path, TrainingPoint), str(artifact.key)))
    if events.is_dir():
        shown["tensorboard"] = dg.MetadataValue.path(events)  # tensorboard --logdir PATH --host 127.0.0.1
    return shown


def _times(facts: Mapping[str, Any]) -> dg.MarkdownMetadataValue | None:
    """Where the time of a training went: its phases, and what ran beside them; None where it was not measured."""
    if "share_other" not in facts:
        return None
    rows = []
    for prefix, beside in (("share_", ""), ("overlapped_", ", beside the training")):
        shares = {k.removeprefix(prefix): v for k, v in facts.items() if k.startswith(prefix) and v}
        rows += [(f"{name}{beside}", f"{v:.1%}", f"{v * facts['seconds']:.1f}") for name, v in shares.items()]
    return _table(("phase", "share", "seconds"), [*rows, ("all", "", f"{facts['seconds']:.1f}")])


def _rollouts(artifact: Artifact) -> dict[str, Any]:
    rollouts = [r for path in sorted(artifact.file("rollouts").glob("*.parquet")) for r in read_rows(path, Rollout)]
    cells = [(r.step, r.action, r.verdict, r.trajectory, r.chosen, r.rejected) for r in rollouts[-TABLE_ROWS:]]
    return {
        "verdicts": _image(rollout_verdicts(rollouts)),
        "rollouts": _table(("step", "action", "verdict", "trajectory", "winning", "losing"), cells),
    }


def _evaluation(artifact: Artifact) -> dict[str, Any]:
    report = read_report(artifact.file("report.json"))
    figures = [
        (m.name, "-" if m.value is None else f"{m.value:.3f}", m.count, _interval(m.low, m.high))
        for m in report.metrics
    ]
    rows = read_rows(artifact.file("trajectories.parquet"), EvaluatedTurn)[:TABLE_ROWS]
    cells = [(r.request, r.action, r.predicted_action, r.trajectory, r.goal) for r in rows]
    return {
        "figures": _table(("metric", "value", "examples", "95 % interval"), figures),
        "trajectories": _table(("request", "action", "predicted", "trajectory", "goal"), cells),
    }


def _leaderboard(artifact: Artifact) -> dict[str, Any]:
    rows = [r for r in read_rows(artifact.file("leaderboard.parquet"), LeaderboardRow) if r.metric == "macro F1"]
    cells = [(r.method, r.train_size, f"{r.value:.3f}", _interval(r.low, r.high), r.paper or "-") for r in rows]
    return {"macro_f1": _table(("method", "train size", "macro F1", "95 % interval", "paper"), cells)}


# What an artifact has to show, by the file that it holds.
_SHOWN: dict[str, Callable[[Artifact], dict[str, Any]]] = {
    "twins.parquet": _twins,
    "train.parquet": _labels_or_conversations,
    "intents.parquet": _intents,
    "pairs.parquet": _pairs,
    "logs": _training,
    "rollouts": _rollouts,
    "report.json": _evaluation,
    "leaderboard.parquet": _leaderboard,
}


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _image(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(png).decode()})")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> dg.MarkdownMetadataValue:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_inline(str(cell)) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _inline(text: str) -> str:
    """Text inside Markdown: what a model wrote must not become markup."""
    flat = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("\n", " ⏎ ")
    return flat.replace("[", "\\[").replace("*", "\\*").replace("_", "\\_")
