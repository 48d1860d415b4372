"""The `act` command."""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from act_assets.cli.data import data_app
from act_assets.cli.memo import memo_app
from act_assets.cli.model import chat, export_checkpoint
from act_assets.pipeline.stage import Made
from resources.errors import ActError

if TYPE_CHECKING:
    from act_assets.pipeline.plan import PlanLine

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
app.command(epilog="Example: act chat --task pacific --train-size 50")(chat)
out, err = Console(), Console(stderr=True)

TaskOption = Annotated[str, typer.Option("--task", help="a registered task, for example pacific")]
SizeOption = Annotated[int, typer.Option("--train-size", help="training conversations: 50, 100 or 250")]
ProfileOption = Annotated[str, typer.Option("--profile", help="laptop, paper, or the path of a YAML file")]
MemoOption = Annotated[
    str,
    typer.Option(
        "--memo", help="normal; offline: what the memo does not hold is an error; refresh: ask anew, keep old answers"
    ),
]
MaxCostOption = Annotated[float | None, typer.Option("--max-cost", min=0, help="stop before more US dollars are spent")]
MaxCallsOption = Annotated[int | None, typer.Option("--max-calls", min=0, help="stop before more LLM calls are made")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="the seed of every random choice")]


@app.command(epilog="Example: act run --task pacific --train-size 50 --method act --profile laptop --seed 0")
def run(
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    method: Annotated[str, typer.Option(help="sft, or act (which needs sft and runs it too)")] = "act",
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    memo: MemoOption = "normal",
    max_cost: MaxCostOption = None,
    max_calls: MaxCallsOption = None,
) -> None:
    """Materialize everything of one task and train size, and show the results.

    Finished artifacts of the same settings, prompts and data are used again, and so are all LLM answers ever paid.
    """
    if method not in ("sft", "act"):
        raise ActError(f"unknown method {method!r}", todo="choose sft or act")
    if memo not in ("normal", "offline", "refresh"):
        raise ActError(f"unknown mode of the memo: {memo!r}", todo="choose normal, offline or refresh")
    _check(task, train_size, profile, max_cost)
    from act_assets.defs.launch import materialize
    from act_assets.defs.resources import ActSettings, stage_run
    from act_assets.pipeline.graph import STAGES
    from act_assets.pipeline.stage import up_to_date
    from act_assets.training.preflight import TRAININGS, check_training

    run = stage_run(profile, seed, task, train_size)
    trainings = TRAININGS if method == "act" else TRAININGS[:1]
    check_training(run.profile, lambda: all(up_to_date(STAGES, name, run) for name in trainings))
    started = time.monotonic()
    err.print(f"[bold]{task}|{train_size}[/]  method {method}, profile {profile}, seed {seed}")
    with _announced():
        mode = cast(Literal["normal", "offline", "refresh"], memo)
        settings = ActSettings(profile=profile, seed=seed, memo=mode, max_cost=max_cost, max_calls=max_calls)
        made = materialize(task, train_size, with_act=method == "act", settings=settings)
    new = [name for name, facts in made.assets.items() if not facts["reused"]]
    _show(made)
    if any(facts.get("llm_calls", 0) + facts.get("llm_hits", 0) for facts in made.assets.values()):
        out.print(_spent(made), highlight=False)
    seconds = time.monotonic() - started
    if new:
        out.print(
            f"{len(new)} of {len(made.assets)} assets made, {len(made.assets) - len(new)} up to date, {seconds:.0f} s"
        )
    else:
        out.print(f"nothing to recompute: all {len(made.assets)} assets are up to date, {seconds:.0f} s")


def _spent(made: Made) -> str:
    def total(name: str) -> float:
        return math.fsum(facts.get(f"llm_{name}", 0) for facts in made.assets.values())

    return (
        f"LLM: {total('calls'):,.0f} calls (${total('cost_usd'):,.4f}), {total('hits'):,.0f} answers from the memo "
        f"(${total('saved_usd'):,.4f} saved), {total('failures'):,.0f} failures"
    )


