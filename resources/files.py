"""Files and folders that are whole and on disk, or not there; and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when a file's content is on disk; of a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Returns when a folder and everything below it is on disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A path to write to; at the end of the block it becomes `path`. Of a failure nothing is left.

    `mode` (before the umask) keeps a private file private from its first byte.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield beside
        sync(beside)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end of the block it becomes `folder`, which must not be there or be empty.

    Of a failure nothing is left. Raises OSError where `folder` holds something.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        yield beside
        sync_tree(beside)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(folder.parent)


@contextmanager
def locked(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this block has the lock, which no other process has then; it ends with the block or the process.

    With `wait`, always: it waits until the lock is free.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
