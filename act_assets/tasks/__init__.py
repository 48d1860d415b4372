"""The task registry: partitions, prompts folders and the command line follow from it.

This package's own tasks stand below; another package adds its own through an entry point of the group
`act_assets.tasks` (docs/adding-a-task.md). Tasks are imported when they are first asked for.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType

from act_assets.home import PROJECT
from act_assets.tasks.base import Task
from resources.errors import ActError

GROUP = "act_assets.tasks"
_OWN = {
    "pacific": "act_assets.tasks.pacific.task:PACIFIC",
    "abg_coqa": "act_assets.tasks.abg_coqa.task:ABG_COQA",
    "ambig_sql": "act_assets.tasks.ambig_sql.task:AMBIG_SQL",
}


@cache
def all_tasks() -> Mapping[str, Task]:
    """Every task by name, this package's first. Raises ActError naming the entry point that cannot be used."""
    tasks: dict[str, Task] = {}
    for name, place in _OWN.items():
        module, _, attribute = place.partition(":")
        tasks[name] = getattr(import_module(module), attribute)
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            task = point.load()
        except Exception as error:  # a foreign module can raise anything
            raise _unusable(point, f"{type(error).__name__}: {error}") from error
        if not isinstance(task, Task):
            raise _unusable(point, f"it names a {type(task).__name__}, not an act_assets.tasks.base.Task")
        if task.name in tasks:
            raise _unusable(point, f"there is a task {task.name} already")
        tasks[task.name] = task
    return MappingProxyType(tasks)


def is_own(name: str) -> bool:
    """Whether a task is this package's own."""
    return name in _OWN


@cache
def source_hash(task: Task) -> str | None:
    """SHA-256 of the modules that a task of another package is written in: what it makes depends on them. None for
    this package's own, whose code the versions of the stages stand for."""
    if is_own(task.name):
        return None
    return modules_hash(type(part).__module__ for part in (task.reader, task.judge, task.rules, task.twins) if part)


def modules_hash(names: Iterable[str]) -> str:
    """SHA-256 of the source of some imported modules."""
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        path = getattr(sys.modules.get(name), "__file__", None)
        digest.update(Path(path).read_bytes() if path else name.encode())
    return digest.hexdigest()


def get_task(name: str) -> Task:
    """The task of that name. Raises ActError listing the known ones."""
    tasks = all_tasks()
    if name not in tasks:
        raise ActError(f"unknown task {name!r}", todo=f"choose one of: {', '.join(tasks)}")
    return tasks[name]


def data_folder(task: str) -> tuple[Path, str]:
    """The folder with a task's official files and where it comes from.

    `ACT_DATA_DIR/<task>` (or ACT_DATA_DIR itself where it has no such folder), else the bundled sample.
    """
    chosen = os.environ.get("ACT_DATA_DIR")
    if not chosen:
        return get_task(task).sample or PROJECT / "datasets" / "sample" / task, "bundled sample"
    root = Path(chosen).expanduser().resolve()
    if not root.is_dir():
        raise ActError(
            f"ACT_DATA_DIR is not a folder: {root}", todo="create it, or unset ACT_DATA_DIR to use the sample"
        )
    return (root / task if (root / task).is_dir() else root), "ACT_DATA_DIR"


def _unusable(point: EntryPoint, why: str) -> ActError:
    package = point.dist.name if point.dist else "?"
    return ActError(
        f"a task of another package cannot be used: {why}",
        where=f"package {package}, entry point {point.name} = {point.value} of the group {GROUP}",
        todo="fix that package, or uninstall it",
    )
