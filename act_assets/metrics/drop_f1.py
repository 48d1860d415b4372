r"""DROP F1 as PACIFIC reports it: exact match and token F1 of an answer against a gold answer.

Sources: DROP (Dua et al. 2019) for the aligned bags of tokens; the TAT-QA evaluator (Zhu et al. 2021) for
numbers and scales; PACIFIC (Deng et al. 2022), whose public evaluator is the rule that published numbers
follow. `bag_score` is its `get_metrics`, `official_score` its `TaTQAEmAndF1`; both agree with it on every
input, quirks included:

- `(9,819)` loses its sign, `(9819)` keeps it: a comma, `$` or `%` inside the parentheses hides them.
- A number that begins with its dot has no value: `.5`, `.7` and `inf` all become the token `None`.
- `1e5` and `1_000` read as 1: only the digits before the first other character count.
- `1` differs from `1.0` as a token, and `-0.0` from `0.0`. (`official_score` writes an item that is a number
  with four decimals, so there 1 and 1.0 agree.)
- 0 as a prediction is no prediction and scores 0; the text "0" is one.
- A word loses its punctuation before it is read again, so `1/2` becomes 12 and `5-` becomes 5.
- Pieces are cut at plain spaces only: `5<nbsp>million` is 5000000, `5 million` two tokens.
- Bags are sets: a repeated token counts once, and ["x", "x", "y"] matches ["x", "y", "y"] exactly.
- A list is sorted and joined, so `official_score` always compares one text with one text.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GOLD_SCALES = ("", "thousand", "million", "billion", "percent")
"""The scales that annotations use; the evaluator fails on any other."""

_LIST_ANSWERS = ("span", "multi-span", "question")
_NUMBER_ANSWERS = ("arithmetic", "count")
_MULTIPLIERS = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "percent": 0.01}

_NOT_IN_NUMBERS = str.maketrans("", "", "'\"\\$€£¥%(),[]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_FIRST_NUMBER = re.compile(r"(?P<with_digit_first>[+-]?\d+(?:\.\d+)?)|[+-]?\.\d+")
_NUMBER_AND_WORD = re.compile(r"[\d.]+\s?[a-zA-Z]+")
_PARENTHESISED = re.compile(r"\([\d.\s]+\)")
_PERCENTAGE = re.compile(r"[\d.\s]+%")


@dataclass(frozen=True)
class Score:
    """Agreement of a prediction with a gold answer, both in [0, 1]."""

    exact_match: float
    f1: float


_NOTHING = Score(0.0, 0.0)


def bag_score(predicted: Sequence[str], gold: Sequence[str]) -> Score:
    """Score a list of answers against a list of gold answers; a plain str is a list of one.

    Each gold item is aligned with at most one predicted item so that the sum of their token F1 is highest; F1
    is that sum over the longer list's length, rounded to two decimals. Two empty lists give (1.0, nan), as in
    the evaluator: there is nothing to average. Where the evaluator fails on a number beyond the limits of int
    or float, the score is (0.0, 0.0).
    """
    try:
        return _compare(_as_list(predicted), _as_list(gold))
    except (OverflowError, ValueError):  # ValueError: int() and str() refuse more than 4,300 digits
        return _NOTHING


def official_score(
    prediction: str | float | Sequence[str],
    prediction_scale: str,
    gold_answer: object,
    gold_scale: str,
    answer_type: str,
) -> Score:
    """Score one prediction as the public PACIFIC / TAT-QA evaluator does.

    Items are sorted and joined; an item that is a number is rounded to two decimals and multiplied by its
    scale, any other is followed by it. A single number without scale may also match unrounded (0.2342 for a
    gold answer of 23.42 percent). F1 is the exact match where the answer is arithmetic or a count. A tuple is
    treated like a list.

    The score is (0.0, 0.0) for a falsy prediction, for an empty gold list, and where the evaluator fails: a
    number beyond the limits of int or float, or items that cannot be sorted, such as [1, "x"].

    Raises TypeError if the gold answer of a span, multi-span or question is not a list, and ValueError if the
    gold scale is not one of `GOLD_SCALES` or int() does not take the gold answer of a count. As in the
    evaluator, a falsy prediction scores 0 before the gold answer is looked at.
    """
    if gold_scale not in GOLD_SCALES:
        raise ValueError(f"gold scale {gold_scale!r} is unknown to the evaluator: use one of {GOLD_SCALES}")
    if not prediction:
        return _NOTHING
    gold_items: list[object] = [gold_answer]
    if answer_type in _LIST_ANSWERS:
        if not isinstance(gold_answer, list):
            raise TypeError(
                f"the gold answer of type {answer_type!r} must be a list, got {gold_answer!r}: wrap it in one"
            )
        gold_items = gold_answer
    elif answer_type == "count":
        try:
            gold_items = [int(gold_answer)]  # type: ignore[call-overload]
        except OverflowError:
            return _NOTHING
        except (TypeError, ValueError) as error:
            if isinstance(gold_answer, str) and gold_answer.strip().lstrip("+-").isdecimal():
                return _NOTHING  # too many digits
            raise ValueError(f"the gold answer of a count must be a whole number, got {gold_answer!r}") from error
    if not gold_items:
        return _NOTHING
    items = _as_list(prediction)
    try:
        gold = _written(gold_items, gold_scale)
        readings = [_written(items, prediction_scale)]
        if len(items) == 1 and not prediction_scale and (value := _value(str(items[0]))) is not None:
            readings.append(f"{value:.4f}")  # not rounded, so that a fraction can match a percentage
        scores = [_compare([reading], [gold]) for reading in readings]
    except (OverflowError, ValueError):
        return _NOTHING
    best = max(scores, key=lambda score: (score.exact_match, score.f1))
    return Score(best.exact_match, best.exact_match) if answer_type in _NUMBER_ANSWERS else best


def _written(items: Sequence[object], scale: str) -> str:
    """All items as one text: sorted, numbers scaled to four decimals, other items followed by the scale."""
    try:
        ordered = sorted(items)  # type: ignore[type-var]
    except TypeError as error:
        raise ValueError("items of mixed types cannot be sorted") from error
    texts = []
    for item in ordered:
        text = str(item)
        value = _value(text)
        if value is None:
            texts.append(f"{text} {scale}" if scale else text)
        elif "%" in text:  # the item states its own scale
            texts.append(f"{value:.4f}")
        else:
            texts.append(f"{round(value, 2) * _multiplier(scale):.4f}")
    return " ".join(texts)


def _compare(predicted: Sequence[str], gold: Sequence[str]) -> Score:
    predicted_texts = [_normalised(item) for item in predicted]
    gold_texts = [_normalised(item) for item in gold]
    same = len(predicted_texts) == len(gold_texts) and set(predicted_texts) == set(gold_texts)
    size = max(len(predicted), len(gold))
    if size == 0:
        return Score(float(same), math.nan)
    bags = [set(text.split()) for text in predicted_texts]
    gold_bags = [set(text.split()) for text in gold_texts]
    f1 = np.array([[_bag_f1(p, g) for p in bags] for g in gold_bags]).reshape(len(gold), len(predicted))
    aligned = np.zeros(size)  # an item left alone counts as 0
    if len(predicted) == len(gold) == 1:
        aligned[:] = f1[0]
    else:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

        rows, columns = linear_sum_assignment(-f1)
        aligned[rows] = f1[rows, columns]
    return Score(float(same), float(np.round(np.mean(aligned), 2)))  # round() gives other values for some means


def _bag_f1(predicted: set[str], gold: set[str]) -> float:
    shared = len(predicted & gold)
    if not shared:
        return float(not predicted and not gold)
    precision, recall = shared / len(predicted), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def _normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, numbers by their value."""
    return " ".join(" ".join([_normalised_word(word) for word in text.lower().split(" ")]).split())


