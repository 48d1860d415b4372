"""The history of a training: what is taken, what is refused, what is said, and what Parquet gives back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from act_assets.rows import read_rows, write_rows
from act_assets.training.history import History, TrainingPoint
from resources.errors import TrainingError

WHOLE = TrainingPoint(4, 0.5, "train", 0.69, 0.1, 0.75, 0.02, 1.5, 5e-7, 0.25, 0.5, 1.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused_and_not_kept(loss: float) -> None:
    history = History("act", "task pacific, 8 pairs")
    with pytest.raises(TrainingError, match=r"the train loss became \w+ at step 7") as caught:
        history.point(TrainingPoint(7, 0.5, "train", loss))
    assert caught.value.where == "task pacific, 8 pairs"
    assert "learning rate" in caught.value.todo
    assert history.points == []


def test_validation_is_said_always_and_training_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    history = History("act", "", total_steps=10)
    history._shown = -math.inf
    for step in (1, 2, 3):
        history.point(TrainingPoint(step, 0.1, "train", 0.5, reward_margin=0.25))
    history.point(TrainingPoint(3, 0.1, "validation", 0.4))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "step 1/10  train loss 0.5000  reward margin +0.2500" in said[0]
    assert "step 3/10  validation loss 0.4000" in said[1]
    assert len(history.points) == 4


def test_a_point_survives_parquet_with_and_without_its_measures(tmp_path: Path) -> None:
    points = [WHOLE, TrainingPoint(4, 0.5, "validation", 0.7)]
    write_rows(tmp_path / "history.parquet", points, TrainingPoint)
    assert read_rows(tmp_path / "history.parquet", TrainingPoint) == points
    assert points[1].staleness is None
