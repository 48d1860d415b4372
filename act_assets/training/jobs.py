"""What a training process does: one job file in, a folder of files out.

The job names a stage, its settings and the folders of its inputs; the process writes the stage's files, the curve
(`history.parquet`), and facts with measured times (`logs/facts.json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from act_assets.conversation import Conversation, IntentSummary, PreferencePair, TurnState
from act_assets.profile import Profile
from act_assets.roles.build import Cast, usage_facts
from act_assets.rows import read_rows, write_rows
from act_assets.tasks import get_task
from act_assets.tasks.base import Task, Tools
from act_assets.training.logging import TrainingPoint
from act_assets.training.optimizer import is_first_process
from act_assets.training.preflight import out_of_memory_advised
from resources.embedder import default_embedder
from resources.llm.service import CallSettings


@dataclass(frozen=True)
class Job:
    """A training job. `inputs` are the folders of the artifacts it reads."""

    stage: str
    task: Task
    train_size: int | None
    seed: int
    profile: Profile
    inputs: dict[str, Path]
    prompts_dir: Path
    calls: CallSettings
    folder: Path
    work: Path  # what a run that was cut short resumes from

    @staticmethod
    def read(path: Path) -> Job:
        raw = json.loads(path.read_text(encoding="utf-8"))
        profile = Profile.model_validate(raw["profile"])
        inputs = {name: Path(folder) for name, folder in raw["inputs"].items()}
        tools = Tools(inputs.get("raw_dataset", Path()), default_embedder(profile.embedder))
        return Job(
            stage=raw["stage"],
            task=get_task(raw["task"]).equipped(tools),
            train_size=raw["train_size"],
            seed=raw["seed"],
            profile=profile,
            inputs=inputs,
            prompts_dir=Path(raw["prompts_dir"]),
            calls=CallSettings.from_json(raw["calls"]),
            folder=Path(raw["folder"]),
            work=Path(raw["work"]),
        )

    def turns(self, conversations: list[Conversation]) -> list[TurnState]:
        return [t for c in conversations for t in self.task.turn_states(c)]

    def subset(self) -> list[Conversation]:
        return read_rows(self.inputs["train_subset"] / "train.parquet", Conversation)

    def conversations(self, side: str) -> list[Conversation]:
        return read_rows(self.inputs["conversations"] / f"{side}.parquet", Conversation)


Result = tuple[dict[str, Any], list[TrainingPoint]]


def run_job(job: Job) -> dict[str, Any]:
    """Does the job; returns its facts. Of several processes the first writes the curve and the facts."""
    with out_of_memory_advised(job.profile, f"task {job.task.name}, {job.stage}", "update"):
        facts, points = _JOBS[job.stage](job)
    if not is_first_process():
        return {}
    if points:
        write_rows(job.folder / "history.parquet", points, TrainingPoint)
    facts |= {f"version_{name}": version(name) for name in ("torch", "transformers", "trl")}
    (job.folder / "logs").mkdir(exist_ok=True)
    (job.folder / "logs" / "facts.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def _base_policy(job: Job) -> Result:
    from act_assets.training.base_policy import make_base_policy

    return make_base_policy(
        job.task,
        job.conversations("train"),
        job.profile.policy,
        job.profile.compute,
        job.seed,
        job.folder,
        job.work,
    )


def _sft(job: Job) -> Result:
    from act_assets.training.base_policy import base_policy_source
    from act_assets.training.sft import train_sft

    return train_sft(
        job.task,
        job.turns(job.subset()),
        job.turns(job.conversations("validation")),
        base_policy_source(job.inputs["base_policy"]),
        job.profile,
        job.seed,
        job.folder,
        job.work,
    )


def _act(job: Job) -> Result:
    from act_assets.training.act_trainer import train_act

    subset = job.subset()
    cast = Cast(job.profile, job.task, job.prompts_dir, job.seed, job.calls)
    intents = read_rows(job.inputs["intent_summaries"] / "intents.parquet", IntentSummary)
    classifier, simulator = cast.classifier(subset), cast.simulator()
    facts, points = train_act(
        job.task,
        {t.turn_id: t for t in job.turns(subset)},
        read_rows(job.inputs["contrastive_pairs"] / "pairs.parquet", PreferencePair),
        {t.turn_id: t for t in job.turns(job.conversations("validation"))},
        read_rows(job.inputs["validation_pairs"] / "pairs.parquet", PreferencePair),
        {i.intent_id: i.summary for i in intents},
        classifier,
        simulator,
        job.inputs["sft_checkpoint"] / "model",
        job.profile,
        job.seed,
        job.folder,
        job.work,
    )
    return {**facts, **usage_facts(classifier.usage + simulator.usage)}, points


_JOBS: dict[str, Callable[[Job], Result]] = {
    "base_policy": _base_policy,
    "sft_checkpoint": _sft,
    "act_checkpoint": _act,
}
