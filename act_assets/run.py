"""One run of the pipeline: what a stage, a method and a training process are given, and how they read their inputs.

    run = make_run("laptop", seed=0, task="pacific", train_size=50)
    turns = turns_of(run, conversations_of(run, "train"))

Below pipeline and methods, so that both speak of the same record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from act_assets.conversation import ActionLabel, Conversation, IntentSummary, TurnState
from act_assets.home import act_home, memo_folder, prompts_folder
from act_assets.profile import LLMRole, Profile, load_profile
from act_assets.progress import bars
from act_assets.roles.build import RoleFactory, check_roles
from act_assets.rows import count_rows, read_rows
from act_assets.tasks import data_folder, get_task
from act_assets.tasks.base import Task, Tools
from resources.artifacts import Artifact, ArtifactStore
from resources.compute import launch as launch_training
from resources.embedder import default_embedder
from resources.llm.client import LLM
from resources.llm.service import CallSettings

TRAIN_SIZES = (50, 100, 250)


Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows long work, by its description and the number of items: a context that gives a function to call after each."""

Launcher = Callable[[Path], None]
"""Runs one training job, described by a JSON file, in a process of its own; raises TrainingError."""


@dataclass(frozen=True)
class Run:
    """What a stage is run with. `inputs` are the artifacts it reads, by asset.

    `work` is where a long stage keeps what it resumes from; `open_llm` opens the model of a role,
    by default with the memo and the budget that `calls` names.
    """

    task: Task
    train_size: int | None
    seed: int
    profile: Profile
    store: ArtifactStore
    data_dir: Path
    data_origin: str
    prompts_dir: Path
    reports_dir: Path
    progress: Progress
    launch: Launcher
    calls: CallSettings
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    work: Path = Path()
    open_llm: Callable[[LLMRole], LLM] | None = None

    @property
    def where(self) -> str:
        size = "" if self.train_size is None else f", train size {self.train_size}"
        return f"task {self.task.name}{size}"


def make_run(
    profile_name: str,
    seed: int,
    task: str,
    train_size: int | None,
    launch: Launcher | None = None,
    calls: CallSettings | None = None,
) -> Run:
    """A run from the environment and a profile. Raises ProfileError where a role cannot be played as it is written."""
    profile = load_profile(profile_name)
    calls = calls or CallSettings(memo_folder())
    check_roles(profile, max_cost_usd=calls.max_cost_usd)
    home = act_home()
    data_dir, origin = data_folder(task)
    return Run(
        task=get_task(task),
        train_size=train_size,
        seed=seed,
        profile=profile,
        store=ArtifactStore(home / "artifacts", f"{profile.name}-seed{seed}"),
        data_dir=data_dir,
        data_origin=origin,
        prompts_dir=prompts_folder(),
        reports_dir=home / "reports",
        progress=bars,
        launch=launch or (lambda job: launch_training(profile.compute, job)),
        calls=calls,
    )


def conversations_of(run: Run, side: str) -> list[Conversation]:
    """A side's conversations with gold labels."""
    return read_rows(run.inputs["conversations"].file(f"{side}.parquet"), Conversation)


def labelled_conversations(run: Run, side: str) -> list[Conversation]:
    """A side's conversations with G's labels in place of gold."""
    labels = {x.turn_id: x.label for x in read_rows(run.inputs["action_labels"].file(f"{side}.parquet"), ActionLabel)}
    return [
        replace(c, turns=tuple(replace(t, action=labels[t.turn_id]) for t in c.turns))
        for c in conversations_of(run, side)
    ]


def train_subset(run: Run) -> list[Conversation]:
    """The conversations of the train size, with the labels that training sees."""
    return read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation)


def turns_of(run: Run, conversations: Sequence[Conversation]) -> list[TurnState]:
    """Every turn state, in order."""
    return [t for c in conversations for t in run.task.turn_states(c)]


def evaluation_side(run: Run) -> str:
    """The side that methods are evaluated on: the test side where the task has one, else validation."""
    return "test" if count_rows(run.inputs["conversations"].file("test.parquet")) else "validation"


def evaluated_turns(run: Run) -> list[TurnState]:
    """The turns that methods are evaluated on, with gold actions."""
    return [t for t in turns_of(run, conversations_of(run, evaluation_side(run))) if t.evaluated]


def equipped_task(run: Run) -> Task:
    """The run's task with a judge that can score."""
    return run.task.equipped(Tools(run.inputs["raw_dataset"].path, default_embedder(run.profile.embedder)))


def judge_identity(run: Run) -> str:
    """What scores, an embedder's weights included; only the metric's name where there is no raw dataset to score on."""
    return equipped_task(run).judge.identity if "raw_dataset" in run.inputs else run.task.judge.metric_name


def intents_in(artifact: Artifact) -> dict[str, str]:
    """What U is grounded in, by intent id."""
    return {i.intent_id: i.summary for i in read_rows(artifact.file("intents.parquet"), IntentSummary)}


def roles_of(run: Run) -> RoleFactory:
    """The LLM roles of a run."""
    return RoleFactory(run.profile, run.task, run.prompts_dir, run.seed, run.calls, run.open_llm)


def role_settings(*names: str) -> Callable[[Profile], dict[str, Any]]:
    """Picks some roles' settings from a profile, for a stage's identity."""
    return lambda profile: {name: getattr(profile.roles, name) for name in names}
