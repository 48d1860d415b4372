"""The report: one static page that needs nothing but a browser.

    write_html(Evidence(task, profile, seed, train_sizes, artifacts, methods), path)

Everything on it comes from the artifacts of one run. Parts that are not there yet are named on the
page, with the asset that makes them. The page holds no times and no dates: the same artifacts give the
same bytes. Results are read from the evaluations themselves, so that the table and the trajectories
below it always agree.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from act_assets.evaluation.leaderboard import (
    LEVELS,
    NO_VALUE,
    PAPER_TABLES,
    by_method,
    leaderboard_rows,
    main_metrics,
    show,
    show_interval,
)
from act_assets.evaluation.report.evidence import Evidence, compare, missing_parts
from act_assets.evaluation.report.figures import (
    VERDICT_COLOURS,
    macro_f1_bars,
    rollout_verdicts,
    training_curves,
    verdict_counts,
)
from act_assets.roles.build import describe, describe_labels


def write_html(evidence: Evidence, path: Path) -> dict[str, Any]:
    """Writes the page. Returns how many methods and trajectories are on it. Raises ValueError for NaN."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    methods = {m.name: m for m in evidence.methods}
    environment.filters |= {
        "show": show,
        # What a content security policy calls an inline script: only the page's own may run.
        "csp_hash": lambda script: f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        "titled": lambda name: methods[name].title if name in methods else name,
    }
    said = " and ".join(f"{m.full_name} ({m.title})" for m in evidence.methods)
    rows = leaderboard_rows(evidence.reports, evidence.methods)
    named = [r for r in evidence.reports if not r.method.startswith("always ")]
    count = sum(map(len, evidence.trajectories.values()))
    data = json.dumps(trajectory_data(evidence), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    bars = None
    if drawn := [r for r in rows if r.metric == "macro F1" and r.value is not None]:
        words = [f"{r.method} at {r.train_size} {show(r.value)} {show_interval(r.low, r.high)}".strip() for r in drawn]
        bars = Image(
            macro_f1_bars(rows, evidence.methods),
            f"Macro F1 with 95 % intervals: {'; '.join(words)}.",
            "Macro F1 with 95 % intervals; the figures are those of the table.",
        )
    text = environment.get_template("report.html.j2").render(
        task=evidence.task.name,
        title=evidence.task.title,
        subtitle=f"{said[:1].upper()}{said[1:]}; profile {evidence.profile.name}, seed {evidence.seed}",
        methods=methods,
        settings=_settings(evidence),
        remarks=_remarks(evidence),
        missing=missing_parts(evidence),
        paper=PAPER_TABLES.get(evidence.task.name),
        compared={r.metric for r in rows if r.paper is not None},
        metric_name=evidence.task.judge.metric_name,
        metrics=main_metrics(rows),
        results=groupby(by_method(rows).items(), key=lambda item: item[0][1]),
        figures=rows,
        bars=bars,
        comparisons=[
            (start, m, [compare(evidence, start, m, size) for size in evidence.sizes_evaluated])
            for m in evidence.methods
            for start in evidence.methods
            if m.starts_from == start.name
        ],
        notes=[(method, size, "; ".join(r.notes)) for (method, size), r in evidence.evaluated.items() if r.notes],
        confusions=[(size, list(group)) for size, group in groupby(named, key=lambda r: r.train_size)],
        breakdowns=_breakdowns(evidence),
        curves=_curves(evidence),
        rollouts=_rollouts(evidence),
        pairs=_pairs(evidence),
        trajectory_count=count,
        # JSON for a script element: nothing in it can end the element.
        data=Markup(data.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})),  # noqa: S704
    )
    path.write_bytes(text.encode("utf-8"))
    return {"methods": len(by_method(rows)), "trajectories": count}


def _settings(evidence: Evidence) -> list[tuple[str, str]]:
    task, profile, roles = evidence.task, evidence.profile, evidence.profile.roles
    reports = evidence.evaluated.values()
    sizes = ", ".join(map(str, evidence.sizes_evaluated))
    labels = describe_labels(profile)
    # How much was evaluated, each different amount once.
    counted = [
        f"{len({r.prompt_id for r in rows})} turns of {len({r.conversation_id for r in rows})} conversations of the "
        f"{evidence.evaluated[place].side} side"
        for place, rows in evidence.trajectories.items()
    ] or [f"{r.metrics[0].count} turns of the {r.side} side" for r in evidence.reports if r.metrics]
    return [
        ("Task", f"{task.name}, actions {', '.join(task.action_names)}"),
        ("Profile", profile.name),
        ("Policy", "; ".join(dict.fromkeys(r.policy for r in reports)) or profile.policy.model),
        ("Seed", f"{evidence.seed}: one training run per method and train size"),
        ("Train sizes", f"{sizes} (conversations)" if sizes else "none evaluated yet"),
        ("Evaluated on", "; ".join(dict.fromkeys(counted)) or "nothing yet"),
        ("Scored by", "; ".join(dict.fromkeys(r.judge for r in reports)) or "nothing yet"),
        ("Generator (M)", describe(roles.generator)),
        ("Action supervision", profile.action_supervision + ("" if labels == "gold" else f": {labels}")),
        ("Action classifier (A)", describe(roles.classifier.llm, roles.classifier.source)),
        ("Intent summaries", describe(roles.intent) if task.asks("intent") else "none: U is told the goal"),
        ("User simulator (U)", describe(roles.simulator)),
        *([("Ambiguous requests by", describe(roles.played()["perturbation"]))] if task.twins else []),
        ("Most clarifications", f"{profile.act.max_clarifications} per trajectory"),
    ]


