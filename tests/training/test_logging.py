"""What a running training shows: event files that TensorBoard reads, and a live file that another process follows."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from act_assets.training.history import TrainingPoint
from act_assets.training.logging import Board, LiveTail, point_scalars


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def lines(logs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (logs / "live.jsonl").read_text().splitlines()]


def test_tensorboard_reads_back_what_was_written_without_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Board(tmp_path) as board:
        board.scalars(1, {"train/loss": 0.5, "time/update": 0.25})
        board.scalars(2, {"train/loss": 0.25})

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    assert events(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5), (2, 0.25)], "time/update": [(1, 0.25)]}


def test_each_run_of_a_job_has_event_files_of_its_own_and_all_share_the_live_file(tmp_path: Path) -> None:
    for number in (1, 2):
        with Board(tmp_path, run=f"rate-{number}") as board:
            board.scalars(number, {"loss": number})
    assert events(tmp_path / "tensorboard" / "rate-2") == {"loss": [(2, 2.0)]}
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_steps_that_are_made_again_after_a_resumption_replace_the_lost_ones(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        for step in (1, 2, 3):
            board.scalars(step, {"loss": float(step)})
    with Board(tmp_path, resumed_at=3) as board:
        board.scalars(3, {"loss": 30.0})
    assert events(tmp_path / "tensorboard") == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_the_live_file_gets_a_line_every_five_seconds_and_a_last_one(tmp_path: Path) -> None:
    clock = Clock()
    board = Board(tmp_path, clock=clock)
    for step in range(1, 13):
        clock.now = float(step)
        board.scalars(step, {"loss": 1 / step})
    assert [line["step"] for line in lines(tmp_path)] == [1, 6, 11], "flushed as written"
    board.close()
    board.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 6, 11, 12]
    assert lines(tmp_path)[-1] == {"step": 12, "loss": 1 / 12}


def test_closing_says_nothing_again(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.scalars(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1


def test_a_measure_that_fell_between_two_lines_is_in_the_next(tmp_path: Path) -> None:
    clock = Clock()
    with Board(tmp_path, clock=clock) as board:
        board.scalars(1, {"train/loss": 2.0})
        board.scalars(1, {"validation/loss": 3.0})
        clock.now = 5.0
        board.scalars(2, {"train/loss": 1.0})
    assert lines(tmp_path)[-1] == {"step": 2, "train/loss": 1.0, "validation/loss": 3.0}


def test_what_is_not_a_number_is_left_out_and_does_not_leave_the_old_one(tmp_path: Path) -> None:
    with Board(tmp_path, every_s=0) as board:
        board.scalars(1, {"loss": 1.0, "norm": math.inf, "kl": None})
        board.scalars(2, {"loss": math.nan, "norm": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "norm": 2.0}]
    assert events(tmp_path / "tensorboard") == {"loss": [(1, 1.0)], "norm": [(2, 2.0)]}


def test_a_board_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Board(None) as board:
        board.scalars(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_the_live_file_is_written_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Board(tmp_path, every_s=0) as board:
        for step in (1, 2):
            board.scalars(step, {"loss": 1.0})
    assert len(lines(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()
    assert capsys.readouterr().err.count("pip install tensorboard") == 1


def test_a_full_disk_ends_the_board_and_not_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "live.jsonl").symlink_to("/dev/full")
    with Board(tmp_path, every_s=0) as board:
        for step in (1, 2, 3):
            board.scalars(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("goes on without its live figures") == 1


def test_a_folder_that_cannot_be_made_ends_the_board_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file")
    with Board(tmp_path / "logs") as board:
        board.scalars(1, {"loss": 1.0})
    assert "goes on without its live figures" in capsys.readouterr().err


def test_a_point_is_shown_as_what_was_measured_below_its_split() -> None:
    point = TrainingPoint(7, 0.5, "validation", 0.6, kl=0.0, staleness=2.0)
    assert point_scalars(point) == {"validation/loss": 0.6, "validation/kl": 0.0, "validation/staleness": 2.0}


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
