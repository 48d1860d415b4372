"""Prompt files as observed source assets: the data version of a partition is the hash of its text.

Editing `act_assets/prompts/simulator/pacific.md` and observing makes exactly the PACIFIC assets that render it stale.
"""

from __future__ import annotations

import dagster as dg

from act_assets.defs.partitions import BY_TASK
from act_assets.home import prompts_folder
from act_assets.roles.prompt import ROLES, prompt_hash
from act_assets.tasks import all_tasks
from resources.errors import PromptError


def _observed(role: str) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=["prompts", role],
        partitions_def=BY_TASK,
        group_name="prompts",
        description=f"The prompt template of the role `{role}`: act_assets/prompts/{role}/<task>.md",
    )
    def observe() -> dg.DataVersionsByPartition:
        versions: dict[str, str] = {}
        for task in all_tasks():
            try:
                versions[task] = prompt_hash(role, task, prompts_folder())
            except PromptError:  # stops only the assets that render it, not the observation of all tasks
                versions[task] = "missing"
        return dg.DataVersionsByPartition(versions)

    return observe


PROMPTS = [_observed(role) for role in ROLES]
