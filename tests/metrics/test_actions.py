from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from act_assets.metrics.actions import (
    Interval,
    accuracy,
    bootstrap_macro_f1,
    confusion,
    macro_f1,
    paired_bootstrap_macro_f1_difference,
)

TWO = ("CLARIFY", "ANSWER")
THREE = ("ask", "tell", "refuse")

GOLD = ["ask", "ask", "ask", "tell", "tell", "refuse"]
PREDICTED = ["ask", "ask", "tell", "tell", "refuse", "refuse"]


def test_confusion_has_gold_rows_and_predicted_columns_in_the_order_of_the_actions() -> None:
    assert confusion(GOLD, PREDICTED, THREE) == ((2, 1, 0), (0, 1, 1), (0, 0, 1))
    assert confusion(GOLD, PREDICTED, THREE[::-1]) == ((1, 0, 0), (1, 1, 0), (0, 1, 2))
    assert type(confusion(GOLD, PREDICTED, THREE)[0][0]) is int


def test_accuracy_is_the_share_of_equal_labels() -> None:
    assert accuracy(GOLD, PREDICTED) == 4 / 6
    assert accuracy(["x"], ["y"]) == 0.0


def test_macro_f1_averages_the_actions_without_weights() -> None:
    # ask: precision 2/2, recall 2/3; tell: 1/2, 1/2; refuse: 1/2, 1/1
    assert macro_f1(GOLD, PREDICTED, THREE) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3, abs=1e-15)
    assert type(macro_f1(GOLD, PREDICTED, THREE)) is float


