"""`act data`: fetch the official files and verify them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from act_assets.cli.text import size_text
from resources.errors import ActError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from act_assets.tasks.catalog import Entry
    from act_assets.tasks.fetch import Fetched

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The official files of the tasks, verified against the ids that git publishes.\n\n"
    "Examples:\n\n"
    "  act data list\n\n"
    "  act data fetch pacific\n\n"
    "  act data fetch pacific --from /media/usb\n\n"
    "  act data fetch ambig_sql --from ~/Downloads/spider",
)
out, err = Console(), Console(stderr=True)
LISTED = 10  # files that are told one by one at most


@data_app.command(epilog="Example: act data fetch pacific --to ~/data")
def fetch(
    task: Annotated[str, typer.Argument(help="pacific, abg_coqa or ambig_sql; act data list shows them")],
    to: Annotated[
        Path | None, typer.Option("--to", help="the data folder; default ACT_DATA_DIR, else data in ACT_HOME")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="take the files from a folder, not from the network")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="a mirror with the same <repository>/<commit>/<path>")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="the files that the task does not need too")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace files there that are not the official ones")] = False,
) -> None:
    """Fetch a task's official files and verify them. An interrupted download goes on when this is run again.

    Proxies come from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
    """
    if source is not None and base_url is not None:
        raise ActError("--from and --base-url exclude each other", todo="give the folder, or the mirror")
    from act_assets.tasks.catalog import entry_of
    from act_assets.tasks.download import RAW
    from act_assets.tasks.fetch import Options
    from act_assets.tasks.fetch import fetch as fetch_of

    entry = entry_of(task)
    folder = _data_folder(to)
    options = Options(
        base_url=RAW if base_url is None else base_url,
        source=source.expanduser().resolve() if source else None,
        everything=everything,
        force=force,
    )
    with _watched() as watch:
        fetched = fetch_of(task, entry, folder, options, watch)
    _tell(task, entry, folder, fetched)


@data_app.command("list", epilog="Example: act data list")
def list_() -> None:
    """Show the official files, where they come from, their licences, and which of them are there."""
    from act_assets.tasks.catalog import Published, load_catalog
    from act_assets.tasks.fetch import states

    folder = _data_folder(None)
    table = Table(box=None, header_style="")
    for name in ("task", "file", "in the data folder"):
        table.add_column(name, overflow="fold")
    catalog = load_catalog()
    for task, entry in catalog.items():
        found = states(task, entry, folder)
        optional = {f.name: f.optional for f in entry.files if f.optional} if isinstance(entry, Published) else {}
        for number, (name, state) in enumerate(_short(found).items()):
            why = f" (optional: {optional[name]})" if name in optional else ""
            table.add_row(task if number == 0 else "", name, state + why)
    out.print(table, highlight=False, markup=False)
    for task, entry in catalog.items():
        _say(f"{task}: {entry.origin}; licence {entry.licence}")
    _say(f"data folder: {folder}")


def _short(found: dict[str, str]) -> dict[str, str]:
    """The first of the files, and how many more are there."""
    if len(found) <= LISTED:
        return found
    first, rest = dict(list(found.items())[:LISTED]), list(found.values())[LISTED:]
    there = rest.count("there")
    return {**first, f"and {len(rest):,} more": "there" if there == len(rest) else f"{len(rest) - there:,} missing"}


def _data_folder(to: Path | None) -> Path:
    """The folder with a folder for each task: the one that was asked for, ACT_DATA_DIR, or `data` in ACT_HOME."""
    from act_assets.home import act_home

    chosen = to or os.environ.get("ACT_DATA_DIR")
    return Path(chosen).expanduser().resolve() if chosen else act_home() / "data"


def _tell(task: str, entry: Entry, folder: Path, fetched: Sequence[Fetched]) -> None:
    from act_assets.tasks.catalog import Published

    verified = ", verified" if isinstance(entry, Published) else ""
    if len(fetched) <= LISTED:
        for file in fetched:
            _say(f"{file.name}: {file.how}, {size_text(file.bytes)}{verified}")
    else:
        hows = [file.how for file in fetched]
        numbers = ", ".join(f"{hows.count(how):,} {how}" for how in sorted(set(hows)))
        _say(f"{len(fetched):,} files, {size_text(sum(file.bytes for file in fetched))}: {numbers}")
    _say(f"the official files of {task} are in {folder / task}")
    _say(f"licence: {entry.licence} ({entry.origin})", f"please cite: {entry.citation}")
    used = os.environ.get("ACT_DATA_DIR")
    if used and Path(used).expanduser().resolve() == folder:
        _say("ACT_DATA_DIR is this data folder: nothing has to be set")
    else:
        _say(f"to use them: export ACT_DATA_DIR={shlex.quote(str(folder))}")


def _say(*lines: str) -> None:
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


class _Shown:
    """A bar on a terminal, else a line for each file; both on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None

    def began(self, name: str, have: int, total: int | None) -> None:
        if not err.is_terminal:
            of = f" of {size_text(total)}" if total is not None else ""
            self.note(f"{name}: {f'going on after {size_text(have)}{of}' if have else f'begins{of}'}")
            return
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar = self._progress.add_task(name, total=total, completed=have)

    def moved(self, number: int) -> None:
        if self._bar is not None:
            self._progress.advance(self._bar, number)

    def note(self, text: str) -> None:
        self._progress.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _watched() -> Iterator[_Shown]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: tuple[Any, ...] = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield _Shown(progress)
