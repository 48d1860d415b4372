"""All that a memo holds, for those who read it: the database's rows, and those that are only in journals so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from resources.errors import ActError
from resources.llm.memo.database import Database, Rebuilt, connect
from resources.llm.memo.journal import journals, read_journal
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import ANSWER_FIELDS, Answer, Record, Use
from resources.llm.memo.schema import ANSWERS, USES, migrate, to_arrow

PORTION = 4_000  # rows read at a time where all are wanted
COLUMNS = ", ".join(ANSWER_FIELDS)
MIN_PREFIX = 6  # hex digits

T = TypeVar("T")
Ask = Callable[[duckdb.DuckDBPyConnection], T]

# What is in a journal and in the database was folded while we looked.
_VIEWS = """
    CREATE TEMP TABLE fresh AS SELECT DISTINCT ON (key, id) *
      FROM unfolded_answers ANTI JOIN answers USING (key, id) ANTI JOIN history USING (key, id);
    CREATE TEMP TABLE ahead AS
      SELECT n.key, n.id FROM (
        SELECT * FROM fresh QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1
      ) n LEFT JOIN answers a ON a.key = n.key
      WHERE a.key IS NULL OR (n.created_at, n.id) > (a.created_at, a.id);
    CREATE TEMP VIEW current_answers AS
      SELECT * FROM answers ANTI JOIN ahead USING (key)
      UNION ALL SELECT * FROM fresh SEMI JOIN ahead USING (key, id);
    CREATE TEMP VIEW past_answers AS
      SELECT * FROM history
      UNION ALL SELECT * FROM answers SEMI JOIN ahead USING (key)
      UNION ALL SELECT * FROM fresh ANTI JOIN ahead USING (key, id);
    CREATE TEMP TABLE fresh_uses AS SELECT DISTINCT ON (id) * FROM unfolded_uses ANTI JOIN uses USING (id);
    CREATE TEMP VIEW every_use AS SELECT * FROM uses UNION ALL SELECT * FROM fresh_uses;
"""


def consult(memo: Memo, ask: Ask[T]) -> T:
    """What `ask` makes of a read-only connection that has, beside the tables (schema.py), these:

        current_answers     the answer of every key
        past_answers        those that a later one replaced
        every_use           the ledger
        fresh, fresh_uses   the rows of the above that are only in journals

    Nobody can write to the database meanwhile. `ask` is called again where the database turns out to be damaged.
    """
    unfolded = records_of(memo.journal_folder)  # before the database: what is folded meanwhile is in both, not in none
    try:
        return _ask(memo.database, unfolded, ask)
    except Rebuilt:
        pass
    try:
        return _ask(memo.database, unfolded, ask)
    except Rebuilt as again:  # it is not the database, then
        raise again.__cause__ or again from None


def _ask(database: Database, unfolded: list[Record], ask: Ask[T]) -> T:
    with database.reading() as connection:
        if connection is not None:
            _define(connection, unfolded)
            return ask(connection)
    with connect() as empty:
        migrate(empty, str(database.path))
        _define(empty, unfolded)
        return ask(empty)


def _define(connection: duckdb.DuckDBPyConnection, unfolded: list[Record]) -> None:
    connection.register("unfolded_answers", to_arrow([r for r in unfolded if isinstance(r, Answer)], ANSWERS))
    connection.register("unfolded_uses", to_arrow([r for r in unfolded if isinstance(r, Use)], USES))
    connection.execute(_VIEWS)


def records_of(journal_folder: Path) -> list[Record]:
    """The records of every journal that can be read."""
    found: list[Record] = []
    for path in journals(journal_folder):
        try:
            found += read_journal(path)[0]
        except FileNotFoundError:  # folded meanwhile
            continue
    return found


def has_answers(folder: Path) -> bool:
    """Whether anything has ever been kept in a memo folder; creates nothing."""
    return any(any(folder.glob(pattern)) for pattern in ("memo.duckdb*", "archive/*", "journal/*"))


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows: those of one of the keys, of one of the models and so on; what is empty does not filter.
    `before`: created earlier than this, in seconds since 1970."""

    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    before: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) not in ((), None) for f in fields(self))

    def where(self) -> tuple[str, list[Any]]:
        """A condition in SQL, and its parameters."""
        conditions = ["true"]
        parameters: list[Any] = []
        for column in ("key", "model", "role", "asset", "partition"):
            if chosen := getattr(self, column + "s"):
                conditions.append(f"{column} IN (SELECT unnest(?::VARCHAR[]))")
                parameters.append(list(chosen))
        if self.before is not None:
            conditions.append("created_at < make_timestamp(?::BIGINT)")
            parameters.append(round(self.before * 1e6))
        return " AND ".join(conditions), parameters


def age_s(text: str) -> float:
    """Seconds of an age like 90d or 36h. Raises ActError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([dh])", text.strip())
    if not match:
        raise ActError(f"{text!r} is not an age", todo="write a number with d (days) or h (hours), for example 90d")
    return float(match[1]) * {"d": 86_400, "h": 3_600}[match[2]]


def portions(connection: duckdb.DuckDBPyConnection, source: str, filters: Filters) -> Iterator[pa.Table]:
    """The rows of `source` (a table, or a query in brackets) that pass, oldest first, a few thousand at a time.

    One sorted query would need the memory, or the disk, for all rows at once.
    """
    condition, parameters = filters.where()
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE chosen AS
          SELECT created_at, id, key,
                 (row_number() OVER (ORDER BY created_at, id, key) - 1) // {PORTION} AS portion
          FROM {source} WHERE {condition}
        """,  # noqa: S608 (names and conditions of ours)
        parameters,
    )
    bounds = connection.execute(
        "SELECT portion, min(created_at), max(created_at) FROM chosen GROUP BY portion ORDER BY portion"
    ).fetchall()
    for portion, first, last in bounds:
        rows = connection.sql(
            f"""
            SELECT {COLUMNS} FROM {source} s
            SEMI JOIN (SELECT key, id FROM chosen WHERE portion = ?) USING (key, id)
            WHERE created_at BETWEEN ? AND ? ORDER BY created_at, id, key
            """,  # noqa: S608 (names of ours)
            params=[portion, first, last],
        )
        yield rows.to_arrow_table().cast(ANSWERS)


def key_in(connection: duckdb.DuckDBPyConnection, prefix: str) -> str:
    """The one key of the memo that begins so. Raises ActError where none or several do."""
    wanted = checked_prefix(prefix)
    rows = connection.execute(
        "SELECT DISTINCT key FROM (SELECT key FROM current_answers UNION ALL SELECT key FROM past_answers) "
        "WHERE starts_with(key, ?) ORDER BY key LIMIT 5",
        [wanted],
    ).fetchall()
    return the_one([row[0] for row in rows], prefix, "look at act memo stats; act memo why-miss explains a question")


def checked_prefix(prefix: str) -> str:
    """A key or the beginning of one, in small letters. Raises ActError where it cannot be one."""
    wanted = prefix.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", wanted):
        raise ActError(f"{prefix!r} is not a key", todo=f"give {MIN_PREFIX} to 64 hex digits: a key or its beginning")
    return wanted


def the_one(keys: list[str], prefix: str, todo: str) -> str:
    """The only one of the keys that were found. Raises ActError where there are none or several."""
    if not keys:
        raise ActError(f"no key begins with {prefix}", todo=todo)
    if len(keys) > 1:
        named = ", ".join(key[:16] for key in keys[:4]) + (" ..." if len(keys) > 4 else "")
        raise ActError(f"several keys begin with {prefix}: {named}", todo="give more digits")
    return keys[0]
