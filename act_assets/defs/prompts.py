"""Prompt files as observed source assets: the data version of a partition is the hash of its text.

Editing `act_assets/prompts/simulator/pacific.md` and observing makes exactly the PACIFIC assets that render it stale.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from act_assets.defs.partitions import BY_TASK
from act_assets.home import prompts_folder
from act_assets.roles.prompt import ROLES, prompt_hash
from act_assets.tasks import all_tasks
from resources.errors import PromptError


def prompt_key(role: str) -> dg.AssetKey:
    """The key of a role's prompt asset."""
    return dg.AssetKey(["prompts", role])


def _observed(role: str) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=prompt_key(role),
        partitions_def=BY_TASK,
        group_name="prompts",
        description=f"The prompt template of the role `{role}`: act_assets/prompts/{role}/<task>.md",
    )
    def observe() -> dg.DataVersionsByPartition:
        folder = prompts_folder()
        return dg.DataVersionsByPartition({task: _version(role, task, folder) for task in all_tasks()})

    return observe


def _version(role: str, task: str, folder: Path) -> str:
    """The hash of a prompt. A missing one stops only the assets that render it, not the observation of all tasks."""
    try:
        return prompt_hash(role, task, folder)
    except PromptError:
        return "missing"


PROMPTS = [_observed(role) for role in ROLES]
