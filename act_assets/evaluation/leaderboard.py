"""Evaluation reports as one table, the paper's figures beside them.

    rows = leaderboard_rows(reports, METHODS)
    print(terminal_table(rows))

The paper's figures come from `paper-results.csv` (arXiv 2406.00222, tables 1-5 and A6-A14), in percent
there and as fractions here. `PAPER_TABLES` says which table a task is compared with.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from act_assets.evaluation.evaluate import EvaluationReport
from act_assets.profile import Profile

PAPER_RESULTS = Path(__file__).with_name("paper-results.csv")
NO_VALUE = "\N{EN DASH}"
LEVELS = ("turn", "trajectory", "post-clarification")


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A trained method as leaderboard and report show it; every other method is a baseline."""

    name: str
    title: str
    full_name: str
    paper_approach: str = ""  # its name in `paper-results.csv`; empty where the paper has no figures of it
    starts_from: str = ""  # `base_policy`, or the method whose checkpoint it trains further and is compared with
    rollout_epochs: Callable[[Profile], int] | None = None  # how often a training turn is simulated, at most

    @property
    def checkpoint(self) -> str:
        """The asset of its model."""
        return f"{self.name}_checkpoint"

    @property
    def evaluation(self) -> str:
        """The asset of its figures."""
        return f"evaluation_{self.name}"


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """One figure of one method at one train size (in conversations).

    `value`, `low`, `high` and `paper` are fractions. `count` is the number of examples behind `value`,
    which is None where there were none. `paper` is the paper's figure for `paper_model`, None (and "")
    without one.
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
    """The table of the paper that a task is compared with, and what it calls the task's main form."""

    number: str
    form: str
    paper_form: str
    base_model: str = "Zephyr 7B-beta"


PAPER_TABLES = {
    "pacific": PaperTable("1", "official", "drop_f1"),
    "abg_coqa": PaperTable("2", "similarity", "similarity"),
    "ambig_sql": PaperTable("3", "execution match", "execution_match"),
}


def paper_value(task: str, approach: str, train_size: int | None, metric: str) -> float | None:
    """The paper's figure as a fraction, or None where the paper has none."""
    source = PAPER_TABLES.get(task)
    if source is None:
        return None
    column = metric.replace(source.form, source.paper_form).lower().replace("-", "_").replace(" ", "_")
    return _paper_results().get((source.number, task, source.base_model, approach, str(train_size), column))


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


def in_order(reports: Iterable[EvaluationReport], methods: Sequence[MethodRow]) -> list[EvaluationReport]:
    """By train size; baselines by name, then the methods in their order."""
    names = [m.name for m in methods]
    rank = lambda name: names.index(name) if name in names else -1  # noqa: E731
    return sorted(reports, key=lambda r: (r.train_size or 0, rank(r.method), r.method))


def leaderboard_rows(reports: Iterable[EvaluationReport], methods: Sequence[MethodRow]) -> list[LeaderboardRow]:
    """All figures of the reports `in_order`; metrics as in their report."""
    approaches = {m.name: m.paper_approach for m in methods}
    rows = []
    for report in in_order(reports, methods):
        for metric in report.metrics:
            paper = paper_value(report.task, approaches.get(report.method, ""), report.train_size, metric.name)
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
                    paper_model="" if paper is None else PAPER_TABLES[report.task].base_model,
                    seed=report.seed,
                    profile=report.profile,
                    policy=report.policy,
                )
            )
    return rows


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


# In pieces, so that 80 columns hold a method's whole name beside the figures.
_HEADINGS = {
    "macro": "macro F1",
    "accuracy": "accu-\nracy",
    "turn": "turn",
    "trajectory": "trajec-\ntory",
    "post-clarification": "post-\nclarifi-\ncation",
}


def terminal_table(rows: Sequence[LeaderboardRow]) -> str:
    """One line per method and train size, and the paper's figures below it where it has any.

    80 columns hold it for every task that comes with the package.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Accuracy has a column where the paper reports it; 80 columns hold no more.
    compared = {r.metric for r in rows if r.paper is not None}
    metrics = [m for m in main_metrics(rows) if m != "accuracy" or m in compared]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("size", justify="right")
    table.add_column("method")
    forms: dict[str, list[str]] = {}
    for metric in metrics:
        level, _, form = metric.partition(" ")
        table.add_column(_HEADINGS[level])
        if level in LEVELS:
            forms.setdefault(form, []).append(level)
    sizes: list[int | None] = []
    for (method, size), figures in by_method(rows).items():
        if sizes and size != sizes[-1]:
            table.add_section()
        shown = "" if size in sizes else NO_VALUE if size is None else str(size)
        sizes.append(size)
        found = [figures.get(m) for m in metrics]
        cells = [NO_VALUE if r is None else f"{show(r.value)} {show_interval(r.low, r.high)}".rstrip() for r in found]
        table.add_row(shown, Text(method), *map(Text, cells))  # Text: a name with brackets is not markup
        papers = ["" if r is None or r.paper is None else show(r.paper) for r in found]
        if any(papers):
            models = dict.fromkeys(r.paper_model for r in found if r and r.paper_model)
            table.add_row("", Text(f"  paper: {' and '.join(models)}"), *papers)
    console = Console(width=1000, color_system=None)
    with console.capture() as printed:
        console.print(table)
    notes = ["size: conversations; [ ]: 95 % interval", *(f"{', '.join(levels)}: {f}" for f, levels in forms.items())]
    return "\n".join(line.rstrip() for line in (*printed.get().splitlines(), *notes))
