"""The files that everything starts from, and their hashes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resources.errors import DataError

if TYPE_CHECKING:
    from act_assets.tasks.base import Task

_CHUNK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A source file, decompressed: `git_blob` is what `git hash-object` prints for it, as catalogues publish."""

    name: str
    bytes: int
    sha256: str
    git_blob: str


def find_file(task: str, folder: Path, name: str) -> Path:
    """A file of the official release in a folder, plain or .gz. Raises DataError where it is missing."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"dataset file {name} is missing",
        where=f"task {task}, folder {folder}",
        todo=f"put the official {name} there (act data fetch {task})"
        + (", or unset ACT_DATA_DIR to use the bundled sample" if os.environ.get("ACT_DATA_DIR") else ""),
    )


def source_files(task: Task, folder: Path) -> dict[str, Path]:
    """All files of a task in a folder, by the name that they have in the official release."""
    named = {name: find_file(task.name, folder, name) for name in task.reader.files}
    return named | {name: find_file(task.name, folder, name) for name in task.reader.further_files(folder)}


def git_blob(stream: IO[bytes] | gzip.GzipFile, size: int) -> str:
    """What `git hash-object` prints for the `size` bytes that a stream has to give; closes it."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def file_record(path: Path, name: str = "") -> tuple[FileRecord, bytes]:
    """A file's record and its decompressed content. Raises DataError where it cannot be read."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"dataset file cannot be read: {error}",
            where=str(path),
            todo="the file is truncated or damaged; fetch it again",
        ) from error
    blob = git_blob(io.BytesIO(content), len(content))
    name = name or path.name.removesuffix(".gz")
    return FileRecord(name, len(content), hashlib.sha256(content).hexdigest(), blob), content
