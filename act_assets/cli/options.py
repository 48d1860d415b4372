"""The options that several commands have, and what can be wrong with them."""

from __future__ import annotations

from typing import Annotated

import typer

from act_assets.methods.registry import TRAINED
from act_assets.profile import load_profile
from act_assets.roles.build import check_roles
from act_assets.run import TRAIN_SIZES
from act_assets.tasks import get_task
from resources.errors import ActError

TaskOption = Annotated[str, typer.Option("--task", help="a registered task, for example pacific")]
SizeOption = Annotated[int, typer.Option("--train-size", help="training conversations: 50, 100 or 250")]
ProfileOption = Annotated[str, typer.Option("--profile", help="laptop, paper, or the path of a YAML file")]
MemoOption = Annotated[
    str,
    typer.Option(
        "--memo", help="normal; offline: what the memo does not hold is an error; refresh: ask again, keep old answers"
    ),
]
MaxCostOption = Annotated[float | None, typer.Option("--max-cost", min=0, help="stop before more US dollars are spent")]
MaxCallsOption = Annotated[int | None, typer.Option("--max-calls", min=0, help="stop before more LLM calls are made")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="the seed of every random choice")]
NAMES = ", ".join(m.name for m in TRAINED)
MethodOption = Annotated[str, typer.Option("--method", help=f"{NAMES}; with it, the methods it starts from")]
CheckpointOption = Annotated[str, typer.Option("--method", help=f"whose checkpoint: {NAMES}")]


def check_options(task: str, train_size: int | None, profile: str, max_cost: float | None = None) -> None:
    """All that can be wrong with the options, before anything heavy is imported."""
    get_task(task)
    if train_size is not None and train_size not in TRAIN_SIZES:
        raise ActError(
            f"unknown train size {train_size}",
            where=f"task {task}",
            todo=f"choose one of {', '.join(map(str, TRAIN_SIZES))}",
        )
    check_roles(load_profile(profile), max_cost_usd=max_cost)
