"""The leaderboard: order, the paper's figures, and what people see of null values."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from act_assets.evaluation.evaluate import EvaluationReport, Metric
from act_assets.evaluation.leaderboard import (
    PAPER_RESULTS,
    PAPER_TABLES,
    LeaderboardRow,
    PaperTable,
    by_method,
    leaderboard_rows,
    main_metrics,
    paper_value,
    show,
    show_interval,
    terminal_table,
)
from act_assets.rows import read_rows, write_rows

FORMS = ("official", "bag")
LEVELS = ("turn", "trajectory", "post-clarification")
THEIRS = {
    "macro F1": "macro_f1",
    "turn official": "turn_drop_f1",
    "trajectory official": "trajectory_drop_f1",
    "post-clarification official": "post_clarification_drop_f1",
}


def report(method: str, train_size: int | None = 50, content: bool = True, task: str = "pacific") -> EvaluationReport:
    metrics = [Metric("accuracy", 0.75, 40), Metric("macro F1", 0.662, 40, 0.584, 0.741)]
    if content:
        metrics += [Metric(f"{level} {form}", 0.5, 40) for level in LEVELS[:2] for form in FORMS]
        metrics += [Metric(f"post-clarification {form}", None, 0) for form in FORMS]
    return EvaluationReport(
        method=method,
        task=task,
        train_size=train_size,
        seed=7,
        profile="laptop",
        policy="scratch [x]",
        simulator="embedded (embedded-rules-1)",
        classifier="rule",
        judge="DROP F1",
        side="validation",
        action_supervision="gold",
        actions=("CLARIFY", "ANSWER"),
        confusion=((5, 5), (5, 25)),
        metrics=tuple(metrics),
        breakdown=(),
    )


BASELINES = ("always answer", "always clarify", "question-only logistic regression")


def test_rows_are_ordered_by_train_size_then_baselines_sft_act_then_the_report() -> None:
    reports = [report(m, s) for m in ("act", "sft", *reversed(BASELINES)) for s in (250, None, 50)]
    rows = leaderboard_rows(reports)
    assert list(by_method(rows)) == [(m, s) for s in (None, 50, 250) for m in (*BASELINES, "sft", "act")]
    assert [r.metric for r in rows[:8]] == [m.name for m in reports[0].metrics]
    assert leaderboard_rows(reports[::-1]) == rows


def test_a_row_carries_figures_and_provenance() -> None:
    row = next(r for r in leaderboard_rows([report("sft")]) if r.metric == "macro F1")
    assert row == LeaderboardRow(
        "sft", 50, "macro F1", 0.662, 40, 0.584, 0.741, 0.69, "Zephyr 7B-beta", 7, "laptop", "scratch [x]"
    )


def test_the_papers_figures_are_those_of_table_1_with_zephyr() -> None:
    with PAPER_RESULTS.open(encoding="utf-8", newline="") as stream:
        lines = [r for r in csv.DictReader(stream) if r["table"] == "1" and r["base_model"] == "Zephyr 7B-beta"]
    compared = 0
    for row in leaderboard_rows([report(m, s) for m in ("sft", "act") for s in (50, 100, 250)]):
        if row.metric not in THEIRS:
            assert (row.paper, row.paper_model) == (None, "")
            continue
        wanted = (row.method.upper(), str(row.train_size), THEIRS[row.metric])
        (line,) = [r for r in lines if (r["approach"], r["conversations"], r["metric"]) == wanted]
        assert row.paper == pytest.approx(float(line["value"]) / 100, abs=1e-12)
        assert row.paper_model == "Zephyr 7B-beta"
        compared += 1
    assert compared == 24


def test_two_figures_as_they_are_printed_in_the_paper() -> None:
    assert paper_value("pacific", "sft", 50, "macro F1") == 0.69
    assert paper_value("pacific", "act", 250, "post-clarification official") == 0.62


@pytest.mark.parametrize("source", PAPER_TABLES, ids=lambda t: t.task)
def test_every_figure_that_a_task_is_compared_with_is_in_the_paper(source: PaperTable) -> None:
    for method in ("sft", "act"):
        for size in (50, 100, 250):
            for metric in source.metrics:
                value = paper_value(source.task, method, size, metric)
                assert value is not None and 0 < value < 1, (method, size, metric)


@pytest.mark.parametrize(
    ("task", "method", "size", "metric"),
    [
        ("pacific", "sft", 75, "macro F1"),
        ("pacific", "sft", None, "macro F1"),
        ("pacific", "always answer", 50, "macro F1"),
        ("pacific", "sft", 50, "turn bag"),
        ("pacific", "sft", 50, "accuracy"),
        ("another", "sft", 50, "macro F1"),
    ],
)
def test_what_the_paper_does_not_have_is_none(task: str, method: str, size: int | None, metric: str) -> None:
    assert paper_value(task, method, size, metric) is None


def test_rows_survive_parquet(tmp_path: Path) -> None:
    rows = leaderboard_rows([report("sft"), report("sft", None)])
    write_rows(tmp_path / "rows.parquet", rows, LeaderboardRow)
    assert read_rows(tmp_path / "rows.parquet", LeaderboardRow) == rows


def test_main_metrics_take_the_first_form_of_each_level() -> None:
    assert main_metrics(leaderboard_rows([report("always answer", content=False), report("sft")])) == [
        "macro F1",
        "accuracy",
        "turn official",
        "trajectory official",
        "post-clarification official",
    ]
    assert main_metrics(leaderboard_rows([report("always answer", content=False)])) == ["macro F1", "accuracy"]
    assert main_metrics([]) == []


def test_figures_as_text() -> None:
    assert (show(0.6624), show(1.0), show(None)) == ("0.662", "1.000", "–")
    assert (show_interval(0.5801, 0.7399), show_interval(None, 0.7)) == ("[0.58, 0.74]", "")


def printed(reports: list[EvaluationReport], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal_table(leaderboard_rows(reports)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_table_fits_80_columns_and_cuts_nothing() -> None:
    reports = [report(m, s, m not in BASELINES) for s in (50, 250) for m in (*BASELINES, "sft", "act")]
    text = printed(reports, 80)
    assert "…" not in text
    assert text.count("0.662 [0.58, 0.74]") == len(reports)
    assert text.count("paper 0.690") == 1
    assert text.count("paper 0.822") == 1
    assert "clarification" in text
    assert "Zephyr 7B-beta" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_null_is_an_en_dash_in_the_terminal_table() -> None:
    text = printed([report("sft", 75)], 120)
    (line,) = [x for x in text.splitlines() if "sft" in x]
    assert line.split()[-1] == "–"
    assert "paper" not in text


def test_accuracy_has_a_column_only_where_the_paper_reports_it() -> None:
    rows = leaderboard_rows([report("sft")])
    assert "accuracy" not in printed([report("sft")], 120)
    console = Console(width=120, file=io.StringIO())
    console.print(terminal_table([replace(r, paper=0.774, paper_model="m") for r in rows]))
    assert isinstance(console.file, io.StringIO)
    assert "accuracy" in console.file.getvalue()


def test_names_with_brackets_are_not_markup() -> None:
    assert "[bold]x[/bold]" in printed([report("[bold]x[/bold]", 75)], 120)


def test_no_rows_make_an_empty_table() -> None:
    assert "method" in printed([], 80)
