"""Plans count what a run asks: of a task with several readings, and of one that never asks a role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import Conversation
from act_assets.methods.registry import METHODS
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.plan import plan
from act_assets.pipeline.stage import run_stage
from act_assets.profile import LLMRole, Profile, SourcedRole
from act_assets.roles.embedded import MODEL
from act_assets.run import Run
from act_assets.tasks.base import Task, TaskData
from act_assets.tasks.pacific.task import PacificReader

pytestmark = pytest.mark.integration


class Reader(PacificReader):
    """Gives these conversations, whatever the files hold."""

    def __init__(self, train: Sequence[Conversation], validation: Sequence[Conversation]) -> None:
        self.data = TaskData(tuple(train), tuple(validation))

    def read(self, folder: Path) -> TaskData:
        return self.data


@pytest.fixture
def run(
    run_below: Callable[..., Run],
    pacific: Task,
    sample: TaskData,
    ambiguous: Conversation,
    tiny_profile: Profile,
    tmp_path: Path,
) -> Run:
    """Fifty training conversations and four validation ones, a request with three readings on each side."""
    turns = tuple(replace(t, turn_id="sales-2") for t in ambiguous.turns)
    reader = Reader(
        [*sample.train[:49], ambiguous],
        [*sample.validation[:3], replace(ambiguous, conversation_id="more sales", turns=turns)],
    )
    annotator = SourcedRole(source="llm", llm=LLMRole(provider="embedded", model=MODEL))
    roles = tiny_profile.roles.model_copy(update={"annotator": annotator})
    return run_below(
        tmp_path,
        task=replace(pacific, reader=reader),
        profile=tiny_profile.model_copy(update={"action_supervision": "pseudo", "roles": roles}),
    )


def test_a_plan_counts_what_the_run_then_asks(run: Run) -> None:
    lines = {line.asset: line for line in plan(run, METHODS["act"]) if not line.bound}
    assert not run.store.root.exists(), "nothing is made"
    asked = {}
    for name in (
        "raw_dataset",
        "ambiguous_requests",
        "conversations",
        "action_labels",
        "evaluation_intents",
        "validation_pairs",
        "train_subset",
        "intent_summaries",
        "contrastive_pairs",
    ):
        facts = run_stage(STAGES, name, run).artifact.facts
        if "llm_calls" in facts:
            asked[name] = facts["llm_calls"] + facts["llm_hits"]
    assert {name: line.calls for name, line in lines.items()} == asked
    assert set(asked) == {
        "action_labels",
        "evaluation_intents",
        "validation_pairs",
        "intent_summaries",
        "contrastive_pairs",
    }
    assert {line.state for line in plan(run, METHODS["act"]) if line.asset in asked} == {"up to date"}


def test_readings_are_annotated_once_and_simulated_each(run: Run, sample: TaskData) -> None:
    lines = {(line.asset, line.role): line for line in plan(run, METHODS["act"])}
    turns = sum(len(c.turns) for c in sample.train[:49])
    evaluated = sum(len(c.turns) for c in sample.validation[:3])
    assert lines["action_labels", "annotator"].calls == turns + 1 + evaluated + 1
    assert lines["contrastive_pairs", "generator"].calls == turns + 3
    assert lines["evaluation_intents", "intent"].calls == 3 + 3
    most = run.profile.act.max_clarifications
    assert lines["evaluation_act", "simulator"].calls == most * (evaluated + 3)


def test_a_role_that_the_task_never_asks_is_in_no_plan(run: Run) -> None:
    assert "perturbation" not in {line.role for line in plan(run, METHODS["act"])}
    told_goals = replace(run, task=replace(run.task, grounding="goal"))
    assert "intent" not in {line.role for line in plan(told_goals, METHODS["act"])}


def test_a_task_without_a_rule_for_some_question_is_planned_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(line.asset, line.role, line.calls) for line in plan(run, METHODS["act"])]
    monkeypatch.setattr(type(run.task.rules), "generate", lambda *_: None)
    assert [(line.asset, line.role, line.calls) for line in plan(run, METHODS["act"])] == expected
