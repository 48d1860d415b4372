"""The `act` command."""

from __future__ import annotations

import atexit
import os
import sys
import traceback

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from act_assets.cli.chat import chat
from act_assets.cli.data import data_app
from act_assets.cli.doctor import examine
from act_assets.cli.export import export
from act_assets.cli.memo import memo_app
from act_assets.cli.run import plan, report, run
from resources.errors import ActError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Trains chat models to clarify or to answer: ACT (ICLR 2025) on Dagster.\n\n"
    "Examples:\n\n"
    "  act run --task pacific --train-size 50\n\n"
    "  act run --task pacific --train-size 250 --method sft --seed 1\n\n"
    "  act export preferences --task pacific --train-size 50 --out pairs.jsonl\n\n"
    "  act export model --task pacific --train-size 50 --out checkpoint\n\n"
    "  act chat --task pacific --train-size 50\n\n"
    "  act plan --task pacific --train-size 250 --profile paper\n\n"
    "  act memo stats\n\n"
    "  act doctor\n\n"
    "Set ACT_DEBUG=1 to see tracebacks.",
)
app.add_typer(memo_app, name="memo")
app.add_typer(data_app, name="data")
for command, example in (
    (run, "--task pacific --train-size 50 --method act --profile laptop --seed 0"),
    (plan, "--task pacific --train-size 250 --profile paper"),
    (report, "--task pacific"),
    (export, "messages --task pacific --train-size 50 --out train.jsonl"),
    (chat, "--task pacific --train-size 50"),
):
    app.command(epilog=f"Example: act {command.__name__} {example}")(command)
out, err = Console(), Console(stderr=True)


@app.command(epilog="Example: act doctor")
def doctor() -> None:
    """Show what is installed, which keys are set (never their values), GPU, data and prompts."""
    table = Table(box=None, show_header=False)
    for overflow in ("ellipsis", "ellipsis", "fold"):  # a path is never cut
        table.add_column(overflow=overflow)  # type: ignore[arg-type]
    lines = examine()
    for line in lines:
        mark = {True: "[green]ok[/]", False: "[red]problem[/]", None: "-"}[line.ok]
        table.add_row(mark, line.topic, escape(line.what))
    out.print(table)
    if any(line.ok is False for line in lines):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: errors of ours are messages with exit code 1, others keep their traceback with ACT_DEBUG=1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.environ.get("ACT_DEBUG"):
        atexit.register(_end_quietly)  # the first to be registered is the last to run
    try:
        app()
    except ActError as error:
        if os.environ.get("ACT_DEBUG"):
            traceback.print_exc()
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == 130:  # how typer ends after Ctrl-C
            err.print("interrupted: finished artifacts are kept, run again to go on")
        raise
    except Exception as error:
        if os.environ.get("ACT_DEBUG"):
            raise
        what = escape(f"{type(error).__name__}: {error}")
        err.print(f"[bold red]unexpected error:[/] {what}", soft_wrap=True, highlight=False)
        err.print("  to do: run again with ACT_DEBUG=1 to see the traceback")
        sys.exit(1)


def _end_quietly() -> None:
    """After everything else: DuckDB's binding lists, at the very end, what other libraries keep alive of it."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
