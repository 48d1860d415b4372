"""The whole graph stage by stage in one process, trainings included: `python -m tests.whole_graph TASK`."""

from __future__ import annotations

import sys
from pathlib import Path

from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import StageResult, run_stage
from act_assets.pipeline.train import read_job, run_job
from act_assets.run import make_run

TINY = str(Path(__file__).resolve().parent / "tiny.yaml")


def train_here(job: Path) -> None:
    """In the place of a training process."""
    run_job(*read_job(job))


def run_all(task: str) -> dict[str, StageResult]:
    """Every stage of `task|50` with the tiny profile, in the ACT_HOME of the environment."""
    run = make_run(TINY, 0, task, 50, train_here)
    return {name: run_stage(STAGES, name, run) for name in STAGES}


if __name__ == "__main__":
    run_all(sys.argv[1])
