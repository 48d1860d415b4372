"""The code location: the only thing workspace.yaml points at."""

from __future__ import annotations

import dagster as dg

from act_assets.defs.assets import ASSETS
from act_assets.defs.checks import CHECKS
from act_assets.defs.jobs import JOBS
from act_assets.defs.prompts import PROMPTS
from act_assets.defs.resources import ActSettings

# The multiprocess executor costs about two seconds a step; training has a process of its own anyway.
defs = dg.Definitions(
    assets=[*PROMPTS, *ASSETS],
    asset_checks=CHECKS,
    jobs=JOBS,
    resources={"act": ActSettings()},
    executor=dg.in_process_executor,
)
