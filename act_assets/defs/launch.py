"""Runs partitions of the graph from the command line, in the order of their dependencies, as ordinary Dagster runs."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Sequence

import dagster as dg

from act_assets.defs.assets import ASSETS, HOST_TAG, PID_TAG, REPORT_ASSETS, SIZED_ASSETS, TASK_ASSETS, process_stamp
from act_assets.defs.checks import CHECKS
from act_assets.defs.prompts import PROMPTS
from act_assets.defs.resources import ActSettings
from act_assets.home import dagster_home
from act_assets.methods.base import Method
from act_assets.methods.registry import TRAINED, lineage
from act_assets.pipeline.stage import Made
from resources.artifacts import process_is_alive
from resources.errors import ActError
from resources.files import locked

POOLS = ("gpu", "llm")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialize(task: str, train_size: int | None, settings: ActSettings, method: Method | None = None) -> Made:
    """Materializes everything of one `task|train_size` up to a method, or (without a size) the report alone.

    All of it shares one budget and one refreshing, whatever the number of Dagster runs.
    Raises ActError with the first failed asset's message; what was made before it stays.
    """
    os.environ["DAGSTER_HOME"] = str(dagster_home())
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    others = set(TRAINED) - set(lineage(method) if method else ())
    skipped = {asset for other in others for asset in (other.checkpoint, other.evaluation)}
    sized = [a for a in SIZED_ASSETS if a.key.path[-1] not in skipped]
    settings = settings.model_copy(update={"spender": f"act-{uuid.uuid4().hex[:12]}", "since": time.time()})
    waves: list[tuple[Sequence[dg.AssetsDefinition], str]] = [(REPORT_ASSETS, task)]
    if train_size is not None:
        both = dg.MultiPartitionKey({"task": task, "train_size": str(train_size)})
        waves = [(TASK_ASSETS, task), (sized, both), *waves]
    made = Made()
    with dg.DagsterInstance.get() as instance:
        prepare_pools(instance)
        observe_prompts(instance)
        for assets, partition in waves:
            wait_for_pools(instance)
            result = dg.materialize(
                [*PROMPTS, *ASSETS, *CHECKS],
                selection=dg.AssetSelection.assets(*assets),
                partition_key=partition,
                instance=instance,
                resources={"act": settings},
                raise_on_error=False,
                tags=process_stamp(),
                run_config=QUIET,
            )
            failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
            # Ctrl-C, which Dagster reports as a failure of the step.
            if any(f.error is not None and f.error.cls_name == "DagsterExecutionInterruptedError" for f in failures):
                raise KeyboardInterrupt
            if not result.success:
                raise ActError(_why(result))
            for event in result.get_asset_materialization_events():
                if event.asset_key is not None:
                    metadata = event.materialization.metadata
                    made.assets[event.asset_key.path[-1]] = {k: v.value for k, v in metadata.items()}
            for check in result.get_asset_check_evaluations():
                if not check.passed:
                    made.failed_checks.append(f"{check.asset_key.path[-1]} {check.check_name}: {check.description}")
    return made


def _why(result: dg.ExecuteInProcessResult) -> str:
    """The message of the first failed step, in the asset's own words."""
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            error = failure.error
            while error is not None and error.cause is not None:
                error = error.cause
            name = event.step_key or "a step"
            return f"{name} failed: {error.message.strip() if error else 'unknown error'}"
    return "the run failed; see the Dagster UI (make ui)"


def observe_prompts(instance: dg.DagsterInstance) -> None:
    """Records the data version of every prompt file, so that the UI shows what an edit made stale."""
    from dagster._core.definitions.observe import observe  # not exported by dagster 1.13

    observe(PROMPTS, instance=instance, run_config=QUIET)


def prepare_pools(instance: dg.DagsterInstance) -> None:
    """Gives each pool its slots; two first runs at once would each give it one, and both would hold the GPU."""
    with locked(dagster_home() / "pools.lock", wait=True):
        for pool in POOLS:
            instance.event_log_storage.initialize_concurrency_limit_to_default(pool)


def wait_for_pools(instance: dg.DagsterInstance, poll_s: float = 2.0) -> None:
    """Frees pool slots of runs that are gone, and waits, saying for what, while a live run holds one.

    Dagster would wait inside the run instead: silently, and deaf to an interrupt.
    """
    storage, said = instance.event_log_storage, set()
    while True:
        live = 0
        for pool in POOLS:
            for run_id in {slot.run_id for slot in storage.get_concurrency_info(pool).claimed_slots}:
                run = instance.get_run_by_id(run_id)
                if run is None or run.is_finished or _is_gone(run):
                    if run is not None and not run.is_finished:
                        instance.report_run_failed(run, "the process of this run was ended")
                    storage.free_concurrency_slots_for_run(run_id)
                    continue
                live += 1
                if run_id not in said:
                    said.add(run_id)
                    print(f"  waiting for run {run_id[:8]}, which holds the pool {pool} (see make ui)", file=sys.stderr)
        if not live:
            return
        time.sleep(poll_s)


def _is_gone(run: dg.DagsterRun) -> bool:
    """Whether the process that stamped the run is not there any more; ACT_HOME belongs to one machine."""
    if HOST_TAG not in run.tags:
        return False
    return run.tags[HOST_TAG] != socket.gethostname() or not process_is_alive(int(run.tags[PID_TAG]))
