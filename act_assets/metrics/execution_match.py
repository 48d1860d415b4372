"""Execution match of text-to-SQL: does a predicted query return what the gold query returns?

Source: the test-suite evaluator of Spider and CoSQL (Zhong et al. 2020, "Semantic Evaluation for Text-to-SQL with
Distilled Test Suites", exec_eval.py), on one database. Its rules: `> =` is read as `>=`; YEAR(CURDATE()) is 2020;
DISTINCT is ignored; two empty results match; otherwise some permutation of the columns must make the rows equal, as
lists where gold has ORDER BY anywhere, else as multisets. Values compare as Python values, so 1 matches 1.0 but not
"1". Where this differs from the evaluator, on purpose:

- Text is rewritten and ORDER BY looked for outside literals, quoted names and comments only; ORDER and BY may be
  apart by any white space.
- `IS [NOT] DISTINCT FROM` keeps its DISTINCT, and `YEAR(CURDATE())` the blank after it.
- Columns are permuted by an exact search; the evaluator's samples rows and may reject rows with 1 against 1.0.
- A prediction of several statements does not match; the evaluator runs the first one.
- Only queries are run: no statement that writes, and none of PRAGMA, ATTACH or EXPLAIN.
- Queries run in a child process, bounded in time, memory and size (sql_worker.py states the limits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act_assets.metrics.sql_process import GRACE_S, WorkerLostError, lent_worker
from act_assets.metrics.sql_text import Query, read_query
from resources.errors import DataError

TIMEOUT_S = 10.0
"""Seconds for each query: OURS. The evaluator gives 60; a gold query of Spider takes under 1."""

_SHOWN = 300  # characters of a gold query in an error


@dataclass(frozen=True)
class ExecutionMatch:
    """Whether a prediction's result matches gold's."""

    match: bool
    reason: str | None
    """Why not, as a sentence; None iff it matches."""


def execution_match(
    database: Path,
    predicted_sql: str,
    gold_sql: str,
    *,
    ignore_distinct: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> ExecutionMatch:
    """Compare the results of two queries on a SQLite file.

    Whatever is wrong with the prediction, text that is no SQL included, is a reason and no exception. Raises
    DataError if the database is missing or no SQLite file, or the gold query does not run within the limits, and
    ValueError if `timeout_s` (seconds for each of the two queries) is not positive and finite.
    """
    gold, predicted = (read_query(sql, ignore_distinct=ignore_distinct) for sql in (gold_sql, predicted_sql))
    try:
        reason = _difference(database, gold, predicted, timeout_s)
    except DataError as error:
        shown = f"{gold_sql[:_SHOWN]!a}{'...' if len(gold_sql) > _SHOWN else ''}"
        raise DataError(error.what, where=f"{database}, gold query: {shown}", todo=error.todo) from None
    return ExecutionMatch(reason is None, reason)


def execution_matches(
    pairs: Sequence[tuple[Path, str, str]],
    *,
    ignore_distinct: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> list[ExecutionMatch]:
    """`execution_match` of each (database, predicted SQL, gold SQL), in their order.

    One after the other, so that one process has all gold results: two would each run a gold query that comes twice,
    and are no faster for queries that take less than a millisecond.
    """
    return [execution_match(*pair, ignore_distinct=ignore_distinct, timeout_s=timeout_s) for pair in pairs]


def runs(database: Path, sql: str, *, ignore_distinct: bool = True, timeout_s: float = TIMEOUT_S) -> str | None:
    """Why a gold query cannot be compared with: it does not run, or its database is missing. None where it can."""
    try:
        _difference(database, read_query(sql, ignore_distinct=ignore_distinct), None, timeout_s)
    except DataError as error:
        return error.what
    return None


def _difference(database: Path, gold: Query, predicted: Query | None, timeout_s: float) -> str | None:
    """Why the prediction does not match, None where it does or there is none. Raises DataError for a gold query or
    database that cannot be compared with."""
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError(f"timeout_s must be positive and finite, got {timeout_s!r}")
    if gold.problem:
        raise _gold_error(gold.problem)
    request: dict[str, Any] = {
        "database": str(Path(database).absolute()),
        "gold": gold.sql,
        "ordered": gold.ordered,
        "predicted": predicted.sql if predicted and not predicted.problem else None,
        "timeout_s": timeout_s,
    }
    answer: dict[str, Any] = {}
    with lent_worker() as worker:
        try:
            answer = worker.gold(request)
            if answer["kind"] == "database":
                raise DataError(
                    f"The database of a gold query {answer['problem']}.",
                    todo="check the folder of databases, or fetch it again",
                )
            if answer["problem"]:
                raise _gold_error(answer["problem"])
            if predicted is None:
                return None
            if predicted.problem:
                return f"The query does not run: {predicted.problem}."
            reason: str | None = worker.receive(timeout_s + GRACE_S)["reason"]
            return reason
        except WorkerLostError as lost:
            late = f"it takes longer than {timeout_s:g} s and was stopped"
            problem = late if lost.late else "the process that ran it died"
            if not answer:
                raise _gold_error(problem) from None
            return f"The query does not run: {problem}."


def _gold_error(problem: str) -> DataError:
    return DataError(f"A gold query does not run: {problem}.", todo="correct the query, or leave its example out")
