"""The assets: one for each stage of `pipeline.graph.STAGES`, which says all about it."""

import os
import socket
from collections.abc import Callable
from typing import Any

import dagster as dg

from act_assets.defs.metadata import failed_items, metadata_of
from act_assets.defs.partitions import BY_TASK, BY_TASK_AND_SIZE, partition_of
from act_assets.defs.pools import pool_slot
from act_assets.defs.resources import ActSettings
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import Stage, run_stage
from resources.errors import ActError

OWNERS = ["team:act"]
PID_TAG, HOST_TAG = "act/pid", "act/host"


def process_stamp() -> dict[str, str]:
    """Run tags that say which process runs it."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname()}


def _asset(stage: Stage) -> dg.AssetsDefinition:
    """Makes the stage's artifact for the running partition, and attaches what people look at."""

    @dg.asset(
        name=stage.name,
        description=stage.summary,
        group_name=stage.group,
        kinds={stage.kind},
        owners=OWNERS,
        partitions_def=BY_TASK_AND_SIZE if stage.sized else BY_TASK,
        code_version=str(stage.version),
        # What a stage without inputs finds, it hangs on; the report finds what is above it anyway.
        deps=[*(stage.inputs or stage.finds), *(dg.AssetKey(["prompts", role]) for role in stage.prompts)],
        pool=stage.pool,
    )
    def materialize(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
        # Whoever finds a pool slot of this run later can tell whether its process is still there.
        context.instance.add_run_tags(context.run_id, process_stamp())
        task, train_size = partition_of(context)
        try:
            with pool_slot(context.instance, stage.pool):
                result = run_stage(STAGES, stage.name, act.make_run(context, task, train_size))
        except ActError as error:
            raise dg.Failure(description=str(error), metadata=failed_items(error), allow_retries=False) from error
        return dg.MaterializeResult(
            data_version=dg.DataVersion(result.artifact.content_hash), metadata=metadata_of(result)
        )

    return materialize


def _assets(wanted: Callable[[Stage], bool]) -> list[dg.AssetsDefinition]:
    return [_asset(stage) for stage in STAGES.values() if wanted(stage)]


REPORT_ASSETS = _assets(lambda s: s.group == "report")
SIZED_ASSETS = _assets(lambda s: s.sized)
TASK_ASSETS = _assets(lambda s: not s.sized and s.group != "report")
ASSETS = [*TASK_ASSETS, *SIZED_ASSETS, *REPORT_ASSETS]
