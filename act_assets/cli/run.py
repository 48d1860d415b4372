"""`act run`, `act plan`, `act report`: materialize, preview, show."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from act_assets.cli.options import (
    MaxCallsOption,
    MaxCostOption,
    MemoOption,
    MethodOption,
    ProfileOption,
    SeedOption,
    SizeOption,
    TaskOption,
    check_options,
)
from act_assets.evaluation.leaderboard import LeaderboardRow, terminal_table
from act_assets.methods.registry import DEFAULT, get_method, lineage
from act_assets.pipeline.checks import check_machine
from act_assets.pipeline.plan import PlanLine
from act_assets.pipeline.plan import plan as plan_of
from act_assets.pipeline.stage import Made, announcing
from act_assets.roles.build import missing_keys
from act_assets.rows import read_rows
from act_assets.run import make_run
from resources.errors import ActError

out, err = Console(), Console(stderr=True)


def run(
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    method: MethodOption = DEFAULT,
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    memo: MemoOption = "normal",
    max_cost: MaxCostOption = None,
    max_calls: MaxCallsOption = None,
) -> None:
    """Materialize everything of one task and train size, and show the results.

    Finished artifacts of the same settings, prompts and data are used again, and so are all LLM answers ever paid.
    """
    chosen = get_method(method)
    if memo not in ("normal", "offline", "refresh"):
        raise ActError(f"unknown mode of the memo: {memo!r}", todo="choose normal, offline or refresh")
    check_options(task, train_size, profile, max_cost)
    from act_assets.defs.launch import materialize
    from act_assets.defs.resources import ActSettings

    check_machine(make_run(profile, seed, task, train_size), [m.checkpoint for m in lineage(chosen)])
    started = time.monotonic()
    err.print(f"[bold]{task}|{train_size}[/]  method {method}, profile {profile}, seed {seed}")

    def began(key: object) -> None:
        err.print(f"  {key!s:<36} ...", highlight=False, markup=False)

    def ended(key: object, reused: bool, seconds: float) -> None:
        done = "up to date" if reused else f"made in {seconds:.1f} s"
        err.print(f"  {key!s:<36} {done}", highlight=False, markup=False)

    with announcing(began, ended):
        mode = cast(Literal["normal", "offline", "refresh"], memo)
        settings = ActSettings(profile=profile, seed=seed, memo=mode, max_cost=max_cost, max_calls=max_calls)
        made = materialize(task, train_size, settings, chosen)
    new = [name for name, facts in made.assets.items() if not facts["reused"]]
    _show(made)
    calls, hits, cost, saved, failures = (
        math.fsum(facts.get(f"llm_{name}", 0) for facts in made.assets.values())
        for name in ("calls", "hits", "cost_usd", "saved_usd", "failures")
    )
    if calls or hits:
        out.print(
            f"LLM: {calls:,.0f} calls (${cost:,.4f}), {hits:,.0f} answers from the memo (${saved:,.4f} saved), "
            f"{failures:,.0f} failures",
            highlight=False,
        )
    seconds = time.monotonic() - started
    if new:
        out.print(
            f"{len(new)} of {len(made.assets)} assets made, {len(made.assets) - len(new)} up to date, {seconds:.0f} s"
        )
    else:
        out.print(f"nothing to recompute: all {len(made.assets)} assets are up to date, {seconds:.0f} s")


def plan(
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    method: MethodOption = DEFAULT,
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """Show what `act run` with these options would ask of language models, and cost. Asks and changes nothing."""
    check_options(task, train_size, profile)
    lines = plan_of(make_run(profile, seed, task, train_size), get_method(method))
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return
    table = Table(box=None, header_style="")
    table.add_column("asset", no_wrap=True)
    table.add_column("role", no_wrap=True)
    for name in ("calls", "memoized", "to ask", "tokens in", "out", "US$"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        most = "≤ " if line.bound else ""
        asked = [f"{most}{line.calls:,}", "?" if line.bound else f"{line.memoized:,}", f"{most}{line.to_ask:,}"]
        tokens = [f"{most}{_short(line.prompt_tokens)}", f"{most}{_short(line.output_tokens)}"]
        figures = [*asked, *tokens, "?" if line.cost_usd is None else f"{most}{line.cost_usd:,.2f}"]
        name = f"{line.asset} {line.partition}"
        table.add_row(name, line.role, *(["up to date"] if line.state == "up to date" else figures))
    out.print(table)
    models = {line.role: line.model for line in lines}
    out.print(", ".join(f"{role}: {model}" for role, model in models.items()), soft_wrap=True, highlight=False)
    known, most_of = ([x for x in lines if bool(x.bound) is bound] for bound in (False, True))
    out.print(f"known: {sum(x.to_ask for x in known):,} calls, {_total(known)}", highlight=False)
    if any(x.to_ask for x in most_of):
        number = f"{sum(x.to_ask for x in most_of):,} more calls"
        out.print(f"at most, as the policy decides: {number}, {_total(most_of)}", highlight=False)
        for line in most_of:
            out.print(f"  {line.asset}, {line.role}: {line.bound}", soft_wrap=True, highlight=False)
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
    return f"about ${sum(x.cost_usd or 0.0 for x in lines):,.2f}"


def report(task: TaskOption = "pacific", profile: ProfileOption = "laptop", seed: SeedOption = 0) -> None:
    """Make the leaderboard and the HTML page of a task from what has been evaluated."""
    check_options(task, None, profile)
    from act_assets.defs.launch import materialize
    from act_assets.defs.resources import ActSettings

    _show(materialize(task, None, ActSettings(profile=profile, seed=seed)))


def _show(made: Made) -> None:
    rows = read_rows(Path(str(made.assets["leaderboard"]["path"])) / "leaderboard.parquet", LeaderboardRow)
    out.print(terminal_table(rows), markup=False, highlight=False, soft_wrap=True)
    for check in made.failed_checks:
        out.print(f"check not passed: {check}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"report: {made.assets['report']['page']}", soft_wrap=True, highlight=False)
