"""Who is asking what: one byte of `flights.lock` a question, locked while a process asks it.

The lock (fcntl, a byte range at an offset from the key) dies with its process, so a killed process blocks nobody.
Within a process the caller sees to it that a question is asked once; these locks are between processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


class KeyLocks:
    """The byte-range locks of one process. The file stays open: closing it would release every lock."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, key: str) -> bool:
        """Whether this process may ask the question now; False while another process asks it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # by platform
                raise
            return False
        return True

    def release(self, key: str) -> None:
        """Lets others ask it."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _offset(key))


def _offset(key: str) -> int:
    return int(key[:15], 16)  # 60 bits; two questions at one offset would wait for each other, no more
