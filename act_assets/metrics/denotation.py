"""Whether two query results are the same denotation: equal up to the order of their columns.

The rule is that of the test-suite evaluator (Zhong et al. 2020, result_eq in exec_eval.py), decided exactly.
Its own search is factorial in the columns, samples rows at random to shorten it, and rejects early by rows sorted
as text, where 1 and 1.0 may sort differently and a result is rejected although a permutation makes it equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from operator import itemgetter

Row = tuple[Hashable, ...]
Column = tuple[Hashable, ...]

SEARCH_LIMIT = 10_000_000
"""Rows that the search for a permutation may read beyond one straight pass: OURS, about two seconds.

Equality up to the order of columns and rows is as hard as graph isomorphism, so some bound is needed. Results
that people ask for need none: their columns differ in their values.
"""


class SearchLimitError(Exception):
    """The search for a permutation of the columns came to its limit undecided."""


def equal_denotations(gold: Sequence[Row], predicted: Sequence[Row], *, ordered: bool) -> bool:
    """Whether some permutation of columns makes the rows equal: as lists where `ordered`, else as multisets.

    Rows of one result have one length. Values compare as Python values: 1 == 1.0, "1" != 1, None == None. Two
    empty results are equal. Raises SearchLimitError.
    """
    if len(gold) != len(predicted):
        return False
    if gold == predicted:
        return True
    width = len(gold[0])
    if len(predicted[0]) != width:
        return False
    if not ordered:
        if Counter(gold) == Counter(predicted):
            return True
        if width == 1:
            return False
    gold_columns, predicted_columns = _columns(gold), _columns(predicted)
    if ordered:
        return Counter(gold_columns) == Counter(predicted_columns)
    return _permutation_exists(gold_columns, predicted_columns)


def _columns(rows: Sequence[Row]) -> list[Column]:
    return [tuple(map(itemgetter(i), rows)) for i in range(len(rows[0]))]


def _permutation_exists(gold: list[Column], predicted: list[Column]) -> bool:
    """Backtracking over gold's columns: each takes a predicted column under which the row prefixes stay equal."""
    gold_values = [frozenset(Counter(column).items()) for column in gold]
    predicted_values = [frozenset(Counter(column).items()) for column in predicted]
    if Counter(gold_values) != Counter(predicted_values):
        return False
    with_values: dict[Hashable, list[int]] = {}
    for j, values in enumerate(predicted_values):
        with_values.setdefault(values, []).append(j)
    # Fewest candidates first, then most different values: what tells rows apart early prunes most.
    order = sorted(range(len(gold)), key=lambda i: (len(with_values[gold_values[i]]), -len(gold_values[i])))
    candidates = [with_values[gold_values[i]] for i in order]

    rows = len(gold[0])
    numbers: dict[Column, int] = {}
    same_as = [numbers.setdefault(column, len(numbers)) for column in predicted]  # equal columns have one number
    steps: list[_Step] = []
    spare = SEARCH_LIMIT + len(gold) * rows
    prefixes = [[0] * rows]  # per depth: the class of each predicted row by the columns chosen so far
    chosen: list[int] = []
    untried = [_once(candidates[0], chosen, same_as)]
    while untried:
        depth = len(chosen)
        if depth == len(steps):
            steps.append(_Step(steps[-1].classes if steps else prefixes[0], gold[order[depth]]))
        if not untried[-1]:
            untried.pop()
            prefixes.pop()
            if chosen:
                chosen.pop()
            continue
        spare -= rows
        if spare < 0:
            raise SearchLimitError
        j = untried[-1].pop()
        classes = steps[depth].follow(prefixes[-1], predicted[j])
        if classes is None:
            continue
        chosen.append(j)
        if len(chosen) == len(gold):
            return True
        prefixes.append(classes)
        untried.append(_once(candidates[len(chosen)], chosen, same_as))
        spare -= len(untried[-1])
    return False


def _once(candidates: list[int], chosen: list[int], same_as: list[int]) -> list[int]:
    """Candidates not yet chosen, the last to be tried first, one of each set of equal columns."""
    taken = set(chosen)
    return list({same_as[j]: j for j in reversed(candidates) if j not in taken}.values())


class _Step:
    """Gold's rows classed by one more column: rows are in one class where all columns so far agree."""

    def __init__(self, classes: list[int], column: Column) -> None:
        self._numbers: dict[tuple[int, Hashable], int] = {}
        numbers = self._numbers
        self.classes = [numbers.setdefault(pair, len(numbers)) for pair in zip(classes, column, strict=True)]
        self._sizes = Counter(self.classes)

    def follow(self, classes: list[int], column: Column) -> list[int] | None:
        """The classes of predicted rows after this step; None unless they are as large as gold's."""
        numbers = self._numbers
        after = [numbers.get(pair, -1) for pair in zip(classes, column, strict=True)]
        return after if Counter(after) == self._sizes else None
