"""Evaluation reports as one table, the paper's figures beside them.

    rows = leaderboard_rows(reports)
    Console().print(terminal_table(rows))

The paper's figures come from `paper-results.csv` (arXiv 2406.00222, tables 1-5 and A6-A14), in percent there
and as fractions here. `PAPER_TABLES` says which table a task is compared with.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from act_assets.evaluation.evaluate import EvaluationReport

if TYPE_CHECKING:
    from rich.table import Table

PAPER_RESULTS = Path(__file__).with_name("paper-results.csv")
NO_VALUE = "\N{EN DASH}"
LEVELS = ("turn", "trajectory", "post-clarification")
_TRAINED = ("sft", "act")  # every other method is a baseline and comes first
_PAPER_APPROACHES = {"sft": "SFT", "act": "ACT"}


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One figure of one method at one train size (in conversations).

    `value`, `low`, `high` and `paper` are fractions. `count` is the number of examples behind `value`, which
    is None where there were none. `paper` is the paper's figure for `paper_model`, None (and "") without one.
    """

    method: str
    train_size: int | None
    metric: str
    value: float | None
    count: int
    low: float | None
    high: float | None
    paper: float | None
    paper_model: str
    seed: int
    profile: str
    policy: str


@dataclass(frozen=True, slots=True)
class PaperTable:
    """Which table of the paper a task is compared with; `metrics` maps our names to those of the CSV file."""

    task: str
    table: str
    base_model: str
    metrics: Mapping[str, str]


PAPER_TABLES = (
    PaperTable(
        "pacific",
        "1",
        "Zephyr 7B-beta",
        {
            "macro F1": "macro_f1",
            "turn official": "turn_drop_f1",
            "trajectory official": "trajectory_drop_f1",
            "post-clarification official": "post_clarification_drop_f1",
        },
    ),
    PaperTable(
        "abg_coqa",
        "2",
        "Zephyr 7B-beta",
        {
            "macro F1": "macro_f1",
            "turn similarity": "turn_similarity",
            "trajectory similarity": "trajectory_similarity",
        },
    ),
    PaperTable(
        "ambig_sql",
        "3",
        "Zephyr 7B-beta",
        {
            "accuracy": "accuracy",
            "macro F1": "macro_f1",
            "trajectory execution match": "trajectory_execution_match",
            "post-clarification execution match": "post_clarification_execution_match",
        },
    ),
)


def paper_table(task: str) -> PaperTable | None:
    """The table a task is compared with, or None."""
    return next((t for t in PAPER_TABLES if t.task == task), None)


def paper_value(task: str, method: str, train_size: int | None, metric: str) -> float | None:
    """The paper's figure as a fraction, or None where the paper has none."""
    source = paper_table(task)
    if source is None or method not in _PAPER_APPROACHES or metric not in source.metrics:
        return None
    place = (source.table, task, source.base_model, _PAPER_APPROACHES[method], str(train_size))
    return _paper_results().get((*place, source.metrics[metric]))


@cache
def _paper_results() -> dict[tuple[str, ...], float]:
    columns = ("table", "task", "base_model", "approach", "conversations", "metric")
    with PAPER_RESULTS.open(encoding="utf-8", newline="") as stream:
        # Only table 4 tells action supervisions apart; it is not among PAPER_TABLES.
        return {
            tuple(row[c] for c in columns): round(float(row["value"]) / 100, 6)
            for row in csv.DictReader(stream)
            if row["action_supervision"] == ""
        }


def leaderboard_rows(reports: Sequence[EvaluationReport]) -> list[LeaderboardRow]:
    """All figures: by train size; baselines by name, then SFT, then ACT; metrics as in their report."""
    rows = []
    for report in sorted(reports, key=lambda r: (r.train_size or 0, _rank(r.method), r.method)):
        source = paper_table(report.task)
        for metric in report.metrics:
            paper = paper_value(report.task, report.method, report.train_size, metric.name)
            rows.append(
                LeaderboardRow(
                    method=report.method,
                    train_size=report.train_size,
                    metric=metric.name,
                    value=metric.value,
                    count=metric.count,
                    low=metric.low,
                    high=metric.high,
                    paper=paper,
                    paper_model=source.base_model if source and paper is not None else "",
                    seed=report.seed,
                    profile=report.profile,
                    policy=report.policy,
                )
            )
    return rows


def _rank(method: str) -> int:
    return _TRAINED.index(method) + 1 if method in _TRAINED else 0


def main_metrics(rows: Iterable[LeaderboardRow]) -> list[str]:
    """The metrics worth a column: macro F1, accuracy, and the main form (the first) of each level."""
    names = list(dict.fromkeys(r.metric for r in rows))
    first_forms = (next((n for n in names if n.startswith(f"{level} ")), None) for level in LEVELS)
    return [n for n in ("macro F1", "accuracy", *first_forms) if n in names]


def by_method(rows: Iterable[LeaderboardRow]) -> dict[tuple[str, int | None], dict[str, LeaderboardRow]]:
    """The figures of each (method, train size) by metric, in order."""
    grouped: dict[tuple[str, int | None], dict[str, LeaderboardRow]] = {}
    for row in rows:
        grouped.setdefault((row.method, row.train_size), {})[row.metric] = row
    return grouped


def show(value: float | None) -> str:
    """A fraction with three decimals, an en dash for None."""
    return NO_VALUE if value is None else f"{value:.3f}"


def show_interval(low: float | None, high: float | None) -> str:
    """`[0.58, 0.74]`, or nothing."""
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def terminal_table(rows: Sequence[LeaderboardRow]) -> Table:
    """One line per method and train size; under a figure the paper's, where it has one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Accuracy has a column where the paper reports it; 80 characters hold no more.
    compared = {r.metric for r in rows if r.paper is not None}
    metrics = [m for m in main_metrics(rows) if m != "accuracy" or m in compared]
    models = " and ".join(dict.fromkeys(r.paper_model for r in rows if r.paper_model))
    caption = "size: conversations; [ ]: 95 % interval" + (f"; paper: {models}" if models else "")
    # Text throughout: a name with brackets is not markup.
    table = Table(
        caption=Text(caption),
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("size", justify="right")
    table.add_column("method", min_width=13)
    for metric in metrics:
        heading = metric.replace("-", "-\n").replace(" ", "\n") if metric != "macro F1" else metric
        table.add_column(Text(heading), justify="right", no_wrap=True)
    sizes: list[int | None] = []
    for (method, size), figures in by_method(rows).items():
        if sizes and size != sizes[-1]:
            table.add_section()
        shown = "" if size in sizes else NO_VALUE if size is None else str(size)
        sizes.append(size)
        table.add_row(shown, Text(method), *(Text(_cell(figures.get(metric))) for metric in metrics))
    return table


def _cell(row: LeaderboardRow | None) -> str:
    if row is None:
        return NO_VALUE
    figure = f"{show(row.value)} {show_interval(row.low, row.high)}".rstrip()
    return figure if row.paper is None else f"{figure}\npaper {row.paper:.3f}"
