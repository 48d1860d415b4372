"""Official files: finding and reading them, and their hashes. Errors name the file, and the reader adds the item."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from act_assets.conversation import Conversation
from resources.errors import DataError

if TYPE_CHECKING:
    from act_assets.tasks.base import Task

T = TypeVar("T", str, list[Any], dict[str, Any])
_JSON_NAMES: dict[type, str] = {str: "string", list: "list", dict: "mapping"}
AGAIN = "fetch the official file again"


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
    names = (*task.reader.files, *task.reader.further_files(folder))
    return {name: find_file(task.name, folder, name) for name in names}


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
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    name = name or path.name.removesuffix(".gz")
    return FileRecord(name, len(content), hashlib.sha256(content).hexdigest(), blob), content


def read_items(task: str, path: Path, key: str = "") -> list[Any]:
    """The items of a JSON file, plain or .gz: a list that holds something, or the mapping's `key` has one.

    Raises DataError where it cannot be read.
    """
    _, text = file_record(path)
    try:
        content = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"dataset file cannot be read: {error}",
            where=f"task {task}, {path}",
            todo=f"the file is truncated or not the official JSON; {AGAIN}",
        ) from error
    if key:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list) or not content:
        raise DataError("dataset file holds no list of items", where=f"task {task}, {path}", todo=AGAIN)
    return content


def read_sides(
    task: str, folder: Path, names: Sequence[str], read_file: Callable[[Path], tuple[Conversation, ...]]
) -> list[tuple[Conversation, ...]]:
    """The conversations of each file. Raises DataError where one stands twice."""
    sides = []
    seen: dict[str, str] = {}
    for name in names:
        path = find_file(task, folder, name)
        sides.append(read_file(path))
        for number, conversation_id in enumerate((c.conversation_id for c in sides[-1]), start=1):
            if conversation_id in seen:
                raise DataError(
                    f"item {conversation_id} stands twice: in {seen[conversation_id]} and in {name}",
                    where=f"task {task}, {path}, item {number} ({conversation_id})",
                    todo=f"an item belongs to one side, once; {AGAIN}",
                )
            seen[conversation_id] = name
    return sides


def value_of(mapping: Any, key: str, kind: type[T]) -> T:
    """A value that is in a mapping. Raises KeyError, TypeError or ValueError saying what is wrong."""
    value = mapping[key]
    if not isinstance(value, kind):
        raise ValueError(f"{key!r} must be a {_JSON_NAMES[kind]}, not {value!r}")
    return value


def text_of(mapping: Any, key: str) -> str:
    """A string that is in a mapping. Raises as `value_of` does."""
    return value_of(mapping, key, str)


def malformed(error: Exception, where: str, todo: str) -> DataError:
    """The error for an item of which reading raised KeyError, TypeError or ValueError."""
    what = f"missing key {error}" if isinstance(error, KeyError) else f"malformed: {error}"
    return DataError(what, where=where, todo=todo)