@pytest.mark.parametrize(
    ("gold", "predicted", "actions", "expected"),
    [
        (["ANSWER", "CLARIFY"], ["ANSWER", "CLARIFY"], TWO, 1.0),
        (["ANSWER", "CLARIFY"], ["CLARIFY", "ANSWER"], TWO, 0.0),
        (["ANSWER", "ANSWER"], ["ANSWER", "ANSWER"], TWO, 0.5),  # CLARIFY on neither side counts as 0
        (["ANSWER", "CLARIFY"], ["ANSWER", "ANSWER"], TWO, 1 / 3),  # CLARIFY never predicted
        (["ask", "tell"], ["ask", "tell"], THREE, 2 / 3),
        (["ask"], ["tell"], THREE, 0.0),
    ],
)
def test_macro_f1_counts_every_action_of_the_set(
    gold: Sequence[str], predicted: Sequence[str], actions: Sequence[str], expected: float
) -> None:
    assert macro_f1(gold, predicted, actions) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: accuracy(["x"], ["x", "y"]), "gold has 1, predicted has 2"),
        (lambda: accuracy([], []), "gold has 0"),
        (lambda: macro_f1([], [], TWO), "gold has 0"),
        (lambda: confusion(["ANSWER", "ANSWER"], ["ANSWER"], TWO), "gold has 2, predicted has 1"),
        (lambda: confusion(["b", "ANSWER"], ["ANSWER", "a"], TWO), "'a', 'b'"),
        (lambda: macro_f1(["ANSWER"], ["ANSWER"], ["ANSWER"]), "two different"),
        (lambda: macro_f1(["ANSWER"], ["ANSWER"], ["ANSWER", "ANSWER"]), "two different"),
        (lambda: bootstrap_macro_f1(["ANSWER"] * 2, ["ANSWER"] * 2, ["c"], TWO, seed=0), "groups has 1"),
        (lambda: bootstrap_macro_f1([], [], [], TWO, seed=0), "groups has 0"),
        (lambda: bootstrap_macro_f1(["ANSWER"], ["ANSWER"], ["c"], TWO, seed=0, samples=0), "samples"),
        (lambda: bootstrap_macro_f1(["ANSWER"], ["ANSWER"], ["c"], TWO, seed=0, level=95), "level"),
    ],
)
def test_mistakes_say_what_is_wrong(mistake: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mistake()


def turns(count: int, right: float, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Gold actions, predictions (right at least that often) and conversations of three to eight turns."""
    source = random.Random(seed)
    gold: list[str] = []
    groups: list[str] = []
    while len(gold) < count:
        conversation = f"c{len(gold)}"
        for _ in range(min(source.randint(3, 8), count - len(gold))):
            gold.append(source.choice(THREE))
            groups.append(conversation)
    predicted = [g if source.random() < right else source.choice(THREE) for g in gold]
    return gold, predicted, groups


def test_bootstrap_agrees_with_resampling_the_turns_themselves() -> None:
    gold, predicted, groups = turns(250, 0.7, seed=1)
    members = {group: [i for i, g in enumerate(groups) if g == group] for group in groups}
    names = list(members)
    source = np.random.default_rng(7)
    values = []
    for _ in range(1000):
        drawn = [i for n in source.integers(len(names), size=len(names)) for i in members[names[n]]]
        values.append(macro_f1([gold[i] for i in drawn], [predicted[i] for i in drawn], THREE))
    interval = bootstrap_macro_f1(gold, predicted, groups, THREE, seed=3, samples=4000)
    assert interval.low == pytest.approx(np.quantile(values, 0.025), abs=0.012)
    assert interval.high == pytest.approx(np.quantile(values, 0.975), abs=0.012)
    assert interval.low < macro_f1(gold, predicted, THREE) < interval.high


def test_bootstrap_is_reproducible_and_widens_with_the_level() -> None:
    gold, predicted, groups = turns(120, 0.6, seed=2)
    narrow, wide = (bootstrap_macro_f1(gold, predicted, groups, THREE, seed=5, level=x) for x in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_macro_f1(gold, predicted, groups, THREE, seed=5, level=0.5) == narrow
    assert bootstrap_macro_f1(gold, predicted, groups, THREE, seed=6, level=0.5) != narrow
    assert type(narrow.low) is float


def test_bootstrap_keeps_conversations_whole() -> None:
    # Every conversation is half right in the same way, so resampling whole conversations changes nothing.
    gold, predicted = ["ANSWER", "CLARIFY"] * 30, ["ANSWER", "ANSWER"] * 30
    groups = [f"c{i // 2}" for i in range(60)]
    interval = bootstrap_macro_f1(gold, predicted, groups, TWO, seed=0)
    assert interval == Interval(pytest.approx(1 / 3), pytest.approx(1 / 3))  # type: ignore[arg-type]
    by_turn = bootstrap_macro_f1(gold, predicted, [str(i) for i in range(60)], TWO, seed=0)
    assert by_turn.high - by_turn.low > 0.1


def test_bootstrap_draws_every_conversation_equally_often() -> None:
    gold = ["ANSWER", "CLARIFY"] * 200
    predicted = gold[:200] + ["CLARIFY", "ANSWER"] * 100
    groups = [f"c{i // 2}" for i in range(400)]
    interval = bootstrap_macro_f1(gold, predicted, groups, TWO, seed=0)
    assert (interval.low + interval.high) / 2 == pytest.approx(0.5, abs=0.02)


def test_one_conversation_gives_an_interval_without_width() -> None:
    value = macro_f1(GOLD, PREDICTED, THREE)
    assert bootstrap_macro_f1(GOLD, PREDICTED, ["c"] * 6, THREE, seed=0) == Interval(value, value)


def test_paired_difference_uses_the_same_resamples() -> None:
    gold, better, groups = turns(250, 0.8, seed=3)
    worse = [THREE[(THREE.index(p) + 1) % 3] if i % 5 == 0 else p for i, p in enumerate(better)]

    def difference(a: Sequence[str], b: Sequence[str]) -> Interval:
        return paired_bootstrap_macro_f1_difference(gold, a, b, groups, THREE, seed=4)

    assert difference(better, better) == Interval(0.0, 0.0)
    forward, backward = difference(better, worse), difference(worse, better)
    assert 0 < forward.low < macro_f1(gold, better, THREE) - macro_f1(gold, worse, THREE) < forward.high
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    alone = [bootstrap_macro_f1(gold, p, groups, THREE, seed=4) for p in (better, worse)]
    assert forward.high - forward.low < alone[0].high - alone[1].low - (alone[0].low - alone[1].high)
