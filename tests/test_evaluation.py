"""Evaluation: the oracle scores 1.0, the trivial policies score what can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from act_assets.baselines import always, question_only
from act_assets.conversation import TurnState, Utterance
from act_assets.errors import DataError, RoleError
from act_assets.evaluation import (
    EvaluationReport,
    OraclePolicy,
    Provenance,
    evaluate,
    evaluate_actions,
    read_report,
    write_report,
)
from act_assets.roles import Classifier, GoldUser
from act_assets.tasks.base import Task
from act_assets.trajectory import Dialogue
from resources.llm.base import LLMFailure

WHO = Provenance("oracle", 50, 3, "tiny", "none", "gold user", "rule")


def _evaluate(task: Task, turns: Sequence[TurnState], policy: object, user: object = None, limit: int = 3):  # type: ignore[no-untyped-def]
    return evaluate(
        task,
        turns,
        policy,  # type: ignore[arg-type]
        Classifier(task, "rule"),
        user or GoldUser(),  # type: ignore[arg-type]
        {},
        WHO,
        max_clarifications=limit,
        bootstrap_samples=50,
    )


class Says:
    """The same words to everything."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        return [
            Utterance("assistant", self.words[min(len(d.utterances) // 2, len(self.words) - 1)], "") for d in dialogues
        ]


def test_the_oracle_scores_one_everywhere(pacific: Task, every_turn: list[TurnState]) -> None:
    report, rows = _evaluate(pacific, every_turn, OraclePolicy())
    assert {m.name: m.value for m in report.metrics} == dict.fromkeys((m.name for m in report.metrics), 1.0)
    assert {m.name for m in report.metrics} == {
        "accuracy",
        "macro F1",
        *(f"{level} {form}" for level in ("turn", "trajectory", "post-clarification") for form in ("official", "bag")),
    }
    post = report.metric("post-clarification official")
    assert post is not None
    assert post.count == 320
    assert all(m.value in (1.0, None) for b in report.breakdown for m in b.metrics)
    assert {b.answer_type for b in report.breakdown} == {"arithmetic", "count", "multi-span", "question", "span"}
    assert len(rows) == 1982


def test_always_answering_scores_what_the_class_counts_say(pacific: Task, every_turn: list[TurnState]) -> None:
    report, _ = _evaluate(pacific, every_turn, Says("no idea"))
    answers, asks = 1662, 320
    assert report.metric("accuracy").value == answers / (answers + asks)  # type: ignore[union-attr]
    assert report.metric("macro F1").value == pytest.approx((2 * answers / (2 * answers + asks)) / 2)  # type: ignore[union-attr]
    post = report.metric("post-clarification official")
    assert (post.value, post.count) == (None, 0)  # type: ignore[union-attr]
    assert report.confusion == ((0, 320), (0, 1662))


def test_always_clarifying_never_settles_and_scores_zero(pacific: Task, every_turn: list[TurnState]) -> None:
    turns = every_turn[:60]
    report, rows = _evaluate(pacific, turns, Says("Which year are you asking about?"))
    assert report.metric("trajectory official").value == 0.0  # type: ignore[union-attr]
    assert {r.ended for r in rows} == {"max_clarifications"}
    post = report.metric("post-clarification official")
    assert (post.value, post.count) == (0.0, 60)  # type: ignore[union-attr]


def test_a_clarifying_question_is_compared_with_the_reference_question_alone(
    pacific: Task, every_turn: list[TurnState]
) -> None:
    turn = next(t for t in every_turn if t.response.text == "Which year are you asking about?")
    report, _ = _evaluate(pacific, [turn], Says("Which year are you asking about?", turn.goal.text))
    assert report.metric("turn official").value == 1.0  # type: ignore[union-attr]
    assert report.metric("trajectory official").value == 1.0  # type: ignore[union-attr]


def test_action_only_predictors_have_no_content_metrics(pacific: Task, sample, every_turn: list[TurnState]) -> None:  # type: ignore[no-untyped-def]
    train = [t for c in sample.train for t in pacific.reader.turn_states(c)]
    turns = [t for c in sample.validation for t in pacific.reader.turn_states(c)]
    for predicted in (always("ANSWER", turns), question_only(train, turns, 0)):
        report = evaluate_actions(pacific, turns, predicted, WHO, bootstrap_samples=50)
        assert [m.name for m in report.metrics] == ["accuracy", "macro F1"]
    assert question_only(train, turns, 0) == question_only(train, turns, 0)
    assert set(question_only([t for t in train if t.action == "ANSWER"], turns, 0)) == {"ANSWER"}
    macro = report.metric("macro F1")
    assert macro is not None
    assert macro.value is not None
    assert macro.low is not None
    assert macro.low > 0.463, "words of the question alone beat always answering"


def test_reports_survive_the_file_and_are_strict_json(
    pacific: Task, every_turn: list[TurnState], tmp_path: Path
) -> None:
    report, _ = _evaluate(pacific, every_turn[:20], Says("no idea"))
    path = tmp_path / "report.json"
    write_report(path, report)
    assert read_report(path) == report
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_simulator_failure_is_an_error_and_not_a_score(pacific: Task, every_turn: list[TurnState]) -> None:
    class Refusing:
        def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
            return [LLMFailure("timeout", "no answer", True, t.turn_id) for t in turns]

    with pytest.raises(RoleError, match="replies of the simulated user: 5 of 5"):
        _evaluate(pacific, every_turn[:5], Says("Which?"), Refusing())


def test_nothing_to_evaluate_is_an_error(pacific: Task) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        _evaluate(pacific, [], OraclePolicy())


def test_figures_carry_counts_and_seed(pacific: Task, every_turn: list[TurnState]) -> None:
    report: EvaluationReport = _evaluate(pacific, every_turn[:40], Says("no idea"))[0]
    assert (report.seed, report.method, report.simulator) == (3, "oracle", "gold user")
    assert all(m.count == 40 for m in report.metrics if not m.name.startswith("post"))
    assert any("40 turns" in note for note in report.notes)
