"""The official files of each task (`datasets/catalog.yaml`): where they are published and how to tell them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from act_assets import home
from resources.errors import DataError, all_mistakes, mistake_of

CATALOG = home.PROJECT / "datasets" / "catalog.yaml"

Text = Annotated[str, Field(min_length=1, strict=True)]
GitId = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{40}$")]


def _inside(path: str) -> str:
    """A path that stays in its folder."""
    parts = path.split("/")
    if "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError("a path inside the folder is needed, like data/train.json")
    return path


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedFile(_Record):
    """A file of a commit. `blob`: git's id of its content; `optional`: why it is not needed, "" where it is."""

    path: Text
    blob: GitId
    optional: str = ""

    _path = field_validator("path")(_inside)

    @property
    def name(self) -> str:
        """What it is called in the task's folder."""
        return PurePosixPath(self.path).name


class Published(_Record):
    """Files of one commit of a repository on GitHub."""

    source: Literal["github"]
    repository: Annotated[str, Field(strict=True, pattern=r"^[\w.-]+/[\w.-]+$")]
    commit: GitId
    licence: Text
    citation: Text
    files: Annotated[tuple[PublishedFile, ...], Field(min_length=1)]

    @field_validator("files")
    @classmethod
    def _told_apart(cls, files: tuple[PublishedFile, ...]) -> tuple[PublishedFile, ...]:
        names = [file.name for file in files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two files have the same name: {', '.join(twice)}")
        return files

    def wanted(self, everything: bool) -> list[PublishedFile]:
        """The files that the task needs; with `everything` the optional ones too."""
        return [file for file in self.files if everything or not file.optional]

    @property
    def origin(self) -> str:
        return f"github.com/{self.repository}, commit {self.commit[:12]}"


class ByHand(_Record):
    """What a person has to fetch from a page. `questions`: JSON lists whose items name a `db_id`; `database`: the file
    that each of those needs, with `{db_id}` for its name."""

    source: Literal["by_hand"]
    name: Text
    page: Annotated[str, Field(strict=True, pattern=r"^https://\S+$")]
    licence: Text
    citation: Text
    files: tuple[Text, ...] = ()
    questions: Annotated[tuple[Text, ...], Field(min_length=1)]
    database: Text

    @field_validator("files", "questions")
    @classmethod
    def _all_inside(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(path) for path in paths)

    @field_validator("database")
    @classmethod
    def _of_each(cls, path: str) -> str:
        if "{db_id}" not in path or "{" in path.replace("{db_id}", "") or "}" in path.replace("{db_id}", ""):
            raise ValueError("a path with {db_id}, and no other braces, is needed")
        return _inside(path)

    @property
    def listed(self) -> list[str]:
        """The files that do not depend on others."""
        return [*self.files, *self.questions]

    @property
    def layout(self) -> str:
        """For people: all that is needed, with `<db_id>` for the name of a database."""
        return ", ".join([*self.listed, self.database.replace("{db_id}", "<db_id>")])

    @property
    def origin(self) -> str:
        return f"{self.name}, {self.page}"


Entry = Published | ByHand
_KINDS: dict[str, type[Published] | type[ByHand]] = {"github": Published, "by_hand": ByHand}


def load_catalog() -> dict[str, Entry]:
    """The shipped catalog by task. Raises DataError with all mistakes of the file."""
    try:
        content: Any = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"the catalog of official files cannot be read: {error.strerror}",
            where=str(CATALOG),
            todo="it lies in the project's folder datasets/: install from a checkout (`make setup`), or restore it",
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8
        raise DataError(f"the catalog is not valid YAML: {error}", where=str(CATALOG), todo="mend the file") from error
    if not isinstance(content, dict) or not content:
        raise DataError(
            "the catalog names no task",
            where=str(CATALOG),
            todo="write entries like 'pacific: {source: github, repository: ..., commit: ..., licence: ..., "
            "citation: ..., files: [{path: ..., blob: ...}]}'",
        )
    mistakes: list[str] = []
    entries: dict[str, Entry] = {}
    for task, given in content.items():
        if not isinstance(task, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", task):
            mistakes.append(f"{task}: not the name of a task: lower-case letters, digits and _ are allowed")
            continue
        try:
            entries[task] = _kind(given).model_validate(given)
        except ValidationError as error:
            mistakes += [f"{task}: {mistake_of(e, '(whole entry)')}" for e in error.errors()]
        except ValueError as error:
            mistakes.append(f"{task}: {error}")
    if mistakes:
        raise DataError(
            all_mistakes("the catalog", mistakes), where=str(CATALOG), todo="mend all of them, then run again"
        )
    return entries


def _kind(given: Any) -> type[Published] | type[ByHand]:
    if not isinstance(given, dict):
        raise ValueError(f"not an entry with keys (given: {given!r})")
    if "source" not in given:
        raise ValueError("source: missing")
    kind = _KINDS.get(given["source"]) if isinstance(given["source"], str) else None
    if kind is None:
        raise ValueError(f"source: one of {', '.join(_KINDS)} is needed (given: {given['source']!r})")
    return kind


def entry_of(task: str) -> Entry:
    """A task's entry. Raises DataError where the catalog has none."""
    catalog = load_catalog()
    if task not in catalog:
        raise DataError(
            f"no official files are listed for task {task!r}",
            where=str(CATALOG),
            todo=f"choose one of: {', '.join(sorted(catalog))}",
        )
    return catalog[task]
