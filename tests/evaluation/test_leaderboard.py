"""The leaderboard: order, the paper's figures, and what people see of it in a terminal."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.evaluation.evaluate import EvaluationReport, Metric
from act_assets.evaluation.leaderboard import (
    LEVELS,
    PAPER_RESULTS,
    LeaderboardRow,
    by_method,
    leaderboard_rows,
    main_metrics,
    paper_value,
    show,
    show_interval,
    terminal_table,
)
from act_assets.methods.registry import TRAINED as METHODS
from act_assets.rows import read_rows, write_rows

BASELINES = ("always answer", "always clarify", "question-only logistic regression")
# Of each task: its forms, and the names of the paper's figures that stand beside ours.
TASKS = {
    "pacific": (
        ("official", "bag"),
        {
            "macro F1": "macro_f1",
            "turn official": "turn_drop_f1",
            "trajectory official": "trajectory_drop_f1",
            "post-clarification official": "post_clarification_drop_f1",
        },
    ),
    "abg_coqa": (
        ("similarity",),
        {
            "macro F1": "macro_f1",
            "turn similarity": "turn_similarity",
            "trajectory similarity": "trajectory_similarity",
        },
    ),
    "ambig_sql": (
        ("execution match",),
        {
            "accuracy": "accuracy",
            "macro F1": "macro_f1",
            "trajectory execution match": "trajectory_execution_match",
            "post-clarification execution match": "post_clarification_execution_match",
        },
    ),
}


def report(method: str, train_size: int | None = 50, task: str = "pacific") -> EvaluationReport:
    metrics = [Metric("accuracy", 0.75, 40), Metric("macro F1", 0.662, 40, 0.584, 0.741)]
    if method not in BASELINES:
        forms = TASKS[task][0]
        metrics += [Metric(f"{level} {form}", 0.5, 40) for level in LEVELS[task == "ambig_sql" : 2] for form in forms]
        metrics += [Metric(f"post-clarification {form}", None, 0) for form in forms]
    who = (method, task, train_size, 7, "laptop", "scratch [x]", "embedded", "rule", "DROP F1", "validation", "gold")
    return EvaluationReport(*who, ("CLARIFY", "ANSWER"), ((5, 5), (5, 25)), tuple(metrics))


def rows_of(*reports: EvaluationReport) -> list[LeaderboardRow]:
    return leaderboard_rows(reports, METHODS)


def test_rows_are_ordered_by_train_size_then_baselines_then_methods_then_the_report() -> None:
    reports = [report(m, s) for m in ("act", "sft", *reversed(BASELINES)) for s in (250, None, 50)]
    rows = rows_of(*reports)
    assert list(by_method(rows)) == [(m, s) for s in (None, 50, 250) for m in (*BASELINES, "sft", "act")]
    assert [r.metric for r in rows if (r.method, r.train_size) == ("act", 50)] == [m.name for m in reports[0].metrics]
    assert rows_of(*reports[::-1]) == rows


def test_a_row_carries_figures_and_provenance_and_survives_parquet(tmp_path: Path) -> None:
    rows = rows_of(report("sft"), report("sft", None))
    assert (
        LeaderboardRow(
            "sft", 50, "macro F1", 0.662, 40, 0.584, 0.741, 0.69, "Zephyr 7B-beta", 7, "laptop", "scratch [x]"
        )
        in rows
    )
    write_rows(tmp_path / "rows.parquet", rows, LeaderboardRow)
    assert read_rows(tmp_path / "rows.parquet", LeaderboardRow) == rows


@pytest.mark.parametrize(("task", "table"), [("pacific", "1"), ("abg_coqa", "2"), ("ambig_sql", "3")])
def test_the_papers_figures_are_those_of_the_tasks_table_with_zephyr(task: str, table: str) -> None:
    theirs = TASKS[task][1]
    with PAPER_RESULTS.open(encoding="utf-8", newline="") as stream:
        lines = [r for r in csv.DictReader(stream) if (r["table"], r["base_model"]) == (table, "Zephyr 7B-beta")]
    paper = {(r["approach"], r["conversations"], r["metric"]): float(r["value"]) / 100 for r in lines}
    rows = rows_of(*(report(m, s, task) for m in ("sft", "act") for s in (50, 100, 250)))
    for row in rows:
        wanted = (row.method.upper(), str(row.train_size), theirs.get(row.metric, "none"))
        assert row.paper == (pytest.approx(paper[wanted], abs=1e-12) if row.metric in theirs else None)
        assert row.paper_model == ("Zephyr 7B-beta" if row.metric in theirs else "")
    assert sum(row.paper is not None for row in rows) == 6 * len(theirs)


@pytest.mark.parametrize(
    ("task", "approach", "size", "metric", "value"),
    [
        ("pacific", "SFT", 50, "macro F1", 0.69),  # as they are printed in the paper
        ("pacific", "ACT", 250, "post-clarification official", 0.62),
        ("pacific", "SFT", 75, "macro F1", None),
        ("pacific", "SFT", None, "macro F1", None),
        ("pacific", "", 50, "macro F1", None),
        ("pacific", "SFT", 50, "turn bag", None),
        ("pacific", "SFT", 50, "accuracy", None),
        ("another", "SFT", 50, "macro F1", None),
    ],
)
def test_figures_of_the_paper(task: str, approach: str, size: int | None, metric: str, value: object) -> None:
    assert paper_value(task, approach, size, metric) == value


def test_main_metrics_take_the_first_form_of_each_level() -> None:
    baseline = ["macro F1", "accuracy"]
    content = ["turn official", "trajectory official", "post-clarification official"]
    assert main_metrics(rows_of(report("always answer"), report("sft"))) == baseline + content
    assert main_metrics(rows_of(report("always answer"))) == baseline
    assert main_metrics([]) == []


def test_figures_as_text() -> None:
    assert (show(0.6624), show(1.0), show(None)) == ("0.662", "1.000", "–")
    assert (show_interval(0.5801, 0.7399), show_interval(None, 0.7)) == ("[0.58, 0.74]", "")


@pytest.mark.parametrize("task", TASKS)
def test_the_terminal_table_holds_everything_in_80_columns(task: str) -> None:
    methods = (*BASELINES, "sft", "act")
    rows = rows_of(*(report(m, s, task) for s in (50, 250) for m in methods))
    lines = terminal_table(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    shown = [line[5:].split("  ")[0].split(" 0.")[0] for line in lines if "[0.58, 0.74]" in line]
    assert shown == [*methods, *methods], "each name stands whole on one line"
    papers = [line.split()[3:] for line in lines if line.split()[:2] == ["paper:", "Zephyr"]]
    wanted = [[r for r in figures.values() if r.paper is not None] for figures in by_method(rows).values()]
    assert [sorted(p) for p in papers] == [sorted(show(r.paper) for r in found) for found in wanted if found]
    columns = [m for m in main_metrics(rows) if m != "accuracy" or "accuracy" in TASKS[task][1]]
    sft = next(line for line in lines if line[5:8] == "sft")
    assert len(sft.replace("0.662 [0.58, 0.74]", "0.662").split()) == 1 + len(columns)


def test_the_terminal_table_of_what_is_not_there() -> None:
    assert "method" in terminal_table([])
    (line,) = [x for x in terminal_table(rows_of(report("sft", 75))).splitlines() if "sft" in x]
    assert line.split()[-1] == "–", "null"
    table = terminal_table(rows_of(report("sft", 75), report("[bold]x[/bold]", None)))
    assert "paper" not in table and "racy" not in table, "accuracy has a column where the paper reports it"
    assert "[bold]x[/bold]" in table, "a name is no markup"


def test_a_method_is_shown_as_its_row_says() -> None:
    other = replace(METHODS[0], name="other", paper_approach="")
    rows = leaderboard_rows([report("other"), report("sft"), report("act")], [METHODS[1], other])
    assert list(dict.fromkeys(r.method for r in rows)) == ["sft", "act", "other"], "what is not handed in is a baseline"
    assert {r.method for r in rows if r.paper is not None} == {"act"}
