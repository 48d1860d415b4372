"""What a running training says: its curve, TensorBoard's files, the live file, and a printed line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from act_assets.rows import read_rows, write_rows
from act_assets.training.logging import LiveTail, TrainingLog, TrainingPoint
from resources.errors import TrainingError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def train(step: int, loss: float, **measures: Any) -> TrainingPoint:
    return TrainingPoint(step, 0.1, "train", loss, **measures)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def lines(logs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (logs / "live.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused_and_not_kept(loss: float) -> None:
    log = TrainingLog("act", "task pacific, 8 pairs")
    with pytest.raises(TrainingError) as caught:
        log.point(train(7, loss))
    assert caught.value.where == "task pacific, 8 pairs"
    assert log.points == []


def test_validation_is_printed_always_and_training_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog("act", "", total_steps=10)
    for step in (1, 2, 3):
        log.point(train(step, 0.5, reward_margin=0.25))
    log.point(TrainingPoint(3, 0.1, "validation", 0.4))
    first, last = capsys.readouterr().err.splitlines()
    assert "step 1/10  train loss 0.5000  reward margin +0.2500" in first
    assert "step 3/10  validation loss 0.4000" in last
    assert len(log.points) == 4


def test_a_point_survives_parquet_and_is_shown_as_what_was_measured_below_its_split(tmp_path: Path) -> None:
    whole = TrainingPoint(4, 0.5, "train", 0.69, 0.1, 0.75, 0.02, 1.5, 5e-7, 0.25, 0.5, 1.0)
    points = [whole, TrainingPoint(7, 0.5, "validation", 0.6, kl=0.0, staleness=2.0)]
    write_rows(tmp_path / "history.parquet", points, TrainingPoint)
    assert read_rows(tmp_path / "history.parquet", TrainingPoint) == points
    assert points[1].scalars == {"validation/loss": 0.6, "validation/kl": 0.0, "validation/staleness": 2.0}


def test_tensorboard_reads_back_what_was_written_without_unpickling_each_run_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        with TrainingLog("sft", "", tmp_path, run=f"rate-{number}") as log:
            log.point(train(1, 0.5), {"time/update": 0.25})
            log.point(train(2, 0.25 * number))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    for number in (1, 2):
        expected = {"train/loss": [(1, 0.5), (2, 0.25 * number)], "time/update": [(1, 0.25)]}
        assert events(tmp_path / "tensorboard" / f"rate-{number}") == expected
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 1, 2], "one live file for all"


def test_the_points_of_a_state_come_back_into_curve_and_event_files(tmp_path: Path) -> None:
    with TrainingLog("act", "", tmp_path) as log:
        log.replay([{"step": 1, "epoch": 0.1, "split": "train", "loss": 0.5}])
        log.point(train(2, 0.25))
    assert log.points == [train(1, 0.5), train(2, 0.25)]
    assert events(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5), (2, 0.25)]}


def test_the_live_file_gets_a_line_every_five_seconds_and_a_last_one(tmp_path: Path, clock: Clock) -> None:
    log = TrainingLog("act", "", tmp_path, clock=clock)
    for step in range(1, 13):
        clock.now = float(step)
        log.point(train(step, 1 / step))
    log.point(TrainingPoint(12, 0.1, "validation", 3.0))
    assert [line["step"] for line in lines(tmp_path)] == [1, 6, 11], "flushed as written"
    log.close()
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 6, 11, 12]
    assert lines(tmp_path)[-1] == {"step": 12, "train/loss": 1 / 12, "validation/loss": 3.0}


def test_what_is_not_a_number_is_left_out_and_does_not_leave_the_old_one(tmp_path: Path, clock: Clock) -> None:
    with TrainingLog("act", "", tmp_path, clock=clock) as log:
        log.point(train(1, 0.5), {"a": 1.0, "norm": math.inf, "kl": None})
        clock.now = 5.0
        log.point(train(2, 0.5), {"a": math.nan, "norm": 2.0})
    assert lines(tmp_path) == [{"step": 1, "train/loss": 0.5, "a": 1.0}, {"step": 2, "train/loss": 0.5, "norm": 2.0}]
    assert events(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5), (2, 0.5)], "a": [(1, 1.0)], "norm": [(2, 2.0)]}


def test_without_tensorboard_the_live_file_is_written_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TrainingLog("act", "", tmp_path) as log:
        log.point(train(1, 0.5))
    assert len(lines(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()
    assert capsys.readouterr().err.count("pip install tensorboard") == 1


@pytest.mark.parametrize("broken", ["a full disk", "no folder"])
def test_a_disk_that_fails_ends_the_files_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    logs = tmp_path / "logs"
    if broken == "no folder":
        logs.write_text("a file")
    else:
        logs.mkdir()
        (logs / "live.jsonl").symlink_to("/dev/full")
    with TrainingLog("act", "", logs) as log:
        for step in (1, 2, 3):
            log.point(train(step, 1.0))
    assert len(log.points) == 3
    assert capsys.readouterr().err.count("without its live figures") == 1


def test_a_tail_gives_the_newest_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    tail = LiveTail(path)
    assert tail.newest() is None, "not there yet"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.5, "note": "no number"}\n{"step"')
    assert tail.newest() == {"step": 2, "loss": 0.5}
    assert tail.newest() is None
    with path.open("a") as stream:
        stream.write(": 3}\n")
    assert tail.newest() == {"step": 3}
