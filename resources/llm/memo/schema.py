"""The database's tables, as numbered migrations: each adds to what is there, and none deletes a paid answer.

`answers` holds the current answer of every key, `history` those that a later one replaced (asked
again in mode `refresh`, or paid twice), `uses` the hits and failures. Keys are unique by the way
rows are folded in, under a lock; an index would cost memory and writing speed, and batched look-ups
are as fast without (docs/benchmarks.md).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields

import duckdb
import pyarrow as pa

from resources.errors import ActError
from resources.llm.memo.records import Answer, Record, Use

_ANSWER_COLUMNS = """
  id VARCHAR NOT NULL, key VARCHAR NOT NULL, question VARCHAR NOT NULL, provider VARCHAR NOT NULL,
  base_url VARCHAR NOT NULL, model VARCHAR NOT NULL, sample_index BIGINT NOT NULL, role VARCHAR NOT NULL,
  label VARCHAR NOT NULL, asset VARCHAR NOT NULL, partition VARCHAR NOT NULL, run VARCHAR NOT NULL,
  budget VARCHAR NOT NULL, text VARCHAR NOT NULL, finish_reason VARCHAR NOT NULL, reported_model VARCHAR NOT NULL,
  prompt_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, latency_s DOUBLE NOT NULL, cost_usd DOUBLE,
  created_at TIMESTAMP NOT NULL
"""

MIGRATIONS: tuple[str, ...] = (
    f"""
    CREATE TABLE answers ({_ANSWER_COLUMNS});
    CREATE TABLE history ({_ANSWER_COLUMNS});
    CREATE TABLE uses (
      id VARCHAR NOT NULL, noted_at TIMESTAMP NOT NULL, provider VARCHAR NOT NULL, base_url VARCHAR NOT NULL,
      model VARCHAR NOT NULL, role VARCHAR NOT NULL, asset VARCHAR NOT NULL, partition VARCHAR NOT NULL,
      run VARCHAR NOT NULL, budget VARCHAR NOT NULL, hits BIGINT NOT NULL, saved_prompt_tokens BIGINT NOT NULL,
      saved_output_tokens BIGINT NOT NULL, saved_usd DOUBLE NOT NULL, failures BIGINT NOT NULL,
      lost_calls BIGINT NOT NULL,
      lost_prompt_tokens BIGINT NOT NULL, lost_output_tokens BIGINT NOT NULL, lost_usd DOUBLE NOT NULL
    );
    """,
    "".join(
        f"ALTER TABLE {table} ADD COLUMN {column};"
        for table in ("answers", "history")
        for column in (
            "thoughts VARCHAR DEFAULT ''",
            "thinking_tokens BIGINT DEFAULT 0",
            "cached_tokens BIGINT DEFAULT 0",
        )
    ),
)


def migrate(connection: duckdb.DuckDBPyConnection, where: str, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Brings a database to the newest schema, each step in a transaction of its own.

    Raises ActError for a database that a newer version of this package has written; it stays as it is.
    """
    version = schema_version(connection)
    if version > len(migrations):
        raise ActError(
            f"the memo has schema {version}, and this version knows {len(migrations)}",
            where=where,
            todo="upgrade this package, or point ACT_HOME to another folder; nothing was changed",
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        with transaction(connection):
            connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
            connection.execute(statements)
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (?)", [number])


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """What the block does to the database, all of it or nothing."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a damaged database cannot even do that
            connection.execute("ROLLBACK")
        raise


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the last migration that a database has had; 0 for a new one."""
    tables = "SELECT 1 FROM duckdb_tables() WHERE (database_name, table_name) = (current_database(), 'schema_version')"
    if not connection.execute(tables).fetchall():
        return 0
    rows = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchall()
    return int(rows[0][0])


_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "float | None": pa.float64()}
TIMES = ("created_at", "noted_at")


def _schema(record: type) -> pa.Schema:
    return pa.schema([(f.name, pa.timestamp("us") if f.name in TIMES else _ARROW[str(f.type)]) for f in fields(record)])


ANSWERS = _schema(Answer)
USES = _schema(Use)
SCHEMAS = {"answers": ANSWERS, "uses": USES}  # by kind of row


def to_arrow(records: Sequence[Record], schema: pa.Schema) -> pa.Table:
    """Records as a table; times become microseconds."""
    columns = []
    for column in schema:
        values = [getattr(r, column.name) for r in records]
        if column.name in TIMES:
            values = [round(v * 1e6) for v in values]
        columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def answers_of(table: pa.Table) -> list[Answer]:
    """A table of answers as records."""
    rows = table.to_pylist()
    return [Answer(**{**r, "created_at": r["created_at"].replace(tzinfo=datetime.UTC).timestamp()}) for r in rows]