@app.command(epilog="Example: act plan --task pacific --train-size 250 --profile paper")
def plan(
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    method: Annotated[str, typer.Option(help="sft or act, as for act run")] = "act",
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """Show what `act run` with these options would ask of language models, and cost. Asks and changes nothing."""
    _check(task, train_size, profile)
    from act_assets.defs.resources import stage_run
    from act_assets.pipeline.plan import plan as plan_of

    lines = plan_of(stage_run(profile, seed, task, train_size), with_act=method == "act")
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        _show_plan(lines)


def _show_plan(lines: Sequence[PlanLine]) -> None:
    from act_assets.roles.build import missing_keys

    table = Table(box=None, header_style="")
    table.add_column("asset", no_wrap=True)
    table.add_column("role", no_wrap=True)
    for name in ("calls", "memoized", "to ask", "tokens in", "out", "US$"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        most = "≤ " if line.bound else ""
        asked = [f"{most}{line.calls:,}", "?" if line.bound else f"{line.memoized:,}", f"{most}{line.to_ask:,}"]
        tokens = [f"{most}{_short(line.prompt_tokens)}", f"{most}{_short(line.output_tokens)}"]
        figures = [*asked, *tokens, _dollars(line.cost_usd, most)]
        name = f"{line.asset} {line.partition}"
        table.add_row(name, line.role, *(["up to date"] if line.state == "up to date" else figures))
    out.print(table)
    models = {line.role: line.model for line in lines}
    out.print(", ".join(f"{role}: {model}" for role, model in models.items()), soft_wrap=True, highlight=False)
    known, most_of = ([x for x in lines if x.bound == bound] for bound in (False, True))
    out.print(f"known: {sum(x.to_ask for x in known):,} calls, {_total(known)}", highlight=False)
    if any(x.to_ask for x in most_of):
        number = f"{sum(x.to_ask for x in most_of):,} more calls"
        out.print(f"at most, as the policy decides: {number}, {_total(most_of)}", highlight=False)
    out.print("tokens are estimates; act run --max-cost and --max-calls stop before more is spent", highlight=False)
    for missing in missing_keys(line.model.split(" ")[0] for line in lines if line.to_ask):
        out.print(missing, highlight=False)


def _short(number: int) -> str:
    for size, unit in ((1_000_000, " M"), (1_000, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _total(lines: Sequence[PlanLine]) -> str:
    if any(x.cost_usd is None for x in lines):
        return "price not known (docs/llm-calls.md says how to name it)"
    return _dollars(sum(x.cost_usd or 0.0 for x in lines), "about $")


def _dollars(amount: float | None, before: str) -> str:
    return "?" if amount is None else f"{before}{amount:,.2f}"


@app.command(epilog="Example: act report --task pacific")
def report(task: TaskOption = "pacific", profile: ProfileOption = "laptop", seed: SeedOption = 0) -> None:
    """Make the leaderboard and the HTML page of a task from what has been evaluated."""
    _check(task, None, profile)
    from act_assets.defs.launch import materialize
    from act_assets.defs.resources import ActSettings

    _show(materialize(task, None, with_act=True, settings=ActSettings(profile=profile, seed=seed)))


@app.command(epilog="Example: act export messages --task pacific --train-size 50 --out train.jsonl")
def export(
    what: Annotated[str, typer.Argument(help="messages, preferences or model")],
    to: Annotated[Path, typer.Option("--out", help="the JSONL file to write; of a model, a new folder")],
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    method: Annotated[str, typer.Option(help="of a model: the checkpoint, sft or act")] = "act",
    adapter: Annotated[bool, typer.Option("--adapter", help="of a model: its LoRA adapter alone")] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="of a model: to the hub as well; needs HF_TOKEN")
    ] = None,
) -> None:
    """Write the subset or its pairs in the published code's JSONL formats, or a checkpoint as a folder with a card.

    transformers and vLLM load the folder of a model as it is.
    """
    if what not in ("messages", "preferences", "model"):
        raise ActError(f"cannot export {what!r}", todo="choose messages or preferences (JSONL), or model (a folder)")
    if what != "model" and (adapter or push):
        raise ActError("--adapter and --push are of a model", todo="act export model --out FOLDER ...")
    _check(task, train_size, profile)
    from act_assets.conversation import Conversation, PreferencePair
    from act_assets.defs.resources import stage_run
    from act_assets.release.exports import messages_rows, preference_rows, write_jsonl
    from act_assets.rows import read_rows
    from resources.artifacts import Key

    settings = stage_run(profile, seed, task, train_size)
    if what == "model":
        export_checkpoint(settings, method, to, adapter=adapter, push=push)
        return
    if what == "messages":
        artifact = settings.store.require(Key("train_subset", task, train_size))
        rows: Any = messages_rows(settings.task, read_rows(artifact.file("train.parquet"), Conversation))
    else:
        artifact = settings.store.require(Key("contrastive_pairs", task, train_size))
        rows = preference_rows(read_rows(artifact.file("pairs.parquet"), PreferencePair))
    out.print(f"{write_jsonl(to, rows)} lines in {to}")


@app.command(epilog="Example: act doctor")
def doctor() -> None:
    """Show what is installed, which keys are set (never their values), GPU, data and prompts."""
    from act_assets.cli.doctor import examine

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


def _check(task: str, train_size: int | None, profile: str, max_cost: float | None = None) -> None:
    """All that can be wrong with the options, before anything heavy is imported."""
    from act_assets.pipeline.stage import TRAIN_SIZES
    from act_assets.profile import load_profile
    from act_assets.roles.build import check_roles
    from act_assets.tasks import get_task

    get_task(task)
    if train_size is not None and train_size not in TRAIN_SIZES:
        raise ActError(
            f"unknown train size {train_size}",
            where=f"task {task}",
            todo=f"choose one of {', '.join(map(str, TRAIN_SIZES))}",
        )
    check_roles(load_profile(profile), max_cost_usd=max_cost)


def _announced() -> Any:
    from act_assets.pipeline.stage import announcing

    def began(key: object) -> None:
        err.print(f"  {key!s:<36} ...", highlight=False, markup=False)

    def ended(key: object, reused: bool, seconds: float) -> None:
        done = "up to date" if reused else f"made in {seconds:.1f} s"
        err.print(f"  {key!s:<36} {done}", highlight=False, markup=False)

    return announcing(began, ended)


def _show(made: Made) -> None:
    from act_assets.evaluation.leaderboard import LeaderboardRow, terminal_table
    from act_assets.rows import read_rows

    rows = read_rows(Path(str(made.assets["leaderboard"]["path"])) / "leaderboard.parquet", LeaderboardRow)
    out.print(terminal_table(rows))
    for check in made.failed_checks:
        out.print(f"check not passed: {check}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"report: {made.assets['report']['page']}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: errors of ours are messages with exit code 1, others keep their traceback with ACT_DEBUG=1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.environ.get("ACT_DEBUG"):
        atexit.register(_end_quietly)  # the first to be registered is the last to run
    _guarded(app)


def _end_quietly() -> None:
    """After everything else: DuckDB's binding lists, at the very end, what other libraries keep alive of it."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _guarded(call: Callable[[], Any]) -> None:
    try:
        call()
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


if __name__ == "__main__":
    main()
