"""The resources that Dagster configures; run configuration names the profile and the seed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from act_assets.home import act_home, data_folder, memo_folder, prompts_folder
from act_assets.profile import load_profile
from act_assets.progress import bars
from act_assets.roles.cast import check_roles
from act_assets.stages import StageRun
from act_assets.tasks import get_task
from resources.artifacts import ArtifactStore
from resources.compute import launch_locally
from resources.llm.memo.records import Asker
from resources.llm.service import CallSettings


class ActSettings(dg.ConfigurableResource[Any]):
    """What every asset of a run is made with: a profile (a shipped name or the path of a YAML file) and a seed.

    `memo`: `normal`; `offline` (what the memo does not hold is an error); `refresh` (answers from before this run are
    asked for again, and kept as history). `max_cost` (US dollars) and `max_calls` bound what all assets of the run
    may spend together. `spender` and `since` (seconds since 1970) tie several runs to one budget and one refreshing;
    by default they are the run and its start.
    """

    profile: str = "laptop"
    seed: int = Field(default=0, ge=0)
    memo: Literal["normal", "offline", "refresh"] = "normal"
    max_cost: float | None = Field(default=None, ge=0)
    max_calls: int | None = Field(default=None, ge=0)
    spender: str = ""
    since: float = 0.0

    def stage_run(self, context: dg.AssetExecutionContext, task: str, train_size: int | None) -> StageRun:
        """The settings of one asset's run; training goes through Dagster Pipes."""
        record = context.instance.get_run_record_by_id(context.run_id)
        began = record.create_timestamp.timestamp() if record else time.time()
        calls = CallSettings(
            memo_folder(),
            self.memo,
            self.since or began,
            self.max_cost,
            self.max_calls,
            Asker(run=context.run_id, budget=self.spender or context.run_id),
        )
        return stage_run(self.profile, self.seed, task, train_size, _PipesLauncher(context), calls)


def stage_run(
    profile_name: str,
    seed: int,
    task: str,
    train_size: int | None,
    launch: object = None,
    calls: CallSettings | None = None,
) -> StageRun:
    """The settings of a run, from the environment and a profile."""
    profile = load_profile(profile_name)
    calls = calls or CallSettings(memo_folder())
    check_roles(profile, max_cost_usd=calls.max_cost_usd)
    home = act_home()
    data_dir, origin = data_folder(task)
    return StageRun(
        task=get_task(task),
        train_size=train_size,
        seed=seed,
        profile=profile,
        store=ArtifactStore(home / "artifacts", f"{profile.name}-seed{seed}"),
        data_dir=data_dir,
        data_origin=origin,
        prompts_dir=prompts_folder(),
        reports_dir=home / "reports",
        progress=bars,
        launch=launch or launch_locally,  # type: ignore[arg-type]
        calls=calls,
    )


class _PipesLauncher:
    """Runs a training job as an external process of the Dagster run."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self.context = context

    def __call__(self, job: Path) -> None:
        with dg.open_pipes_session(
            context=self.context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            launch_locally(job, session.get_bootstrap_env_vars())
