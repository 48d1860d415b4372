"""How well predicted actions agree with gold actions: accuracy, macro F1, and intervals for macro F1.

Source: Chen et al., "Learning to Clarify" (ICLR 2025), section 5 and appendix D: accuracy, and macro F1 as
"Unweighted Average of F1 for each action". The average always runs over the task's whole action set, so an
action that neither side uses counts as 0 (scikit-learn: `f1_score(..., labels=actions, average="macro",
zero_division=0)`). Intervals are percentile bootstraps (Efron 1979) over whole conversations: the turns of a
conversation are not independent of each other.

All functions raise ValueError for empty input, sequences of different lengths, fewer than two actions,
repeated actions, and labels that are not among the actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


def confusion(gold: Sequence[str], predicted: Sequence[str], actions: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """How often each gold action (row) was predicted as each action (column), in the order of `actions`."""
    counts = _confusion_by_group(gold, predicted, np.zeros(len(gold), dtype=np.intp), 1, actions)[0]
    return tuple(tuple(int(count) for count in row) for row in counts)


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of turns whose predicted action is the gold one."""
    _require_equal_lengths(gold=gold, predicted=predicted)
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def macro_f1(gold: Sequence[str], predicted: Sequence[str], actions: Sequence[str]) -> float:
    """Unweighted mean of the F1 of every action; an action absent from both sides counts as 0."""
    return float(_macro_f1(np.array(confusion(gold, predicted, actions))))


def bootstrap_macro_f1(
    gold: Sequence[str],
    predicted: Sequence[str],
    groups: Sequence[str],
    actions: Sequence[str],
    *,
    seed: int,
    samples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The bootstrap interval of macro F1, resampling whole groups (conversations) with replacement.

    `groups` names the conversation of each turn. The same seed and groups give the same resamples. With a
    single group every resample is the data itself, and the interval has no width.
    """
    members, weights = _resampled_groups(groups, seed, samples, level)
    counts = _confusion_by_group(gold, predicted, members, weights.shape[1], actions)
    return _percentile_interval(_macro_f1(np.tensordot(weights, counts, axes=1)), level)


def paired_bootstrap_macro_f1_difference(
    gold: Sequence[str],
    predicted_a: Sequence[str],
    predicted_b: Sequence[str],
    groups: Sequence[str],
    actions: Sequence[str],
    *,
    seed: int,
    samples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The bootstrap interval of macro F1 of a minus macro F1 of b, both measured on the same resamples."""
    members, weights = _resampled_groups(groups, seed, samples, level)
    a, b = (
        _macro_f1(np.tensordot(weights, _confusion_by_group(gold, p, members, weights.shape[1], actions), axes=1))
        for p in (predicted_a, predicted_b)
    )
    return _percentile_interval(a - b, level)


def _macro_f1(confusions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Macro F1 of each confusion matrix, shape (..., N, N) to (...)."""
    correct = np.diagonal(confusions, axis1=-2, axis2=-1)
    named = confusions.sum(axis=-1) + confusions.sum(axis=-2)  # times gold plus times predicted, per action
    f1: npt.NDArray[np.float64] = 2 * correct / np.maximum(named, 1)
    return np.asarray(f1.mean(axis=-1))


def _resampled_groups(
    groups: Sequence[str], seed: int, samples: int, level: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """The group index of each turn, and how often each resample drew each group: shape (samples, groups)."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    _require_equal_lengths(groups=groups)
    index = {group: position for position, group in enumerate(dict.fromkeys(groups))}
    members = np.fromiter((index[group] for group in groups), dtype=np.intp, count=len(groups))
    size = len(index)
    # Drawing `size` groups with replacement and counting them is one multinomial draw.
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples)
    return members, weights


def _confusion_by_group(
    gold: Sequence[str],
    predicted: Sequence[str],
    members: npt.NDArray[np.intp],
    group_count: int,
    actions: Sequence[str],
) -> npt.NDArray[np.int64]:
    """One confusion matrix per group, shape (groups, N, N)."""
    index = {action: position for position, action in enumerate(actions)}
    if len(actions) < 2 or len(index) != len(actions):
        raise ValueError(f"actions must be at least two different names, got {list(actions)}")
    _require_equal_lengths(gold=gold, predicted=predicted, groups=members)
    unknown = sorted({repr(label) for label in (*gold, *predicted) if label not in index})
    if unknown:
        raise ValueError(f"labels {', '.join(unknown)} are not among the actions {list(actions)}")
    shape = (group_count, len(actions), len(actions))
    cells = np.ravel_multi_index((members, [index[g] for g in gold], [index[p] for p in predicted]), shape)
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)


def _percentile_interval(values: npt.NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _require_equal_lengths(**sequences: Sequence[object] | npt.NDArray[np.intp]) -> None:
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        described = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"labels must be of one length and not empty: {described}")
