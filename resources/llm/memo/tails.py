"""What has been answered and is not folded yet, in the journals of all processes but one's own.

Looking again is cheap, for it is done before every call: a stat of the folder and of each journal, and what has been
added is scanned for keys only. An answer is read when it is asked for.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

from resources.llm.memo.database import Stored
from resources.llm.memo.journal import SUFFIX, from_line
from resources.llm.memo.records import Answer

_KEY = b'"key":"'  # a quote inside a JSON text is escaped, so this is the field of the record and nothing else
_KEY_LENGTH = 64
_COARSE_S = 0.1  # a folder changed more recently may change again without another time stamp


class Tails:
    """The unfolded journals of a folder. Not safe for threads: the memo calls it under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tails: dict[str, _Tail] = {}
        self._listed_at = -1  # the folder's time stamp (ns) when it was listed, where that can be trusted

    def refresh(self, own: str | None) -> None:
        """Looks for new journals, new lines and journals that are gone; `own` is the name of this process's."""
        now, changed_at = time.time(), self.folder.stat().st_mtime_ns
        if changed_at != self._listed_at:
            names = {n for n in os.listdir(self.folder) if n.endswith(SUFFIX) and n != own}
            for gone in self._tails.keys() - names:
                self._tails.pop(gone).close()
            for new in names - self._tails.keys():
                try:
                    self._tails[new] = _Tail(self.folder / new)
                except FileNotFoundError:  # folded meanwhile: the database has it
                    continue
            self._listed_at = changed_at if now - changed_at / 1e9 > _COARSE_S else -1
        for tail in self._tails.values():
            tail.read()

    def list_again(self) -> None:
        """A journal of this process has become one of the others."""
        self._listed_at = -1

    def get(self, key: str) -> Stored | None:
        """The newest unfolded answer of a key."""
        found = [s for tail in self._tails.values() if (s := tail.get(key)) is not None]
        return max(found, key=lambda s: s.created_at, default=None)

    def close(self) -> None:
        """Lets go of the files."""
        for tail in self._tails.values():
            tail.close()
        self._tails = {}
        self._listed_at = -1


class _Tail:
    """One journal: where the answer of each key is. The open file outlives its deletion."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = 0
        self._places: dict[str, tuple[int, int]] = {}

    def read(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size == self._offset:
            return
        if not self._scan(size) and self._offset:  # its disk was full: cut back since, and perhaps written over
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
        return Stored.of(record) if isinstance(record, Answer) else None

    def close(self) -> None:
        os.close(self._descriptor)
