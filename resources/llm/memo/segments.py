"""The memo's archive: Parquet files that are written once, and merged when they are many.

archive/<kind>-<ms>-<random>.parquet    rows of `answers` or `uses`, as they were folded in
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from resources.files import atomic_file
from resources.llm.memo.records import LATER
from resources.llm.memo.schema import SCHEMAS

LOG = logging.getLogger(__name__)
SMALL_SEGMENT = 8 * 2**20  # bytes; smaller ones are merged when there are MANY_SEGMENTS of them
MANY_SEGMENTS = 32
BATCH_BYTES, BATCH_ROWS = 32 * 2**20, 50_000  # that are read at a time
NOT_A_SEGMENT = (OSError, pa.ArrowException, ValueError)  # ValueError: other columns


class Archive:
    """The segments of a memo folder. Whoever writes holds the memo's exclusive lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __bool__(self) -> bool:
        return any(self.folder.glob("*.parquet"))

    def segments(self, kind: str) -> list[Path]:
        """The files of `answers` or `uses`, oldest first."""
        return sorted(self.folder.glob(f"{kind}-*.parquet"))

    def new_segment(self, kind: str) -> Path:
        """A name for another segment."""
        return self.folder / f"{kind}-{time.time_ns() // 1_000_000}-{uuid.uuid4().hex[:8]}.parquet"

    def add(self, kind: str, *tables: pa.Table) -> Path:
        """Writes another segment, durably."""
        path = self.new_segment(kind)
        write_tables(path, SCHEMAS[kind], tables)
        return path

    def read(self, kind: str) -> Iterator[pa.Table]:
        """All rows, in batches; what cannot be read is logged and left out."""
        for path in self.segments(kind):
            faults: list[str] = []
            yield from readable(path, kind, faults)
            for fault in faults[:1]:
                LOG.warning("a segment of the memo's archive cannot be read: %s: %s", path, fault)

    def merge_small(self) -> None:
        """Makes one of many small segments; one that cannot be read in full stays as it is."""
        for kind in SCHEMAS:
            small = [p for p in self.segments(kind) if p.stat().st_size < SMALL_SEGMENT]
            if len(small) < MANY_SEGMENTS:
                continue
            merged: list[Path] = []
            together = self.new_segment(kind)
            write_tables(together, SCHEMAS[kind], _whole(small, kind, merged))
            for path in merged or [together]:
                path.unlink()


def _whole(segments: Iterable[Path], kind: str, done: list[Path]) -> Iterator[pa.Table]:
    """The tables of those segments that can be read in full; `done` says which they are."""
    for path in segments:
        faults: list[str] = []
        tables = list(readable(path, kind, faults))
        for fault in faults[:1]:
            LOG.warning("a segment of the memo's archive cannot be read: %s: %s", path, fault)
        if not faults:
            done.append(path)
            yield from tables


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def batches(path: Path, schema: pa.Schema) -> Iterator[tuple[range, pa.Table | Exception]]:
    """A file's rows by their numbers from 1, a bounded part at a time; of a row group the rows that
    cannot be read, with the reason. Raises one of NOT_A_SEGMENT for a file without a footer."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    row_bytes = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    rows = int(min(max(BATCH_BYTES / max(row_bytes, 1.0), 100), BATCH_ROWS))
    first = 1
    for number, group in enumerate(groups):
        end = first + group.num_rows
        try:
            for batch in file.iter_batches(rows, row_groups=[number]):
                table = _with_later(pa.Table.from_batches([batch]), schema).select(schema.names).cast(schema)
                yield range(first, first + table.num_rows), table
                first += table.num_rows
        except (*NOT_A_SEGMENT, KeyError) as error:
            yield range(first, end), error
        first = end


def _with_later(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the columns that came after it was written."""
    for name in LATER.keys() & set(schema.names) - set(table.column_names):
        kind = schema.field(name).type
        table = table.append_column(name, pa.repeat(pa.scalar(LATER[name], kind), table.num_rows))
    return table


def readable(path: Path, kind: str, faults: list[str]) -> Iterator[pa.Table]:
    """What can be read of a segment, in batches; what cannot is told in `faults`."""
    try:
        for _, found in batches(path, SCHEMAS[kind]):
            if isinstance(found, Exception):
                faults.append(first_line(found))
            else:
                yield found
    except NOT_A_SEGMENT as error:
        faults.append(first_line(error))


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """A Parquet file, whole or not at all, on disk on return, mode 0600; one table in memory."""
    with (
        atomic_file(path, mode=0o600) as beside,
        pq.ParquetWriter(beside, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table)
