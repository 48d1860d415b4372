"""Policies whose scores are known, on each task's evaluated side with its own judge: the oracle scores 1.0, and those
that always do the same score what the class counts say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import TurnState, Utterance
from act_assets.evaluation.evaluate import EvaluationReport, OraclePolicy, Provenance, evaluate
from act_assets.home import PACKAGE
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.profile import load_profile
from act_assets.progress import quiet
from act_assets.roles import GoldUser, RuleClassifier
from act_assets.run import Run, equipped_task, evaluated_turns, evaluation_side, intents_in
from act_assets.tasks import data_folder, get_task
from act_assets.trajectory import ConversationPolicy, Dialogue
from resources.artifacts import ArtifactStore
from resources.llm.service import CallSettings

TASKS = ("pacific", "abg_coqa", "ambig_sql")
STAGES_OF_DATA = ("raw_dataset", "ambiguous_requests", "conversations", "evaluation_intents")
# (evaluated states that ask, that answer): PACIFIC's validation side; Abg-CoQA's test side, 22 ambiguous requests with
# 48 readings beside 178 clear ones; AmbigSQL's twins, as many as there are.
COUNTS = {"pacific": (26, 162), "abg_coqa": (48, 178)}


class Says:
    """The same words to everything."""

    def __init__(self, words: str) -> None:
        self.words = words

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        return [Utterance("assistant", self.words, "") for _ in dialogues]


@pytest.fixture(scope="module", params=TASKS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the task's evaluated side made from the bundled sample."""
    root = tmp_path_factory.mktemp(request.param)
    profile = load_profile(str(Path(__file__).parent / "tiny.yaml"))
    folder, origin = data_folder(request.param)
    run = Run(
        task=get_task(request.param),
        train_size=50,
        seed=0,
        profile=profile,
        store=ArtifactStore(root, "oracles"),
        data_dir=folder,
        data_origin=origin,
        prompts_dir=PACKAGE / "prompts",
        reports_dir=root,
        progress=quiet,
        launch=lambda job: None,
        calls=CallSettings(root / "memo"),
    )
    made = {name: run_stage(STAGES, name, run).artifact for name in STAGES_OF_DATA}
    return replace(run, inputs=made)


def _evaluate(run: Run, policy: ConversationPolicy) -> tuple[EvaluationReport, list[TurnState]]:
    task, turns = equipped_task(run), evaluated_turns(run)
    who = Provenance("known", 50, 0, "tiny", "none", "gold user", "rule", task.judge.identity, evaluation_side(run))
    intents = intents_in(run.inputs["evaluation_intents"])
    report, _ = evaluate(
        task,
        turns,
        policy,
        RuleClassifier(task),
        GoldUser(),
        intents,
        who,
        max_clarifications=3,
        bootstrap_samples=20,
    )
    return report, turns


def _value(report: EvaluationReport, name: str) -> float | None:
    metric = report.metric(name)
    assert metric is not None, name
    return metric.value


def _classes(run: Run, turns: list[TurnState]) -> tuple[int, int]:
    actions = [t.action for t in turns]
    counted = actions.count("CLARIFY"), actions.count("ANSWER")
    assert sum(counted) == len(turns)
    if run.task.name == "ambig_sql":
        assert counted[0] == counted[1] > 0
    else:
        assert counted == COUNTS[run.task.name]
    return counted


def test_the_oracle_scores_one(prepared: Run) -> None:
    report, turns = _evaluate(prepared, OraclePolicy())
    asks, _ = _classes(prepared, turns)
    assert {m.name: m.value for m in report.metrics} == {m.name: 1.0 for m in report.metrics}
    main = prepared.task.judge.forms[0]
    assert {f"trajectory {main}", f"post-clarification {main}", "accuracy", "macro F1"} <= {
        m.name for m in report.metrics
    }
    clarified = report.metric(f"post-clarification {main}")
    assert clarified is not None
    assert clarified.count == asks
    assert report.side == ("validation" if prepared.task.name == "pacific" else "test")


def test_always_answering_scores_what_the_class_counts_say(prepared: Run) -> None:
    words = "SELECT 'no such answer'" if prepared.task.name == "ambig_sql" else "zzzz"
    report, turns = _evaluate(prepared, Says(words))
    asks, answers = _classes(prepared, turns)
    assert _value(report, "accuracy") == answers / len(turns)
    assert _value(report, "macro F1") == pytest.approx(2 * answers / (2 * answers + asks) / 2)
    main = prepared.task.judge.forms[0]
    clarified = report.metric(f"post-clarification {main}")
    assert clarified is not None
    assert (clarified.value, clarified.count) == (None, 0)
    if prepared.task.name != "abg_coqa":  # a cosine is never exactly 0
        assert _value(report, f"trajectory {main}") == 0.0


def test_always_clarifying_scores_what_the_class_counts_say(prepared: Run) -> None:
    report, turns = _evaluate(prepared, Says("What do you mean?"))
    asks, answers = _classes(prepared, turns)
    assert _value(report, "accuracy") == asks / len(turns)
    assert _value(report, "macro F1") == pytest.approx(2 * asks / (2 * asks + answers) / 2)
    main = prepared.task.judge.forms[0]
    assert _value(report, f"trajectory {main}") == 0.0  # never settled
    clarified = report.metric(f"post-clarification {main}")
    assert clarified is not None
    assert (clarified.value, clarified.count) == (0.0, len(turns))


def test_turn_scores_count_once_for_each_prompt(prepared: Run) -> None:
    report, turns = _evaluate(prepared, OraclePolicy())
    at_turn = [m for m in report.metrics if m.name.startswith("turn ")]
    assert {m.count for m in at_turn} == ({len({t.prompt_id for t in turns})} if at_turn else set())
    assert bool(at_turn) == (prepared.task.name != "ambig_sql")  # execution match says nothing of a question
