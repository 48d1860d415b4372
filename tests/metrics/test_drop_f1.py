"""The scores recorded here were produced by running PACIFIC's public evaluator (uniPCQA) on these inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from act_assets.metrics.drop_f1 import Score, bag_score, official_score

# predicted, gold, exact match, F1
BAGS: list[tuple[Sequence[str], Sequence[str], float, float]] = [
    # words, articles, punctuation, case
    (["the cat"], ["a cat"], 1.0, 1.0),
    (["The Cat sat."], ["cat sat"], 1.0, 1.0),
    (["the"], ["cat"], 0.0, 0.0),
    (["the"], [""], 1.0, 1.0),
    (["it's"], ["its"], 1.0, 1.0),
    (["time-and-material"], ["time and material"], 0.0, 0.0),
    (["theatre an anthem"], ["theatre anthem"], 1.0, 1.0),
    (["“quoted”"], ["quoted"], 0.0, 0.0),
    ("x\u2019the\u2019y", "x\u2019 \u2019y", 1.0, 1.0),
    (["ﬁne ΑΣ ß"], ["FINE ας SS"], 0.0, 0.33),
    (["a b c d"], ["a b e f"], 0.0, 0.33),
    (["w x y z"], ["w"], 0.0, 0.4),
    (["w w w x"], ["w x"], 0.0, 1.0),
    # plain strings, tuples, empty items
    ("", [""], 1.0, 1.0),
    ("...", "cat", 0.0, 0.0),
    (("cat", "dog"), ["dog", "cat"], 1.0, 1.0),
    ("cat dog", ["cat", "dog"], 0.0, 0.33),
    ([], ["cat"], 0.0, 0.0),
    (["cat"], [], 0.0, 0.0),
    (["", ""], ["", ""], 1.0, 1.0),
    (["", "cat"], ["cat", ""], 1.0, 1.0),
    # alignment, order, duplicates
    (["x", "y"], ["y", "x"], 1.0, 1.0),
    (["x", "x", "y"], ["x", "y", "y"], 1.0, 0.67),
    (["w x", "w"], ["w", "w x y"], 0.0, 0.9),
    (["p q r", "q r s"], ["q r", "p q r s", "t"], 0.0, 0.55),
    (["x", "y", "z", "u", "v"], ["v", "u", "z"], 0.0, 0.6),
    (["w c d e f g h i"], ["w k l m n o p q", "x", "y", "z", "v"], 0.0, 0.02),
    # numbers and their quirks
    ("1", "1.0", 0.0, 0.0),
    ("1.0", "1.00", 1.0, 1.0),
    ("007", "7", 1.0, 1.0),
    ("-0", "0", 1.0, 1.0),
    ("-0.0", "0.0", 0.0, 0.0),
    ("\u22125", "5", 0.0, 0.0),
    ("(9,819)", "9,819", 1.0, 1.0),
    ("(9819)", "9819", 0.0, 0.0),
    ("(9819)", "-9819", 1.0, 1.0),
    ("($9,819)", "9819", 1.0, 1.0),
    ("(5%)", "0.05", 1.0, 1.0),
    (".5", ".7", 1.0, 1.0),
    (".5", "inf", 1.0, 1.0),
    (".5", "0.5", 0.0, 0.0),
    ("-.5", "None", 0.0, 0.0),
    ("inf", "none", 0.0, 0.0),
    ("nan", "NaN", 1.0, 1.0),
    ("1e5", "1", 1.0, 1.0),
    ("1_000", "1", 1.0, 1.0),
    ("1__000", "1000", 1.0, 1.0),
    ("0x1f", "0x1F", 1.0, 1.0),
    ("1.2.3", "123", 1.0, 1.0),
    ("5-", "5", 1.0, 1.0),
    ("10-K", "10k", 1.0, 1.0),
    ("$1,023.50", "1023.5", 1.0, 1.0),
    ("£1 €2 ¥3", "1 2 3", 1.0, 1.0),
    ("'5'", '"5"', 1.0, 1.0),
    ("{5}", "5", 1.0, 1.0),
    ("1.23456", "1.2346", 1.0, 1.0),
    ("5%", "0.05", 1.0, 1.0),
    ("5 %", "5", 1.0, 1.0),
    ("5 %", "0.05", 0.0, 0.0),
    ("%", "", 1.0, 1.0),
    ("5.%", "0.05", 1.0, 1.0),
    ("٣", "3", 1.0, 1.0),
    ("\uff11\uff12.\uff15", "12.5", 1.0, 1.0),
    ("²", "2", 0.0, 0.0),
    ("5 million", "5000000", 0.0, 0.0),
    ("5\u00a0million", "5000000", 1.0, 1.0),
    ("5\tthousand", "5000", 1.0, 1.0),
    ("5\u00a0dollars", "5 dollars", 1.0, 1.0),
    ("5million", "5000000", 0.0, 0.0),
    ("5\u00a0(million)", "5", 1.0, 1.0),
    ("sales of 1", "sales of 1.0", 0.0, 0.67),
    ("sales, 2019", "sales 2019.0", 0.0, 0.5),
]

# prediction, its scale, gold answer, its scale, answer type, exact match, F1
ANSWERS: list[tuple[Any, str, object, str, str, float, float]] = [
    # text
    ("revenue", "", ["Revenue"], "", "span", 1.0, 1.0),
    ("cost of sales", "", ["cost of revenue"], "", "span", 0.0, 0.67),
    (["b", "a"], "", ["a", "b"], "", "multi-span", 1.0, 1.0),
    ("a b", "", ["x", "y"], "", "multi-span", 0.0, 0.0),
    (["y", "x", "x"], "", ["x", "y"], "", "multi-span", 0.0, 1.0),
    (["zeta", "Alpha"], "", ["alpha", "zeta"], "", "multi-span", 1.0, 1.0),
    ("Which year are you asking about?", "", ["Which year are you asking about?"], "", "question", 1.0, 1.0),
    ("Which year?", "", ["Which year are you asking about?"], "", "question", 0.0, 0.5),
    ("Acme", "thousand", ["Acme"], "thousand", "span", 1.0, 1.0),
    ("Acme", "", ["Acme"], "thousand", "span", 0.0, 0.67),
    ("", "", [""], "", "span", 0.0, 0.0),
    ([""], "", [""], "", "span", 1.0, 1.0),
    ("x", "", [], "", "span", 0.0, 0.0),
    (None, "", ["x"], "", "span", 0.0, 0.0),
    (False, "", ["False"], "", "span", 0.0, 0.0),
    (True, "", ["true"], "", "span", 1.0, 1.0),
    # numbers and scales
    ("12.5", "", 12.5, "", "arithmetic", 1.0, 1.0),
    (12.5, "thousand", 12.5, "million", "arithmetic", 0.0, 0.0),
    (12.5, "", 12.5, "million", "arithmetic", 0.0, 0.0),
    ("12.5 million", "", 12.5, "million", "arithmetic", 1.0, 1.0),
    ("12500", "thousand", 12.5, "million", "arithmetic", 1.0, 1.0),
    (12500000, "", 12.5, "million", "arithmetic", 1.0, 1.0),
    ("5 hundred", "", 500, "", "arithmetic", 1.0, 1.0),
    ("5  million", "", 5, "", "arithmetic", 1.0, 1.0),
    ("{5}", "", 5, "", "arithmetic", 0.0, 0.0),
    ("12.346%", "", 12.35, "percent", "arithmetic", 1.0, 1.0),
    (5, "hundred", 500, "", "arithmetic", 1.0, 1.0),
    (5, "USD Millions", 5, "million", "arithmetic", 1.0, 1.0),
    (1.5, "billion", 1500, "million", "arithmetic", 1.0, 1.0),
    ("5\u00a0million", "", 5, "million", "arithmetic", 1.0, 1.0),
    ("5 (million)", "", 5, "million", "arithmetic", 0.0, 0.0),
    (12.344, "", 12.34, "", "arithmetic", 1.0, 1.0),
    (12.346, "", 12.34, "", "arithmetic", 0.0, 0.0),
    (2.675, "", 2.67, "", "arithmetic", 1.0, 1.0),
    ("about 12.5", "", 12.5, "", "arithmetic", 0.0, 0.0),
    ("12.5 dollars", "", 12.5, "", "arithmetic", 0.0, 0.0),
    ("2 to 5 million", "", 5, "million", "arithmetic", 0.0, 0.0),
    (["12.5", "13"], "", 12.5, "", "arithmetic", 0.0, 0.0),
    ([5, 12], "", ["5", "12"], "", "multi-span", 0.0, 1.0),
    (["$1,202", "$900"], "thousand", ["$900", "$1,202"], "thousand", "multi-span", 1.0, 1.0),
    (["900", "x"], "million", ["x", "900"], "million", "multi-span", 1.0, 1.0),
    ("$1,496.5", "million", ["1,496.5"], "million", "span", 1.0, 1.0),
    ("1", "", ["1.0"], "", "span", 1.0, 1.0),
    ("year 1", "", ["year 1.0"], "", "span", 0.0, 0.5),
    # per cent
    (0.2342, "", 23.42, "percent", "arithmetic", 1.0, 1.0),
    (23.42, "percent", 23.42, "percent", "arithmetic", 1.0, 1.0),
    ("23.42%", "", 23.42, "percent", "arithmetic", 1.0, 1.0),
    ("23.42%", "percent", 23.42, "percent", "arithmetic", 1.0, 1.0),
    ("23.42 %", "", 23.42, "percent", "arithmetic", 1.0, 1.0),
    (23.42, "", 23.42, "percent", "arithmetic", 0.0, 0.0),
    (0.2342, "percent", 23.42, "percent", "arithmetic", 0.0, 0.0),
    (["0.2342", "0.2342"], "", 23.42, "percent", "arithmetic", 0.0, 0.0),
    (-0.0512, "", -5.12, "percent", "arithmetic", 1.0, 1.0),
    ("(5.12)", "percent", -5.12, "percent", "arithmetic", 1.0, 1.0),
    ("(5.12%)", "", -5.12, "percent", "arithmetic", 0.0, 0.0),
    ("5.12%", "", ["5.12"], "percent", "span", 1.0, 1.0),
    ("12%", "million", ["12%"], "", "span", 1.0, 1.0),
    ("5 .%", "", 0.05, "", "arithmetic", 0.0, 0.0),
    (" %5", "", 5, "", "arithmetic", 1.0, 1.0),
    # quirks of numbers
    ("(9,819)", "", 9819, "", "arithmetic", 1.0, 1.0),
    ("(9,819)", "", -9819, "", "arithmetic", 0.0, 0.0),
    ("(9819)", "", -9819, "", "arithmetic", 1.0, 1.0),
    ("$(9.8)", "million", -9.8, "million", "arithmetic", 1.0, 1.0),
    ("5 ( )", "", -5, "", "arithmetic", 1.0, 1.0),
    (".5", "", ".7", "", "arithmetic", 1.0, 1.0),
    (".5", "", 0.5, "", "arithmetic", 0.0, 0.0),
    (".5", "thousand", ["inf"], "thousand", "span", 1.0, 1.0),
    (".5%", "", ["inf"], "", "span", 1.0, 1.0),
    (math.inf, "", ["inf"], "", "span", 1.0, 1.0),
    (math.nan, "", ["nan"], "", "span", 1.0, 1.0),
    (1e-07, "", 1, "", "arithmetic", 1.0, 1.0),
    ("1_000", "", 1000, "", "arithmetic", 0.0, 0.0),
    ("1_000", "", 1, "", "arithmetic", 1.0, 1.0),
    ("٣", "", 3, "", "arithmetic", 1.0, 1.0),
    (-0.0001, "", 0, "", "arithmetic", 0.0, 0.0),
    (0, "", 0, "", "arithmetic", 0.0, 0.0),
    ("0", "", 0, "", "arithmetic", 1.0, 1.0),
    ([0], "", 0, "", "arithmetic", 1.0, 1.0),
    (0, "", 0, "percent", "arithmetic", 0.0, 0.0),
    ("9" * 309 + ".5", "", ["none"], "", "span", 0.0, 0.0),
    ("9" * 309 + ".5", "", ["inf"], "", "span", 1.0, 1.0),
    # counts and other answer types
    (3, "", "3", "", "count", 1.0, 1.0),
    ("3.0", "", "3", "", "count", 1.0, 1.0),
    ("three", "", "3", "", "count", 0.0, 0.0),
    ("3.0 years", "", "3", "", "count", 0.0, 0.0),
    ("3.0 years", "", ["3"], "", "span", 0.0, 0.67),
    (3, "", 3.9, "", "count", 1.0, 1.0),
    ("1", "", True, "", "count", 1.0, 1.0),
    ("7", "", " 7 ", "", "count", 1.0, 1.0),
    ("x y", "", "x z", "", "arithmetic", 0.0, 0.0),
    ("x y", "", "x z", "", "date", 0.0, 0.5),
    ("x y", "", ["x", "z"], "", "other", 0.0, 0.5),
    ("none", "", None, "", "other", 1.0, 1.0),
]

TOO_MANY_DIGITS = "9" * 5000
TOO_LARGE_FOR_FLOAT = 10**400


@pytest.mark.parametrize(("predicted", "gold", "exact_match", "f1"), BAGS, ids=range(len(BAGS)))
def test_bag_score_is_the_evaluators(
    predicted: Sequence[str], gold: Sequence[str], exact_match: float, f1: float
) -> None:
    assert bag_score(predicted, gold) == Score(exact_match, f1)


@pytest.mark.parametrize(
    ("prediction", "scale", "gold", "gold_scale", "answer_type", "exact_match", "f1"),
    ANSWERS,
    ids=range(len(ANSWERS)),
)
def test_official_score_is_the_evaluators(
    prediction: Any,
    scale: str,
    gold: object,
    gold_scale: str,
    answer_type: str,
    exact_match: float,
    f1: float,
) -> None:
    assert official_score(prediction, scale, gold, gold_scale, answer_type) == Score(exact_match, f1)
    if isinstance(prediction, list):
        assert official_score(tuple(prediction), scale, gold, gold_scale, answer_type) == Score(exact_match, f1)


@pytest.mark.filterwarnings("error")
def test_two_empty_lists_match_with_undefined_f1() -> None:
    score = bag_score([], [])
    assert score.exact_match == 1.0
    assert math.isnan(score.f1)


def test_scores_are_plain_floats() -> None:
    for score in (bag_score(["x y", "z"], ["x", "z"]), official_score("x y", "", ["x"], "", "span")):
        assert type(score.exact_match) is float
        assert type(score.f1) is float


@pytest.mark.parametrize("text", [TOO_MANY_DIGITS, "9" * 400 + "%"])
def test_bag_score_is_nothing_where_the_evaluator_fails_on_a_number(text: str) -> None:
    assert bag_score([text], [text]) == Score(0.0, 0.0)
    assert bag_score([text, "x"], ["x"]) == Score(0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "gold", "answer_type"),
    [
        (TOO_LARGE_FOR_FLOAT, TOO_LARGE_FOR_FLOAT, "arithmetic"),
        (10**5000, 1, "arithmetic"),
        (TOO_MANY_DIGITS, [TOO_MANY_DIGITS], "span"),
        ("x", [TOO_MANY_DIGITS], "span"),
        ("3", TOO_MANY_DIGITS, "count"),
        ("3", "-" + TOO_MANY_DIGITS, "count"),
        ("3", math.inf, "count"),
        ([1, "x"], ["x"], "span"),
        ([None, None], ["None"], "span"),
        (["x"], [1, "x"], "span"),
    ],
    ids=range(10),
)
def test_official_score_is_nothing_where_the_evaluator_fails(prediction: Any, gold: object, answer_type: str) -> None:
    assert official_score(prediction, "", gold, "", answer_type) == Score(0.0, 0.0)


@pytest.mark.parametrize("answer_type", ["span", "multi-span", "question"])
@pytest.mark.parametrize("gold", ["text", ("text",), 5, None])
def test_gold_spans_must_be_lists(gold: object, answer_type: str) -> None:
    with pytest.raises(TypeError, match=f"'{answer_type}' must be a list, got"):
        official_score("text", "", gold, "", answer_type)
    assert official_score("", "", gold, "", answer_type) == Score(0.0, 0.0)  # the evaluator looks no further


@pytest.mark.parametrize("gold", ["three", "1.5", "", math.nan, None, ["3"]])
def test_a_gold_count_must_be_a_whole_number(gold: object) -> None:
    with pytest.raises(ValueError, match="gold answer of a count must be a whole number, got"):
        official_score("3", "", gold, "", "count")


@pytest.mark.parametrize("prediction", ["5", ""])
def test_the_gold_scale_must_be_known(prediction: str) -> None:
    with pytest.raises(ValueError, match="gold scale 'hundred' is unknown"):
        official_score(prediction, "", 5, "hundred", "arithmetic")
