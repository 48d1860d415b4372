"""Reading official files: what all readers share. Errors name the file, and the reader adds the item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from act_assets.tasks.files import file_record
from resources.errors import DataError

AGAIN = "fetch the official file again"


def read_json(task: str, path: Path) -> Any:
    """The content of a JSON file, plain or .gz. Raises DataError where it cannot be read."""
    _, content = file_record(path)
    try:
        return json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"dataset file cannot be read: {error}",
            where=f"task {task}, {path}",
            todo=f"the file is truncated or not the official JSON; {AGAIN}",
        ) from error


def items_of(task: str, path: Path, content: Any) -> list[Any]:
    """`content` where it is a list that holds something. Raises DataError otherwise."""
    if not isinstance(content, list) or not content:
        raise DataError("dataset file holds no list of items", where=f"task {task}, {path}", todo=AGAIN)
    return content


def text_of(mapping: Any, key: str) -> str:
    """A string that is in a mapping. Raises KeyError, TypeError or ValueError saying what is wrong."""
    value = mapping[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, not {value!r}")
    return value


def what_is_wrong(error: Exception) -> str:
    """One of those errors as a sentence."""
    return f"missing key {error}" if isinstance(error, KeyError) else f"malformed: {error}"
