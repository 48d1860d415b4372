"""Compares the memo's archive with its database, and makes one whole from the other; all under the exclusive lock,
or, to compare only, under the shared one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from resources.files import sync
from resources.llm.memo.database import Database, write_parquet
from resources.llm.memo.import_export import write_answers
from resources.llm.memo.records import USE_FIELDS, Record, Use
from resources.llm.memo.schema import ANSWERS, USES
from resources.llm.memo.view import COLUMNS, Filters, first_line, portions

BATCH = 10_000  # rows
SCHEMAS = {"answers": ANSWERS, "uses": USES}
NOT_A_SEGMENT = (OSError, pa.ArrowException, ValueError)

# Every row of the database, by kind, with the names of the archive's columns.
HELD = {
    "answers": f"(SELECT {COLUMNS} FROM answers UNION ALL SELECT {COLUMNS} FROM history)",  # noqa: S608 (our names)
    "uses": f"(SELECT {', '.join(USE_FIELDS)} FROM uses)",  # noqa: S608 (our names)
}
_IDENTITY = {"answers": "key, id", "uses": "'' AS key, id"}
_MATCH = {"answers": "key, id", "uses": "id"}
_EMPTY = {"answers": ANSWERS.empty_table(), "uses": USES.empty_table()}


@dataclass(frozen=True, slots=True)
class Survey:
    """What the archive of one kind of rows has. `damaged` segments with why they cannot be read in full; `unarchived`
    rows are only in the database, `unknown` ones only in the archive, and those that `differ` are in both with other
    content."""

    kind: str
    sound: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...]
    rows: int
    unarchived: int
    unknown: int
    differ: int


def survey(
    connection: duckdb.DuckDBPyConnection, database: Database, kind: str, unfolded: Sequence[Record] = ()
) -> Survey:
    """Reads the whole archive of `answers` or `uses`. Rows of `unfolded` records are not missed in the database: they
    are folded in again. Leaves temporary tables `unarchived_<kind>` and `unknown_<kind>` (key, id)."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE archived (key VARCHAR, id VARCHAR, content UBIGINT, sound BOOLEAN, part INTEGER)"
    )
    sound: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for part, path in enumerate(database.segments(kind)):
        faults: list[str] = []
        for table in readable(path, kind, faults):
            connection.register("batch", table)
            connection.execute(f"INSERT INTO archived SELECT {_IDENTITY[kind]}, hash(b), true, ? FROM batch b", [part])  # noqa: S608
            connection.unregister("batch")
        if faults:
            connection.execute("UPDATE archived SET sound = false WHERE part = ?", [part])
            damaged.append((path, faults[0]))
        else:
            sound.append(path)
    wanted = [(r.id if isinstance(r, Use) else r.key + r.id) for r in unfolded]
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE held AS SELECT {_IDENTITY[kind]}, hash(h) AS content FROM {HELD[kind]} h;
        CREATE OR REPLACE TEMP TABLE unarchived_{kind} AS
          SELECT key, id FROM held ANTI JOIN (SELECT key, id FROM archived WHERE sound) USING (key, id);
        """  # noqa: S608 (our names)
    )
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE unknown_{kind} AS
          SELECT DISTINCT key, id FROM archived ANTI JOIN held USING (key, id)
          WHERE key || id NOT IN (SELECT unnest(?::VARCHAR[]))
        """,  # noqa: S608 (our names)
        [wanted],
    )
    counts = connection.execute(
        f"""
        SELECT (SELECT count(*) FROM (SELECT DISTINCT key, id FROM archived)),
               (SELECT count(*) FROM unarchived_{kind}), (SELECT count(*) FROM unknown_{kind}),
               (SELECT count(*) FROM archived a JOIN held h USING (key, id) WHERE a.content <> h.content)
        """  # noqa: S608 (our names)
    ).fetchall()[0]
    connection.execute("DROP TABLE archived; DROP TABLE held")
    return Survey(kind, tuple(sound), tuple(damaged), *counts)


def readable(path: Path, kind: str, faults: list[str]) -> Iterator[pa.Table]:
    """What can be read of a segment, in batches; what cannot is told in `faults`."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except NOT_A_SEGMENT as error:
        faults.append(first_line(error))
        return
    for group in range(file.num_row_groups):
        batches = file.iter_batches(BATCH, row_groups=[group])
        while True:
            try:
                table = pa.Table.from_batches([next(batches)]).cast(SCHEMAS[kind])
            except StopIteration:
                break
            except NOT_A_SEGMENT as error:
                faults.append(first_line(error))
                break
            yield table


def fold_unknown(connection: duckdb.DuckDBPyConnection, database: Database, found: Survey) -> int:
    """Adds to the database what only the archive has, damaged segments included as far as they can be read; returns
    how many rows. An answer whose key is not that of its question is left out."""
    kind, added = found.kind, 0
    names, sane = ", ".join(SCHEMAS[kind].names), "sha256(question) = key" if kind == "answers" else "true"
    segments = [*found.sound, *(path for path, _ in found.damaged)] if found.unknown else []
    for path in segments:
        for table in readable(path, kind, []):
            connection.register("batch", table)
            unknown = connection.sql(
                f"SELECT {names} FROM batch SEMI JOIN unknown_{kind} USING ({_MATCH[kind]}) WHERE {sane}"  # noqa: S608
            ).to_arrow_table()
            connection.unregister("batch")
            if unknown.num_rows:
                rows = {**_EMPTY, kind: unknown.cast(SCHEMAS[kind])}
                database.insert(connection, rows["answers"], rows["uses"])
                added += unknown.num_rows
    return added


def set_aside(folder: Path) -> list[Path]:
    """The files that were damaged and have been kept beside."""
    patterns = ("memo.duckdb*.damaged-*", "journal/*.damaged", "archive/*.damaged")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def archive_again(connection: duckdb.DuckDBPyConnection, database: Database, found: Survey) -> int:
    """Writes a segment with what only the database has; returns how many rows."""
    if not found.unarchived:
        return 0
    source = f"(SELECT * FROM {HELD[found.kind]} SEMI JOIN unarchived_{found.kind} USING ({_MATCH[found.kind]}))"  # noqa: S608
    _write(connection, database, found.kind, source)
    return found.unarchived


def write_anew(connection: duckdb.DuckDBPyConnection, database: Database, found: Survey) -> None:
    """Makes one segment of all that the database has, and then removes the others; what is damaged is set aside.

    Cut off between the two, it leaves rows twice, which does no harm.
    """
    _write(connection, database, found.kind, HELD[found.kind])
    for path, _ in found.damaged:
        path.rename(path.with_name(path.name + ".damaged"))
    for path in (*found.sound, *database.archive.glob(f".{found.kind}-*")):  # the latter were never finished
        path.unlink()
    sync(database.archive)


def _write(connection: duckdb.DuckDBPyConnection, database: Database, kind: str, source: str) -> None:
    if not connection.execute(f"SELECT 1 FROM {source} LIMIT 1").fetchall():  # noqa: S608 (our names)
        return
    path = database.segment_path(kind)
    if kind == "answers":
        write_answers(path, portions(connection, source, Filters()))
    else:
        write_parquet(path, connection.sql(f"SELECT * FROM {source} ORDER BY noted_at, id").to_arrow_table().cast(USES))  # noqa: S608
