"""`act data`: fetch the official files and verify them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from act_assets.cli.text import out, say, size_text
from act_assets.home import act_home
from act_assets.tasks.catalog import Published, entry_of, load_catalog
from act_assets.tasks.fetch import RAW, states
from act_assets.tasks.fetch import fetch as fetch_of
from resources.errors import ActError

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
    """Fetch a task's official files and verify them: nothing half-written is left.

    Proxies come from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
    """
    if source is not None and base_url is not None:
        raise ActError("--from and --base-url exclude each other", todo="give the folder, or the mirror")
    entry = entry_of(task)
    folder = _data_folder(to)
    fetched = fetch_of(
        task,
        entry,
        folder,
        source=source.expanduser().resolve() if source else None,
        base_url=RAW if base_url is None else base_url,
        everything=everything,
        force=force,
        progress=sys.stderr.isatty(),
    )
    if len(fetched) <= LISTED:
        verified = ", verified" if isinstance(entry, Published) else ""
        for file in fetched:
            say(f"{file.name}: {file.how}, {size_text(file.bytes)}{verified}")
    else:
        hows = [file.how for file in fetched]
        numbers = ", ".join(f"{hows.count(how):,} {how}" for how in sorted(set(hows)))
        say(f"{len(fetched):,} files, {size_text(sum(file.bytes for file in fetched))}: {numbers}")
    say(f"the official files of {task} are in {folder / task}")
    say(f"licence: {entry.licence} ({entry.origin})", f"please cite: {entry.citation}")
    used = os.environ.get("ACT_DATA_DIR")
    if used and Path(used).expanduser().resolve() == folder:
        say("ACT_DATA_DIR is this data folder: nothing has to be set")
    else:
        say(f"to use them: export ACT_DATA_DIR={shlex.quote(str(folder))}")


@data_app.command("list", epilog="Example: act data list")
def list_() -> None:
    """Show the official files, where they come from, their licences, and which of them are there."""
    folder = _data_folder(None)
    table = Table(box=None, header_style="")
    for name in ("task", "file", "in the data folder"):
        table.add_column(name, overflow="fold")
    catalog = load_catalog()
    for task, entry in catalog.items():
        found = states(task, entry, folder)
        optional = {f.name: f.optional for f in entry.files if f.optional} if isinstance(entry, Published) else {}
        if len(found) > LISTED:
            rest = list(found.values())[LISTED:]
            lacking = len(rest) - rest.count("there")
            found = dict(list(found.items())[:LISTED])
            found[f"and {len(rest):,} more"] = f"{lacking:,} missing" if lacking else "there"
        for number, (name, state) in enumerate(found.items()):
            why = f" (optional: {optional[name]})" if name in optional else ""
            table.add_row(task if number == 0 else "", name, state + why)
    out.print(table, highlight=False, markup=False)
    for task, entry in catalog.items():
        say(f"{task}: {entry.origin}; licence {entry.licence}")
    say(f"data folder: {folder}")


def _data_folder(to: Path | None) -> Path:
    """The folder with a folder for each task: the one that was asked for, ACT_DATA_DIR, or `data` in ACT_HOME."""
    chosen = to or os.environ.get("ACT_DATA_DIR")
    return Path(chosen).expanduser().resolve() if chosen else act_home() / "data"
