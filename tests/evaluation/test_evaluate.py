"""Evaluation: the oracle scores 1.0, the trivial policies score what can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import Conversation, Trajectory, TurnState, Utterance
from act_assets.evaluation.baselines import always, question_only
from act_assets.evaluation.evaluate import (
    EvaluationReport,
    OraclePolicy,
    Provenance,
    evaluate,
    evaluate_actions,
    read_report,
    score_trajectories,
    summarise,
    write_report,
)
from act_assets.roles import GoldUser, RuleClassifier
from act_assets.tasks.base import Scores, Task
from act_assets.tasks.pacific.answer import PacificJudge
from act_assets.trajectory import Dialogue
from resources.errors import DataError, RoleError
from resources.llm.base import LLMFailure

WHO = Provenance("oracle", 50, 3, "tiny", "none", "gold user", "rule", "DROP F1", "validation")


def _evaluate(task: Task, turns: Sequence[TurnState], policy: object, user: object = None, limit: int = 3):  # type: ignore[no-untyped-def]
    return evaluate(
        task,
        turns,
        policy,  # type: ignore[arg-type]
        RuleClassifier(task),
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
        *(
            f"{level} {form}"
            for level in ("turn", "trajectory", "post-clarification")
            for form in ("official", "bag", "exact match")
        ),
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
    train = [t for c in sample.train for t in pacific.turn_states(c)]
    turns = [t for c in sample.validation for t in pacific.turn_states(c)]
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
    assert (report.judge, report.side) == ("DROP F1", "validation")
    assert all(m.count == 40 for m in report.metrics if not m.name.startswith("post"))
    assert any("40 turns" in note for note in report.notes)


# --- requests with several readings ----------------------------------------------------------------------------


def test_every_reading_is_run_to_its_own_goal_and_its_first_response_counts_once(
    pacific: Task, ambiguous: Conversation, every_turn: list[TurnState]
) -> None:
    turns = [*pacific.turn_states(ambiguous), *[t for t in every_turn if t.action == "ANSWER"][:2]]
    report, rows = _evaluate(pacific, turns, OraclePolicy())
    assert [r.turn_id for r in rows] == [t.turn_id for t in turns]
    assert [r.outcome for r in rows[:3]] == ["5 (in millions)", "6 (in millions)", "7 (in millions)"]
    assert {r.prompt_id for r in rows[:3]} == {"sales-1"}
    assert {r.group for r in rows[:3]} == {"a bakery"}
    counts = {m.name: m.count for m in report.metrics}
    assert (counts["turn official"], counts["trajectory official"]) == (3, 5), "one prompt and two others; five runs"
    assert counts["post-clarification official"] == sum(r.clarified for r in rows)
    of = {b.answer_type: {m.name: m.count for m in b.metrics} for b in report.breakdown}
    assert of["question"]["turn official"] == 1
    assert report.notes[0].startswith("3 turns of 2 conversations (5 trajectories: one for each way ")


def test_the_mean_of_first_responses_weighs_prompts_and_not_readings(
    pacific: Task, ambiguous: Conversation, every_turn: list[TurnState]
) -> None:
    """Right for the one prompt with three readings and wrong for the other: a half, not three quarters."""
    turns = [*pacific.turn_states(ambiguous), next(t for t in every_turn if t.action == "ANSWER")]
    report, rows = _evaluate(pacific, turns, Says(turns[0].response.text, "6 (in millions)"))
    assert [r.score("turn", "official") for r in rows] == [1.0, 1.0, 1.0, 0.0]
    assert report.metric("turn official").value == 0.5  # type: ignore[union-attr]
    assert [r.score("trajectory", "official") for r in rows] == [0.0, 1.0, 0.0, 0.0]
    assert report.metric("trajectory official").value == 0.25  # type: ignore[union-attr]


def test_without_readings_the_notes_speak_of_turns_alone(pacific: Task, every_turn: list[TurnState]) -> None:
    report, _ = _evaluate(pacific, every_turn[:5], OraclePolicy())
    assert "trajectories:" not in report.notes[0]


# --- scoring in batches ------------------------------------------------------------------------------------------


class Counting(PacificJudge):
    """Has nothing to say of first responses, and notes what it was asked at once."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def turn_scores(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[Scores]:
        self.asked.append(list(responses))
        return [{} for _ in turns]

    def outcome_scores(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[Scores]:
        self.asked.append(list(outcomes))
        return super().outcome_scores(turns, outcomes)


def _settled(turn: TurnState, *texts: str) -> Trajectory:
    said = [Utterance("user" if i % 2 else "assistant", text, "") for i, text in enumerate(texts)]
    return Trajectory(turn.turn_id, tuple(said), "settled" if len(texts) % 2 else "max_clarifications")


def test_all_trajectories_are_scored_at_once_and_each_gets_its_own_scores(
    pacific: Task, few_turns: list[TurnState]
) -> None:
    a, b, c = few_turns[:3]
    trajectories = [
        _settled(a, "no idea"),
        Trajectory(b.turn_id, (Utterance("assistant", "Which?", "CLARIFY"),), "max_clarifications"),
        _settled(c, "Which?", "2019", c.goal.text),
    ]
    judge = Counting()
    rows = score_trajectories(replace(pacific, judge=judge), [a, b, c], trajectories)
    assert judge.asked == [["no idea", "Which?", "Which?"], ["no idea", c.goal.text]], "what settled nothing is not"
    assert [r.score("trajectory", "official") for r in rows] == [0.0, 0.0, 1.0]
    assert [r.outcome for r in rows] == ["no idea", None, c.goal.text]
    assert {s.form for s in rows[1].scores} == set(pacific.judge.forms), "an unsettled one scores 0 in every form"


def test_forms_that_say_nothing_of_first_responses_are_no_metrics(pacific: Task, few_turns: list[TurnState]) -> None:
    task = replace(pacific, judge=Counting())
    report, rows = _evaluate(task, few_turns, OraclePolicy())
    assert not [m.name for m in report.metrics if m.name.startswith("turn ")]
    assert report.metric("trajectory official").value == 1.0  # type: ignore[union-attr]
    again = summarise(task, rows, WHO, 50)
    assert again == report


def test_a_trajectory_without_a_response_is_an_error(pacific: Task, few_turns: list[TurnState]) -> None:
    with pytest.raises(RoleError, match="no room for a response") as caught:
        score_trajectories(pacific, few_turns[:1], [Trajectory("t", (), "too_long")])
    assert caught.value.where == few_turns[0].where


def test_intervals_are_drawn_over_groups(pacific: Task, every_turn: list[TurnState]) -> None:
    """All turns in one group leave nothing to draw: the interval is the figure itself."""
    turns = [replace(t, group="one") for t in every_turn[:40]]
    metric = _evaluate(pacific, turns, Says("no idea"))[0].metric("macro F1")
    assert metric is not None
    assert metric.low == metric.high == metric.value
    apart = _evaluate(pacific, every_turn[:40], Says("no idea"))[0].metric("macro F1")
    assert apart is not None and apart.low is not None and apart.high is not None
    assert apart.low < apart.high


class Wanting:
    """A user who says what they are grounded in."""

    def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
        return list(intents)


def test_the_user_of_each_reading_is_grounded_in_that_reading(pacific: Task, ambiguous: Conversation) -> None:
    turns = pacific.turn_states(ambiguous)
    _, rows = evaluate(
        pacific,
        turns,
        OraclePolicy(),
        RuleClassifier(pacific),
        Wanting(),  # type: ignore[arg-type]
        {t.intent_id: f"I mean {t.clear_request}" for t in turns},
        WHO,
        max_clarifications=3,
        bootstrap_samples=5,
    )
    assert [r.trajectory.split("User: ")[1].splitlines()[0] for r in rows] == [
        f"I mean What were the sales in {year}?" for year in (2018, 2019, 2020)
    ]
