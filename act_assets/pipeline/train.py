"""A training in a process of its own: `python -m act_assets.pipeline.train JOB.json`.

The asset writes the job file and launches the process (through Dagster Pipes, whose messages then carry the facts);
the process writes the asset's files, the curve (`history.parquet`) and facts with measured times (`logs/facts.json`).
It ends, with everything it started, when the process that launched it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from act_assets.methods.base import Trained
from act_assets.methods.registry import TRAINED
from act_assets.pipeline.stage import Build
from act_assets.profile import Profile
from act_assets.progress import bars
from act_assets.rows import write_rows
from act_assets.run import Run, conversations_of
from act_assets.tasks import get_task
from act_assets.training.base_policy import make_base_policy
from act_assets.training.logging import TrainingPoint
from act_assets.training.optimizer import is_first_process
from act_assets.training.preflight import out_of_memory_advised
from resources.artifacts import ArtifactStore, read_artifact
from resources.compute import LAUNCHED, end_with_launcher, join_processes
from resources.errors import ActError, TrainingError
from resources.llm.service import CallSettings

UNEXPECTED = (
    "run again with ACT_DEBUG=1 to see the traceback; if memory ran out, lower compute.micro_batch_tokens in the "
    "profile"
)


def training_of(stage: str) -> Build:
    """The build of a stage that trains: hands the work to a process, and reads the facts that it leaves behind."""

    def build(run: Run, folder: Path) -> dict[str, Any]:
        logs = folder / "logs"
        logs.mkdir()
        job = {
            "stage": stage,
            "task": run.task.name,
            "train_size": run.train_size,
            "seed": run.seed,
            "profile": run.profile.model_dump(mode="json"),
            "store": [str(run.store.root), run.store.run],
            "inputs": {key: str(artifact.path) for key, artifact in run.inputs.items()},
            "prompts_dir": str(run.prompts_dir),
            "calls": run.calls.to_json(),
            "folder": str(folder),
            "work": str(run.work),
        }
        path = logs / "job.json"
        path.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        run.launch(path)
        return dict(json.loads((logs / "facts.json").read_text(encoding="utf-8")))

    return build


def read_job(path: Path) -> tuple[str, Run, Path]:
    """The stage, what it is run with, and the folder that it fills."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    root, name = raw["store"]

    def launch(job: Path) -> None:
        raise TrainingError("a training launches no other", where=str(job))

    run = Run(
        task=get_task(raw["task"]),
        train_size=raw["train_size"],
        seed=raw["seed"],
        profile=Profile.model_validate(raw["profile"]),
        store=ArtifactStore(Path(root), name),
        data_dir=Path(),
        data_origin="",
        prompts_dir=Path(raw["prompts_dir"]),
        reports_dir=Path(),
        progress=bars,
        launch=launch,
        calls=CallSettings.from_json(raw["calls"]),
        inputs={asset: read_artifact(Path(folder)) for asset, folder in raw["inputs"].items()},
        work=Path(raw["work"]),
    )
    return raw["stage"], run, Path(raw["folder"])


def base_policy(run: Run, folder: Path) -> Trained:
    """The model that training starts from: built and warmed up here, or a Hugging Face model."""
    profile = run.profile
    return make_base_policy(
        run.task, conversations_of(run, "train"), profile.policy, profile.compute, run.seed, folder, run.work
    )


TRAININGS = {"base_policy": base_policy} | {m.checkpoint: m.train for m in TRAINED if m.train is not None}


def run_job(stage: str, run: Run, folder: Path) -> dict[str, Any]:
    """Trains; returns the facts. Of several processes the first writes the curve and the facts."""
    with out_of_memory_advised(run.profile, f"task {run.task.name}, {stage}", "update"):
        facts, points = TRAININGS[stage](run, folder)
    if not is_first_process():
        return {}
    if points:
        write_rows(folder / "history.parquet", points, TrainingPoint)
    facts = {**facts, **{f"version_{name}": version(name) for name in ("torch", "transformers", "trl")}}
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "facts.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m act_assets.pipeline.train JOB.json", file=sys.stderr)
        return 2
    end_with_launcher()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    path = Path(arguments[0])
    rank = os.environ.get("RANK")
    error_file = path.parent / ("error.txt" if rank is None else f"error-rank-{rank}.txt")
    stage = "training"
    try:
        stage, run, folder = read_job(path)
        join_processes()
        # Of several processes the first logs, into the Dagster run that launched this process, if any.
        if "DAGSTER_PIPES_CONTEXT" in os.environ and is_first_process():
            from dagster_pipes import open_dagster_pipes

            with open_dagster_pipes() as pipes:
                pipes.log.info(f"{stage}: {run_job(stage, run, folder)}")
        else:
            run_job(stage, run, folder)
    except Exception as error:
        known = isinstance(error, ActError)
        said = str(error) if known else f"{stage} failed: {type(error).__name__}: {error}\n  to do: {UNEXPECTED}"
        error_file.write_text(said, encoding="utf-8")
        if LAUNCHED not in os.environ:
            print(said, file=sys.stderr)
        if not known and os.environ.get("ACT_DEBUG"):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
