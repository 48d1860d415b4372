"""Figures: the same bytes for the same input, at the same width, showing what there is."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import get_args

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from act_assets.evaluation.leaderboard import LeaderboardRow
from act_assets.evaluation.report.figures import (
    BLUE,
    GREEN,
    GREY,
    METHOD_COLOURS,
    VERDICT_COLOURS,
    VERMILION,
    macro_f1_bars,
    rollout_verdicts,
    training_curves,
    verdict_counts,
)
from act_assets.methods.registry import TRAINED as METHODS
from act_assets.training.act import Rollout, Verdict
from act_assets.training.logging import TrainingPoint

pytestmark = pytest.mark.integration


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def share(png: bytes, colour: str) -> float:
    """The share of pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((pixels(png) == wanted).all(axis=-1).mean())


def history(rewards: bool, kl: float | None = None) -> list[TrainingPoint]:
    points = []
    for step in range(1, 41):
        reward = (0.01 * step, 0.5 + step / 100) if rewards else (None, None)
        points.append(TrainingPoint(step, step / 20, "train", 3 / step, *reward, kl=kl and kl * step))
        if step % 20 == 0:
            points.append(TrainingPoint(step, step / 20, "validation", 3.2 / step, *reward))
    return points


def rollout(epoch: int, verdict: str) -> Rollout:
    return Rollout(epoch, 0, 0, "c", "t", "ANSWER", "ANSWER", "settled", "", "1", 1.0, verdict, "none", "1", "2", 2)


def row(method: str, value: float | None, low: float | None = None, high: float | None = None) -> LeaderboardRow:
    return LeaderboardRow(method, 50, "macro F1", value, 40, low, high, None, "", 0, "laptop", "scratch")


BARS = [
    row("always answer", 0.46, 0.45, 0.47),
    row("question-only logistic regression", 0.61, 0.5, 0.7),
    row("sft", 0.66, 0.58, 0.74),
    row("act", 0.71, 0.62, 0.79),
]
FIGURES = {
    "sft curves": lambda: training_curves(history(False), "SFT, 50 conversations"),
    "act curves": lambda: training_curves(history(True), "ACT, 50 conversations"),
    "verdicts": lambda: rollout_verdicts([rollout(e, v) for e in (1, 2) for v in VERDICT_COLOURS]),
    "bars": lambda: macro_f1_bars(BARS, METHODS),
    "one constant predictor": lambda: macro_f1_bars(BARS[:1], METHODS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_900_pixels_wide_on_white_always_the_same_and_leaves_nothing_behind(name: str) -> None:
    before, pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    png = FIGURES[name]()
    image = pixels(png)
    assert image.shape[1] == 900
    assert (image[0] == 255).all()
    assert (image[:, 0] == 255).all()
    assert FIGURES[name]() == png
    assert (dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules) == (before, pyplot)


def test_nothing_to_draw_is_an_error() -> None:
    for draw in (lambda: training_curves([], ""), lambda: rollout_verdicts([]), lambda: macro_f1_bars([], METHODS)):
        with pytest.raises(ValueError, match="no "):
            draw()


@pytest.mark.parametrize(
    ("points", "blue"),
    [
        (history(False), True),
        ([p for p in history(False) if p.split == "train"], False),
        ([p for p in history(False) if p.split == "validation"], True),
        ([TrainingPoint(5, 1.0, "validation", 0.7)], True),  # a single point can be seen
    ],
)
def test_validation_is_blue_and_either_split_may_be_missing(points: list[TrainingPoint], blue: bool) -> None:
    assert (share(training_curves(points, "x"), BLUE) > 0) == blue


def test_what_was_measured_gets_a_panel_of_its_own() -> None:
    def vertical_axes(png: bytes) -> bool:
        """Whether the right part of the figure has panels with their own axes."""
        dark = (pixels(png) == 0x66).all(axis=-1)
        return int((dark.sum(axis=0) > 60).sum()) > 1

    loss, rewards, kl = (training_curves(h, "x") for h in (history(False), history(True), history(True, kl=0.1)))
    assert [vertical_axes(png) for png in (loss, rewards)] == [False, True]
    assert pixels(loss).shape == pixels(rewards).shape
    assert pixels(kl).shape[0] > pixels(rewards).shape[0]
    assert training_curves([replace(p, kl=p.kl and 1.0) for p in history(True, kl=0.1)], "x") != kl


def test_verdicts_have_colours_of_their_own_and_are_drawn_in_proportion() -> None:
    assert set(VERDICT_COLOURS) == set(get_args(Verdict))
    assert len(set(VERDICT_COLOURS.values())) == len(VERDICT_COLOURS)
    png = rollout_verdicts([rollout(1, "good_outcome")] * 3 + [rollout(1, "wrong_action")])
    assert share(png, GREEN) == pytest.approx(3 * share(png, VERMILION), rel=0.1)
    assert share(png, VERDICT_COLOURS["no_contrast"]) == 0


def test_verdicts_are_counted_per_epoch_in_order() -> None:
    counts = verdict_counts([rollout(2, "no_contrast"), rollout(1, "good_outcome"), rollout(1, "good_outcome")])
    assert [(e, dict(c)) for e, c in counts.items()] == [(1, {"good_outcome": 2}), (2, {"no_contrast": 1})]


def test_bars_show_the_methods_that_there_are() -> None:
    everything, without_act = macro_f1_bars(BARS, METHODS), macro_f1_bars(BARS[:-1], METHODS)
    assert all(share(everything, colour) > 0.01 for colour in (GREY, *METHOD_COLOURS[:2]))
    assert share(without_act, METHOD_COLOURS[0]) > 0.01
    assert share(without_act, METHOD_COLOURS[1]) == 0
    assert macro_f1_bars([*BARS, replace(BARS[-1], train_size=100, value=None)], METHODS) == everything
    low, high = (macro_f1_bars([row("always answer", v), BARS[2]], METHODS) for v in (0.2, 0.9))
    assert len({low, high, macro_f1_bars(BARS[2:3], METHODS)}) == 3, "the line of a constant moves with its value"
