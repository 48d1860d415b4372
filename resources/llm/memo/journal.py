"""Journals: where an answer becomes durable, before anyone uses it.

Every process appends to a file of its own, `journal/<ms>-<pid>-<random>.jsonl`, one line per
record: the CRC-32 of the JSON (8 hex digits), a space, the JSON. While a process writes to its
journal it holds a lock (flock) on it, which dies with the process; a journal without a lock is
finished and may be folded into the database by anyone.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from resources.errors import ActError
from resources.files import sync
from resources.llm.memo.records import Answer, Record, Stored, canonical, from_json, to_json

SUFFIX = ".jsonl"
_KEY = b'"key":"'  # a quote inside a JSON text is escaped, so this is the field of the record and nothing else
_KEY_LENGTH = 64
_COARSE_S = 0.1  # a folder changed more recently may change again without another time stamp


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
        """Writes lines and returns when they are on disk. Raises ActError where the disk does not
        take them; the journal is then as it was."""
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

    def seal(self) -> None:
        """Ends this journal, so that it can be folded; the next record starts another."""
        self.path, self.records, self.size = None, 0, 0
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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
    return sorted(folder.glob(f"*{SUFFIX}"))


def records_in(folder: Path) -> list[Record]:
    """The records of every journal that can be read."""
    found: list[Record] = []
    for path in journals(folder):
        with suppress(FileNotFoundError):  # folded meanwhile
            found += read_journal(path)[0]
    return found


@contextmanager
def finished(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Those journals that no process writes to any more, held so until the end of the block."""
    with ExitStack() as held:
        free: list[Path] = []
        for path in paths:
            with suppress(FileNotFoundError, BlockingIOError):
                stream = held.enter_context(path.open("rb"))
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Else folded and deleted by another process before the lock was ours.
                if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                    free.append(path)
        yield free


def newest(*found: Stored | None) -> Stored | None:
    """The newest of several answers to one question; None where there is none."""
    return max((s for s in found if s), key=lambda s: s.created_at, default=None)


class OtherJournals:
    """What has been answered and is not folded yet, in the journals of all processes but one's own.

    Looking again is cheap, for it is done before every call: a stat of the folder and of each
    journal, and what has been added is scanned for keys only. An answer is read when it is asked
    for. Not safe for threads: the memo calls it under its lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, _OpenJournal] = {}
        self._listed_at = -1  # the folder's time stamp (ns) when it was listed, where that can be trusted

    def refresh(self, own: Path | None) -> None:
        """Looks for new journals, new lines and journals that are gone; `own` is this process's."""
        now, changed_at = time.time(), self.folder.stat().st_mtime_ns
        if changed_at != self._listed_at:
            names = {n for n in os.listdir(self.folder) if n.endswith(SUFFIX) and (not own or n != own.name)}
            for gone in self._open.keys() - names:
                self._open.pop(gone).close()
            for new in names - self._open.keys():
                try:
                    self._open[new] = _OpenJournal(self.folder / new)
                except FileNotFoundError:  # folded meanwhile: the database has it
                    continue
            self._listed_at = changed_at if now - changed_at / 1e9 > _COARSE_S else -1
        for journal in self._open.values():
            journal.read()

    def list_again(self) -> None:
        """A journal of this process has become one of the others."""
        self._listed_at = -1

    def get(self, key: str) -> Stored | None:
        """The newest unfolded answer of a key."""
        return newest(*(journal.get(key) for journal in self._open.values()))


class _OpenJournal:
    """One journal: where the answer of each key is. The open file outlives its deletion."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = 0
        self._places: dict[str, tuple[int, int]] = {}

    def read(self) -> None:
        size = os.fstat(self._descriptor).st_size
        # Where it does not look like a journal, its disk was full: cut back since, and perhaps written over.
        if size != self._offset and not self._scan(size) and self._offset:
            self._offset, self._places = 0, {}
            self._scan(size)

    def _scan(self, size: int) -> bool:
        """Notes what has been added; False where that does not look like the lines of a journal."""
        content = os.pread(self._descriptor, max(0, size - self._offset), self._offset)
        start, sound = 0, size > self._offset
        while (end := content.find(b"\n", start)) >= 0:
            field = content.find(_KEY, start, end)
            if content[start : start + 8] != b"%08x" % zlib.crc32(content[start + 9 : end]):
                sound = False
            elif field >= 0:
                key = content[field + len(_KEY) : field + len(_KEY) + _KEY_LENGTH].decode("ascii", "replace")
                self._places[key] = (self._offset + start, end - start)
            start = end + 1
        if sound or not self._offset:
            self._offset += start
        return sound

    def get(self, key: str) -> Stored | None:
        if key not in self._places:
            return None
        offset, length = self._places[key]
        try:
            record = from_line(os.pread(self._descriptor, length, offset))
        except ValueError:  # cut back since
            return None
        return record.stored() if isinstance(record, Answer) else None

    def close(self) -> None:
        os.close(self._descriptor)