@lru_cache(maxsize=20_000)  # the words of gold answers come again with every prediction
def _normalised_word(word: str) -> str:
    if not _is_number(word):
        word = word.translate(_PUNCTUATION)
    if _is_number(word):
        word = str(_value(word))
    return _ARTICLE.sub(" ", word)


def _value(text: str) -> float | None:
    """The value of a number, to four decimals: `$5 million` is 5000000, `12%` is 0.12. None for any other text, and
    where the evaluator sees none in it."""
    found = _FIRST_NUMBER.search(text.translate(_NOT_IN_NUMBERS)) if _is_number(text) else None
    digits = found["with_digit_first"] if found else None
    if digits is None:
        return None
    number = float(digits) if "." in digits else int(digits)
    word = _NUMBER_AND_WORD.search(text)
    multiplier = _multiplier(word[0]) if word else 1
    sign = -1 if _PARENTHESISED.search(text) else 1
    percent = 0.01 if _PERCENTAGE.search(text.strip()) else 1  # unstripped, "  %5" would be a percentage
    return round(number * multiplier * sign * percent, 4)


def _is_number(text: str) -> bool:
    """Whether a text is a number (`$1,023`, `(5%)`, `inf`), alone or followed by a scale (`1 million`)."""
    words = text.translate(_NOT_IN_NUMBERS).split()
    try:
        number = float(words[0])
    except (IndexError, ValueError):
        return False
    return not math.isnan(number) and (len(words) == 1 or _multiplier(words[1]) != 1)


def _multiplier(scale: str) -> float:
    """What a scale multiplies by; 1 for what is no scale. Whatever contains a scale's name is that scale."""
    scale = scale.lower()
    return next((factor for name, factor in _MULTIPLIERS.items() if name in scale), 1)


def _as_list(answer: object) -> list[str]:
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]  # type: ignore[list-item]
