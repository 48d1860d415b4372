"""Figures: the same bytes for the same input, at the same width, showing what there is."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

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
from act_assets.training.act import Rollout, Verdict
from act_assets.training.logging import TrainingPoint


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def share(png: bytes, colour: str) -> float:
    """The share of pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((pixels(png) == wanted).all(axis=-1).mean())


def history(rewards: bool) -> list[TrainingPoint]:
    points = []
    for step in range(1, 41):
        reward = (0.01 * step, 0.5 + step / 100) if rewards else (None, None)
        points.append(TrainingPoint(step, step / 20, "train", 3 / step, *reward))
        if step % 20 == 0:
            points.append(TrainingPoint(step, step / 20, "validation", 3.2 / step, *reward))
    return points


def rollout(epoch: int, verdict: str) -> Rollout:
    return Rollout(
        epoch=epoch,
        step=0,
        conversation_id="c",
        turn_id="t",
        action="ANSWER",
        sampled_action="ANSWER",
        ended="settled",
        trajectory="Assistant: 1",
        outcome="1",
        heuristic=1.0,
        verdict=verdict,
        replaced="none",
        chosen="1",
        rejected="2",
        sampled_tokens=2,
        version=0,
    )


def row(
    method: str, size: int, value: float | None, low: float | None = None, high: float | None = None
) -> LeaderboardRow:
    return LeaderboardRow(method, size, "macro F1", value, 40, low, high, None, "", 0, "laptop", "scratch")


BARS = [
    row("always answer", 50, 0.46, 0.45, 0.47),
    row("question-only logistic regression", 50, 0.61, 0.5, 0.7),
    row("sft", 50, 0.66, 0.58, 0.74),
    row("act", 50, 0.71, 0.62, 0.79),
]
FIGURES = {
    "sft curves": lambda: training_curves(history(False), "SFT, 50 conversations"),
    "act curves": lambda: training_curves(history(True), "ACT, 50 conversations"),
    "verdicts": lambda: rollout_verdicts([rollout(e, v) for e in (1, 2) for v in VERDICT_COLOURS]),
    "bars": lambda: macro_f1_bars(BARS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_900_pixels_wide_on_white_and_always_the_same(name: str) -> None:
    png = FIGURES[name]()
    image = pixels(png)
    assert image.shape[1] == 900
    assert (image[0] == 255).all()
    assert (image[:, 0] == 255).all()
    assert FIGURES[name]() == png


def test_nothing_is_left_behind_in_matplotlib() -> None:
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    macro_f1_bars(BARS)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_training_is_grey_and_validation_blue_and_either_may_be_missing() -> None:
    points = history(False)
    both = training_curves(points, "x")
    train = training_curves([p for p in points if p.split == "train"], "x")
    validation = training_curves([p for p in points if p.split == "validation"], "x")
    assert share(both, BLUE) > 0
    assert share(train, BLUE) == 0
    assert share(validation, BLUE) > 0


def test_a_single_point_can_be_seen() -> None:
    assert share(training_curves([TrainingPoint(5, 1.0, "validation", 0.7)], "x"), BLUE) > 0


def test_reward_panels_appear_only_with_rewards() -> None:
    # The right third of the figure holds the loss alone, or the two reward panels with their own axes.
    def vertical_axes(png: bytes) -> int:
        dark = (pixels(png) == 0x66).all(axis=-1)
        return int((dark.sum(axis=0) > 60).sum() > 1)

    assert vertical_axes(training_curves(history(False), "x")) == 0
    assert vertical_axes(training_curves(history(True), "x")) == 1


def test_kl_gets_a_panel_of_its_own_where_it_was_measured() -> None:
    points = [replace(p, kl=p.step / 10) if p.split == "train" else p for p in history(True)]
    with_kl, without = training_curves(points, "x"), training_curves(history(True), "x")
    assert pixels(with_kl).shape[0] > pixels(without).shape[0]
    assert pixels(with_kl).shape[1] == 900
    flat = training_curves([replace(p, kl=p.kl and 1.0) for p in points], "x")
    assert flat != with_kl, "the values are drawn"


def test_reward_panels_are_as_they_were_without_kl() -> None:
    assert pixels(training_curves(history(True), "x")).shape == pixels(training_curves(history(False), "x")).shape


def test_every_verdict_has_a_colour_of_its_own() -> None:
    assert set(VERDICT_COLOURS) == set(get_args(Verdict))
    assert len(set(VERDICT_COLOURS.values())) == len(VERDICT_COLOURS)


def test_verdicts_are_drawn_in_proportion() -> None:
    png = rollout_verdicts([rollout(1, "good_outcome")] * 3 + [rollout(1, "wrong_action")])
    assert share(png, GREEN) == pytest.approx(3 * share(png, VERMILION), rel=0.1)
    assert share(png, VERDICT_COLOURS["no_contrast"]) == 0


def test_verdicts_are_counted_per_epoch_in_order() -> None:
    counts = verdict_counts([rollout(2, "no_contrast"), rollout(1, "good_outcome"), rollout(1, "good_outcome")])
    assert [(e, dict(c)) for e, c in counts.items()] == [(1, {"good_outcome": 2}), (2, {"no_contrast": 1})]


def test_bars_show_the_methods_that_there_are() -> None:
    everything, without_act = macro_f1_bars(BARS), macro_f1_bars(BARS[:-1])
    assert share(everything, METHOD_COLOURS["act"]) > 0.01
    assert share(without_act, METHOD_COLOURS["act"]) == 0
    assert share(without_act, METHOD_COLOURS["sft"]) > 0.01
    assert share(everything, GREY) > 0.01


def test_the_always_answer_line_moves_with_its_value() -> None:
    low, high = (macro_f1_bars([row("always answer", 50, v), BARS[2]]) for v in (0.2, 0.9))
    only = macro_f1_bars(BARS[2:3])
    assert len({low, high, only}) == 3


def test_constant_predictors_alone_and_null_values_can_be_drawn() -> None:
    assert pixels(macro_f1_bars(BARS[:1])).shape[1] == 900
    assert macro_f1_bars([*BARS, row("act", 100, None)]) == macro_f1_bars(BARS)


def test_nothing_to_draw_is_an_error() -> None:
    for draw in (lambda: training_curves([], "x"), lambda: rollout_verdicts([]), lambda: macro_f1_bars([])):
        with pytest.raises(ValueError, match="no "):
            draw()
