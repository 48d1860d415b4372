"""The resources that Dagster configures; run configuration names the profile and the seed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from act_assets.home import memo_folder
from act_assets.methods.registry import TRAINED
from act_assets.pipeline.checks import check_machine
from act_assets.profile import load_profile
from act_assets.run import Run, make_run
from act_assets.training.logging import LIVE, LiveTail
from resources.compute import launch
from resources.llm.memo.records import Asker
from resources.llm.service import CallSettings
from resources.settings import Compute


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

    def make_run(self, context: dg.AssetExecutionContext, task: str, train_size: int | None) -> Run:
        """What one asset's stage is run with; training goes through Dagster Pipes.

        Raises ProfileError in the first asset of a run that also trains what cannot be trained on this machine.
        """
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
        launcher = _PipesLauncher(context, load_profile(self.profile).compute)
        run = make_run(self.profile, self.seed, task, train_size, launcher, calls)
        selected = {key.path[-1] for key in context.selected_asset_keys}
        if trainings := [m.checkpoint for m in TRAINED if m.checkpoint in selected]:
            check_machine(run, trainings)
        return run


class _PipesLauncher:
    """Runs a training job as an external process of the Dagster run, and shows its newest figures meanwhile."""

    def __init__(self, context: dg.AssetExecutionContext, compute: Compute) -> None:
        self.context, self.compute = context, compute

    def __call__(self, job: Path) -> None:
        live = _LiveFigures(self.context, job.parent / LIVE)
        with dg.open_pipes_session(
            context=self.context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            try:
                launch(self.compute, job, session.get_bootstrap_env_vars(), on_tick=live.tick)
            finally:
                live.tick(at_once=True)


class _LiveFigures:
    """The newest line of a training's live file as observations of its asset, whose page plots them.

    Called from the thread that waits for the training. An error here ends the watching, never the training.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        path: Path,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._tail, self._every_s, self._clock = context, LiveTail(path), every_s, clock
        self._emitted_at = -math.inf
        self._waiting: dict[str, float] | None = None  # not emitted yet
        self._ended = False

    def tick(self, *, at_once: bool = False) -> None:
        """Emits the newest figures, if there are new ones and (unless `at_once`) the last ones are old enough."""
        if self._ended:
            return
        try:
            self._waiting = self._tail.newest() or self._waiting
            if self._waiting and (at_once or self._clock() - self._emitted_at >= self._every_s):
                context = self._context
                partition = context.partition_key if context.has_partition_key else None
                context.log_event(dg.AssetObservation(context.asset_key, partition=partition, metadata=self._waiting))
                self._emitted_at, self._waiting = self._clock(), None
        except Exception as error:
            self._ended = True
            with contextlib.suppress(Exception):
                self._context.log.warning(f"no further live figures of this training: {type(error).__name__}: {error}")
