"""Journals: where an answer becomes durable, before anyone uses it.

Every process appends to a file of its own, `journal/<ms>-<pid>-<random>.jsonl`, one line per record: the CRC-32 of
the JSON (8 hex digits), a space, the JSON. While a process writes to its journal it holds a lock (flock) on it,
which dies with the process; a journal without a lock is finished and may be folded into the database by anyone.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resources.errors import ActError
from resources.files import sync
from resources.llm.memo.records import Record, canonical, from_json, to_json

SUFFIX = ".jsonl"


def to_line(record: Record) -> bytes:
    """A record as a journal line."""
    text = canonical(to_json(record)).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def from_line(line: bytes) -> Record:
    """The record of a whole line. Raises ValueError where the line is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if b"%08x" % zlib.crc32(text) != checksum:
        raise ValueError("the checksum does not match")
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError(f"a {type(raw).__name__}, not an object")
    return from_json(raw)


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a journal that cannot be read: `torn` is a last line that was never finished."""

    file: str
    offset: int
    torn: bool
    why: str

    def __str__(self) -> str:
        what = "a torn last line (the write was cut off; that answer was not used)" if self.torn else "a damaged line"
        return f"{self.file}, byte {self.offset}: {what}: {self.why}"


def read_journal(path: Path, offset: int = 0) -> tuple[list[Record], int, list[Damage]]:
    """Whole records from `offset` on, the offset after the last whole line, and what could not be read."""
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    records: list[Record] = []
    damage: list[Damage] = []
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        try:
            records.append(from_line(content[start:end]))
        except (ValueError, TypeError) as error:
            damage.append(Damage(path.name, offset + start, False, str(error)))
        start = end + 1
    if start < len(content):
        damage.append(Damage(path.name, offset + start, True, f"{len(content) - start} bytes without a line end"))
    return records, offset + start, damage


class Journal:
    """The journal that one process writes; created with the first record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path | None = None
        self.records = 0
        self._descriptor = -1
        self.size = 0  # bytes

    def append(self, lines: Sequence[bytes]) -> None:
        """Writes lines and returns when they are on disk. Raises ActError where the disk does not take them;
        the journal is then as it was."""
        if not lines:
            return
        try:
            if self._descriptor < 0:
                self._create()
            content = b"".join(lines)
            view = memoryview(content)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor) if hasattr(os, "fdatasync") else os.fsync(self._descriptor)
        except OSError as error:
            if self._descriptor >= 0:
                os.ftruncate(self._descriptor, self.size)
            raise ActError(
                f"{len(lines)} answers could not be written to the memo: {error}",
                where=str(self.path or self.folder),
                todo="free disk space and run again; everything written before is kept",
            ) from error
        self.size += len(content)
        self.records += len(lines)

    def seal(self) -> Path | None:
        """Ends this journal, so that it can be folded; the next record starts another."""
        path, self.path, self.records, self.size = self.path, None, 0, 0
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        return path

    def _create(self) -> None:
        name = f"{time.time_ns() // 1_000_000}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        beside = self.folder / f"{name}.new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Locked before it has its name: whoever lists journals never sees one of a live process unlocked.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            beside.rename(self.folder / f"{name}{SUFFIX}")
            sync(self.folder)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self.path = descriptor, self.folder / f"{name}{SUFFIX}"


def journals(folder: Path) -> list[Path]:
    """Every journal, oldest first."""
    return sorted(p for p in folder.glob(f"*{SUFFIX}"))


@contextmanager
def finished(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Those journals that no process writes to any more, held so until the end of the block."""
    held: list[tuple[Path, int]] = []
    try:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            if not _names(path, descriptor):  # folded and deleted by another process before the lock was ours
                os.close(descriptor)
                continue
            held.append((path, descriptor))
        yield [path for path, _ in held]
    finally:
        for _, descriptor in held:
            os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