def _remarks(evidence: Evidence) -> list[str]:
    """What a reader has to know before the figures."""
    task, profile, roles, remarks = evidence.task, evidence.profile, evidence.profile.roles, []
    embedded = any(r.provider == "embedded" for name, r in roles.played().items() if task.asks(name))
    if embedded:
        remarks.append("The embedded provider is rule-based: it follows fixed rules and is not a language model.")
    if profile.policy.scratch is not None:
        remarks.append("The policy is a small model that was built from scratch, without pretrained weights.")
    if embedded or profile.policy.scratch is not None or profile.name == "laptop":
        remarks.append(
            f"Figures of the profile {profile.name} say nothing about the paper's, which stand beside them "
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
    remarks += [
        f"{method} at {size} was evaluated with the {role} {getattr(report, role)}, the profile now names "
        f"{name}: materialize evaluation_{method} for {task.name}|{size} again."
        for (method, size), report in evidence.evaluated.items()
        for role, name in named.items()
        if getattr(report, role) != name
    ]
    return remarks


def _breakdowns(evidence: Evidence) -> list[dict[str, Any]]:
    """Per train size: the main form of turn and trajectory level by answer type, methods side by side."""
    tables = []
    for size in evidence.sizes_evaluated:
        reports = [r for (_, s), r in evidence.evaluated.items() if s == size]
        rows = leaderboard_rows(reports, evidence.methods)
        found = {(r.method, b.answer_type, m.name): m for r in reports for b in r.breakdown for m in b.metrics}
        types = sorted({b.answer_type for r in reports for b in r.breakdown})
        methods = [r.method for r in reports]
        levels = [n for n in main_metrics(rows) if n.startswith(LEVELS[:2])]
        lines = [(t, [found.get((m, t, level)) for level in levels for m in methods]) for t in types]
        if lines:
            tables.append({"size": size, "methods": methods, "levels": levels, "lines": lines})
    return tables


@dataclass(frozen=True, slots=True)
class Image:
    """A PNG for the page; `text` says in words what it shows, `caption` stands below it."""

    png: bytes
    text: str
    caption: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


def _curves(evidence: Evidence) -> list[Image]:
    """The curves of each checkpoint, with what was kept."""
    shown = []
    for size in evidence.sizes:
        for method in evidence.methods:
            points = evidence.history(method, size)
            if not points:
                continue
            title = f"{method.title}, {size} conversations"
            epoch = evidence.artifacts[method.checkpoint, size].facts.get("kept_epoch")
            kept = "" if epoch is None else f"; the checkpoint of epoch {epoch:g} was kept"
            said = [f"{max(p.step for p in points)} steps"]
            for split in ("train", "validation"):
                losses = [p.loss for p in points if p.split == split]
                if losses:
                    said.append(f"{split} loss {losses[0]:.3f} to {losses[-1]:.3f}")
            margins = [p.reward_margin for p in points if p.split == "validation" and p.reward_margin is not None]
            if margins:
                said.append(f"validation reward margin {margins[0]:.3f} to {margins[-1]:.3f}")
            text = f"{title}: {', '.join(said)}{kept}."
            shown.append(Image(training_curves(points, title), text, text))
    return shown


def _rollouts(evidence: Evidence) -> list[dict[str, Any]]:
    """What became of the rollouts, per method and train size: a figure and its numbers."""
    shown = []
    for method, size in ((m, s) for m in evidence.methods if m.rollout_epochs for s in evidence.sizes):
        rollouts = evidence.rollouts(method, size)
        if not rollouts:
            continue
        counts = verdict_counts(rollouts)
        total = sum(counts.values(), Counter())
        verdicts = [v for v in VERDICT_COLOURS if total[v]]
        text = ", ".join(f"{v.replace('_', ' ')} {total[v]}" for v in verdicts)
        text = f"Verdicts of {len(rollouts)} rollouts: {text}."
        shown.append(
            {
                "title": f"{method.title}, {size} conversations",
                "image": Image(rollout_verdicts(rollouts), text, text),
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
        **{f"pairs_{a.lower()}": f"{a} wins" for a in evidence.task.action_names},
        "identical": "dropped: loser equals winner",
        "wrong_action": "dropped: loser took another action than it was to",
        "in_context_conversations": "in-context conversations",
    }
    made = [(s, evidence.artifacts.get(("contrastive_pairs", s))) for s in evidence.sizes]
    lines = [(s, [str(a.facts.get(c, NO_VALUE)) for c in columns]) for s, a in made if a is not None]
    return {"columns": list(columns.values()), "lines": lines}


def trajectory_data(evidence: Evidence) -> dict[str, Any]:
    """The browsable table as plain values: turns once, and one row per method, train size and turn.

    Rows of one turn stand together, so that methods can be compared. What was said alternates, the
    assistant first.
    """
    names = [m.name for m in evidence.methods]
    turns: dict[tuple[str, ...], int] = {}
    rows: list[tuple[Any, ...]] = []
    for (method, size), evaluated in evidence.trajectories.items():
        for row in evaluated:
            subject = (row.conversation_id, row.turn_id, row.request, row.action, row.reference, row.goal)
            turn = turns.setdefault((*subject, row.answer_type, row.goal_answer_type), len(turns))
            said = [u.text for u in row.utterances]
            main = {s.level: round(s.value, 4) for s in reversed(row.scores)}  # the first form of a level
            ending = (row.outcome, row.ended, *map(main.get, LEVELS[:2]), row.truncated)
            rows.append((names.index(method), size, turn, row.predicted_action, said, *ending))
    rows.sort(key=lambda r: (r[1], r[2], r[0]))
    return {
        "methods": [m.title for m in evidence.methods],
        "actions": list(evidence.task.action_names),
        "turns": list(turns),
        "rows": rows,
    }
