"""The official files of each task (`datasets/catalog.yaml`): where they are published and how to tell them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from act_assets import home
from resources.errors import DataError, all_mistakes, mistake_of

CATALOG = home.PROJECT / "datasets" / "catalog.yaml"


def _inside(path: str) -> str:
    """A path that stays in its folder."""
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("a path inside the folder is needed, like data/train.json")
    return path


Text = Annotated[str, Field(min_length=1, strict=True)]
GitId = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{40}$")]
Inside = Annotated[Text, AfterValidator(_inside)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedFile(_Record):
    """A file of a commit. `blob`: git's id of its content; `optional`: why it is not needed, "" where it is."""

    path: Inside
    blob: GitId
    optional: str = ""

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
    files: tuple[Inside, ...] = ()
    questions: Annotated[tuple[Inside, ...], Field(min_length=1)]
    database: Annotated[Inside, Field(pattern=r"^[^{}]*(\{db_id\}[^{}]*)+$")]

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
_Task = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
_Catalog = TypeAdapter[dict[str, Entry]](
    Annotated[dict[_Task, Annotated[Entry, Field(discriminator="source")]], Field(min_length=1)]
)


def load_catalog() -> dict[str, Entry]:
    """The shipped catalog by task. Raises DataError with all mistakes of the file."""
    try:
        return _Catalog.validate_python(yaml.safe_load(CATALOG.read_text(encoding="utf-8")))
    except ValidationError as error:
        what = all_mistakes("the catalog", [mistake_of(e, "(whole file)") for e in error.errors()])
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"the catalog of official files cannot be read: {error}"
    raise DataError(
        what,
        where=str(CATALOG),
        todo="restore the project's datasets/catalog.yaml, or fix it; install from a checkout (`make setup`)",
    )


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
