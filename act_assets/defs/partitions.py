"""Partitions: task, and task x train size (Dagster joins the keys in the alphabetical order of the names)."""

from __future__ import annotations

import dagster as dg

from act_assets.run import TRAIN_SIZES
from act_assets.tasks import all_tasks

BY_TASK = dg.StaticPartitionsDefinition(list(all_tasks()))
BY_TASK_AND_SIZE = dg.MultiPartitionsDefinition(
    {"task": BY_TASK, "train_size": dg.StaticPartitionsDefinition([str(n) for n in TRAIN_SIZES])}
)


def partition_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[str, int | None]:
    """(task, train size) of the running partition; no train size for assets made once per task."""
    key = context.partition_key
    if isinstance(key, dg.MultiPartitionKey):
        return key.keys_by_dimension["task"], int(key.keys_by_dimension["train_size"])
    task, _, size = key.partition("|")
    return task, int(size) if size else None
