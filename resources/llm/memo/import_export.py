"""Answers as a file, to share what was paid for: Parquet, or one JSON object per line.

Prompts and answers are in the file in clear, and so is who asked (asset, partition, run, label).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import ActError
from resources.files import atomic_file
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import LARGEST, LATER, Answer, canonical, from_json, key_of, storable, to_json
from resources.llm.memo.report import Filters, consult, portions
from resources.llm.memo.schema import ANSWERS, answers_of
from resources.llm.memo.segments import batches, first_line, write_tables

BATCH_ROWS, BATCH_BYTES = 20_000, 32 * 2**20  # of one fold: each opens the database again
NAMED = 10  # rejected rows that are listed
EXPORT_AGAIN = "export it again"
CLOCKS_S = 86_400.0  # how far ahead of ours another machine's clock may be


@dataclass(frozen=True, slots=True)
class Exported:
    """How many answers and earlier answers a file has, and its size in bytes."""

    answers: int = 0
    history: int = 0
    bytes: int = 0


def export(memo: Memo, path: Path, filters: Filters, history: bool = False) -> Exported:
    """Writes the answers that pass to `path` (.parquet or .jsonl), oldest first, whole or not at
    all, mode 0600; with `history` also those that a later one replaced.

    **Prompts and answers are in the file in clear.** Raises ActError where the file cannot be
    written.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise ActError(f"cannot export to {path.name}", where=str(path), todo="end the name with .parquet or .jsonl")

    def ask(connection: duckdb.DuckDBPyConnection) -> Exported:
        counts = {"current_answers": 0, "past_answers": 0}

        def tables() -> Iterator[pa.Table]:
            for source in counts if history else ["current_answers"]:
                for table in portions(connection, source, filters):
                    counts[source] += table.num_rows
                    yield table

        write_answers(path, tables())
        return Exported(counts["current_answers"], counts["past_answers"], path.stat().st_size)

    return consult(memo, ask)


def write_answers(path: Path, tables: Iterable[pa.Table]) -> None:
    """A file of answers, one table at a time in memory. Raises ActError where it cannot be written."""
    try:
        if path.suffix == ".parquet":
            write_tables(path, ANSWERS, tables)
        else:
            with atomic_file(path, mode=0o600) as beside, beside.open("wb") as stream:
                for table in tables:
                    stream.writelines(canonical(to_json(a)).encode("ascii") + b"\n" for a in answers_of(table))
    except OSError as error:
        raise ActError(
            f"a file of answers cannot be written: {error}", where=str(path), todo="free disk space, or choose another"
        ) from error


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's rows: new and current now, there already, new but older than what is
    there, unsound. `reasons`: the first unsound ones."""

    added: int = 0
    present: int = 0
    to_history: int = 0
    rejected: int = 0
    reasons: tuple[str, ...] = ()


def import_(memo: Memo, path: Path) -> Imported:
    """Adds a file's answers to the memo, durably, batch by batch. Every row is checked, its key
    computed again.

    Rows that are not sound are left out and counted. Raises ActError for a file that is not of
    answers, or of which the rest cannot be read; what came before is kept.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise ActError(f"cannot import {path.name}", where=str(path), todo="give a .parquet or .jsonl file")
    rejected: list[str] = []
    counts = {"added": 0, "present": 0, "to_history": 0}
    for batch in _batches(_rows(path), rejected):
        new = {(a.key, a.id) for a in batch}
        before = _there(memo, new, "SELECT key, id FROM answers UNION ALL SELECT key, id FROM history")
        memo.database.fold(batch, [])
        current = _there(memo, new, "SELECT key, id FROM answers")
        counts["present"] += len(batch) - len(new - before)
        counts["added"] += len((new - before) & current)
        counts["to_history"] += len(new - before - current)
    return Imported(**counts, rejected=len(rejected), reasons=tuple(r for r in rejected if r))


def _batches(rows: Iterator[tuple[str, Any]], rejected: list[str]) -> Iterator[list[Answer]]:
    """The sound rows; `rejected` gets an entry for each other one, which says why for the first of them."""
    batch: list[Answer] = []
    size = 0
    try:
        for where, row in rows:
            try:
                batch.append(sound(row))
            except (ValueError, RecursionError) as error:
                rejected.append(f"{where}: {error}" if len(rejected) < NAMED else "")
                continue
            size += len(batch[-1].question) + len(batch[-1].text)
            if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except ActError:  # the rest of the file cannot be read
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _there(memo: Memo, wanted: set[tuple[str, str]], rows: str) -> set[tuple[str, str]]:
    pairs = sorted(wanted)
    sql = f"SELECT key, id FROM ({rows}) SEMI JOIN (SELECT unnest(?) AS key, unnest(?) AS id) USING (key, id)"  # noqa: S608
    return {(key, id_) for key, id_ in memo.database.query(sql, [[k for k, _ in pairs], [i for _, i in pairs]])}


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row is, and the row: a line of JSON, a mapping, or why it cannot be read."""
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as stream:
                yield from ((f"line {n}", line) for n, line in enumerate(stream, start=1) if line.strip())
            return
        names = set(pq.read_schema(path).names)
        found = batches(path, ANSWERS)
        if wrong := ", ".join(sorted((names ^ set(ANSWERS.names)) - LATER.keys())):
            raise ActError(f"not a file of answers: missing or unknown: {wrong}", where=str(path), todo=EXPORT_AGAIN)
        for numbers, table in found:
            if isinstance(table, Exception):
                for number in numbers:
                    yield f"row {number}", ValueError(f"cannot be read: {first_line(table)}")
                continue
            created = [None if us is None else us / 1e6 for us in table["created_at"].cast(pa.int64()).to_pylist()]
            for number, row, at in zip(numbers, table.drop(["created_at"]).to_pylist(), created, strict=True):
                yield f"row {number}", {"kind": "answer", **row, "created_at": at}
    except (OSError, pa.ArrowException) as error:
        raise ActError(f"a file of answers cannot be read: {error}", where=str(path), todo=EXPORT_AGAIN) from error


def sound(row: Any) -> Answer:
    """The answer of a row of a file: a line of JSON, or a mapping. Raises ValueError that says why it is none."""
    if isinstance(row, Exception):
        raise row
    if isinstance(row, bytes):
        row = json.loads(row, parse_constant=_no_number)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    answer = from_json(row)
    if not isinstance(answer, Answer):
        raise ValueError("a record of hits and failures, not an answer")
    for name, value in asdict(answer).items():  # what the database cannot hold, and what cannot be true
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{name} has a lone surrogate") from None
        elif value is not None and not 0 <= value <= LARGEST:
            raise ValueError(f"{name} is {value}")
    if answer.created_at > time.time() + CLOCKS_S:
        raise ValueError("created in the future")
    if answer.finish_reason != "stop":
        raise ValueError(f"not a whole answer: finish_reason is {answer.finish_reason}")
    if not answer.question.isascii() or key_of(answer.question) != answer.key:
        raise ValueError("the key is not that of the question")
    question = json.loads(answer.question)
    if not isinstance(question, dict):
        raise ValueError("the question is not a JSON object")
    for name in ("provider", "base_url", "model", "sample_index"):
        asked, stated = question.get(name), getattr(answer, name)
        if isinstance(asked, str):  # the database cannot hold a lone surrogate, JSON can
            asked = storable(asked)
        if asked != stated:
            raise ValueError(f"{name} is {stated!r}, in the question {asked!r}")
    return answer


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
