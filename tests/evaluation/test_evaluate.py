"""Evaluation: on each task's evaluated side with its own judge the oracle scores 1.0 and constant policies score
what the class counts say; what counts how often; what is an error and no score."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Conversation, Trajectory, TurnState, Utterance
from act_assets.evaluation.evaluate import (
    EvaluatedTurn,
    EvaluationReport,
    Provenance,
    Said,
    evaluate,
    evaluate_actions,
    read_report,
    score_trajectories,
    write_report,
)
from act_assets.methods.baselines import question_only
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.roles import GoldUser, RuleClassifier
from act_assets.run import Run, equipped_task, evaluated_turns, evaluation_side
from act_assets.tasks import data_folder, get_task
from act_assets.tasks.base import Scores, Task, TaskData
from act_assets.tasks.pacific.answer import PacificJudge
from act_assets.trajectory import Dialogue
from resources.errors import DataError, RoleError
from resources.llm.base import LLMFailure

pytestmark = pytest.mark.integration

WHO = Provenance(
    "known",
    "pacific",
    50,
    3,
    "tiny",
    "none",
    "gold user",
    "rule",
    "DROP F1",
    side="validation",
    action_supervision="gold",
)
Evaluated = tuple[EvaluationReport, list[EvaluatedTurn]]


class Oracle:
    """The gold response, then the goal."""

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        return [Utterance("assistant", (d.turn.goal if d.utterances else d.turn.response).text, "") for d in dialogues]


class Says:
    """The same words to everything; the last of them again and again."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        last = len(self.words) - 1
        return [Utterance("assistant", self.words[min(len(d.utterances) // 2, last)], "") for d in dialogues]


def run(task: Task, turns: Sequence[TurnState], policy: Any, user: Any = None, intents: Any = None) -> Evaluated:
    return evaluate(
        task,
        turns,
        policy,
        RuleClassifier(task),
        user or GoldUser(),
        intents or {},
        replace(WHO, task=task.name),
        max_clarifications=3,
        bootstrap_samples=50,
    )


def figure(report: EvaluationReport, name: str) -> tuple[float | None, int]:
    metric = report.metric(name)
    assert metric is not None, name
    return metric.value, metric.count


@pytest.fixture(scope="module", params=["pacific", "abg_coqa", "ambig_sql"])
def prepared(
    run_below: Callable[..., Run], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run with the task's evaluated side made from the bundled sample."""
    root = tmp_path_factory.mktemp(request.param)
    folder, origin = data_folder(request.param)
    made = run_below(root, task=get_task(request.param), data_dir=folder, data_origin=origin)
    stages = ("raw_dataset", "ambiguous_requests", "conversations")
    return replace(made, inputs={name: run_stage(STAGES, name, made).artifact for name in stages})


def class_counts(prepared: Run, turns: Sequence[TurnState]) -> tuple[int, int]:
    """Evaluated states that ask, that answer: PACIFIC's validation side; Abg-CoQA's test side, 22 ambiguous requests
    with 48 readings beside 178 clear ones; AmbigSQL's twins, as many as there are."""
    actions = [t.action for t in turns]
    counted = actions.count("CLARIFY"), actions.count("ANSWER")
    known = {"pacific": (26, 162), "abg_coqa": (48, 178)}
    assert counted == known.get(prepared.task.name, (len(turns) // 2, len(turns) // 2))
    return counted


def test_the_oracle_scores_one(prepared: Run) -> None:
    task, turns = equipped_task(prepared), evaluated_turns(prepared)
    report, rows = run(task, turns, Oracle())
    asks, _ = class_counts(prepared, turns)
    at_turn = [f"turn {form}" for form in task.judge.forms if task.name != "ambig_sql"]  # nothing of a question there
    later = [f"{level} {form}" for level in ("trajectory", "post-clarification") for form in task.judge.forms]
    assert {m.name: m.value for m in report.metrics} == dict.fromkeys(["accuracy", "macro F1", *at_turn, *later], 1.0)
    assert figure(report, f"post-clarification {task.judge.forms[0]}") == (1.0, asks)
    prompts = len({t.prompt_id for t in turns})
    assert [figure(report, name)[1] for name in at_turn] == [prompts] * len(at_turn), "once for each prompt"
    assert {b.answer_type for b in report.breakdown} >= {t.goal.answer_type for t in turns}
    assert all(m.value in (1.0, None) for b in report.breakdown for m in b.metrics)
    assert len(rows) == len(turns)
    assert evaluation_side(prepared) == ("validation" if task.name == "pacific" else "test")


@pytest.mark.parametrize("action", ["CLARIFY", "ANSWER"])
def test_a_constant_policy_scores_what_the_class_counts_say(prepared: Run, action: str) -> None:
    task, turns = equipped_task(prepared), evaluated_turns(prepared)
    answer = "SELECT 'no such answer'" if task.name == "ambig_sql" else "zzzz"
    report, rows = run(task, turns, Says("What do you mean?" if action == "CLARIFY" else answer))
    asks, answers = class_counts(prepared, turns)
    right = asks if action == "CLARIFY" else answers
    assert figure(report, "accuracy") == (right / len(turns), len(turns))
    assert figure(report, "macro F1")[0] == pytest.approx(2 * right / (right + len(turns)) / 2)
    assert report.confusion == (((asks, 0), (answers, 0)) if action == "CLARIFY" else ((0, asks), (0, answers)))
    main = task.judge.forms[0]
    if action == "CLARIFY":
        assert {r.ended for r in rows} == {"max_clarifications"}, "never settled"
        assert figure(report, f"post-clarification {main}") == (0.0, len(turns))
    else:
        assert figure(report, f"post-clarification {main}") == (None, 0)
    if action == "CLARIFY" or task.name != "abg_coqa":  # a cosine is never exactly 0
        assert figure(report, f"trajectory {main}")[0] == 0.0


def test_predictors_of_actions_alone_have_no_content_metrics(
    pacific: Task, sample: TaskData, every_turn: list[TurnState]
) -> None:
    train = [t for c in sample.train for t in pacific.turn_states(c)]
    turns = [t for c in sample.validation for t in pacific.turn_states(c)]
    predicted = question_only(train, turns, 0)
    assert question_only(train, turns, 0) == predicted
    assert question_only([t for t in train if t.action == "ANSWER"], turns, 0) == ["ANSWER"] * len(turns)
    report = evaluate_actions(pacific, turns, predicted, WHO, bootstrap_samples=50)
    assert [m.name for m in report.metrics] == ["accuracy", "macro F1"]
    low = report.metrics[1].low
    assert low is not None and low > 0.463, "words of the question alone beat always answering"


def test_reports_survive_the_file_whose_keys_stay(pacific: Task, every_turn: list[TurnState], tmp_path: Path) -> None:
    report, _ = run(pacific, every_turn[:40], Says("no idea"))
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report
    raw = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert " ".join(raw) == (
        "method task train_size seed profile policy simulator classifier judge side action_supervision "
        "actions confusion metrics breakdown notes"
    )
    assert (report.method, report.seed, report.simulator, report.side) == ("known", 3, "gold user", "validation")
    assert all(m.count == 40 for m in report.metrics if not m.name.startswith("post"))
    assert "40 turns" in report.notes[0] and "trajectories:" not in report.notes[0]


def test_intervals_are_drawn_over_groups(pacific: Task, every_turn: list[TurnState]) -> None:
    """All turns in one group leave nothing to draw: the interval is the figure itself."""
    for turns, width in ((every_turn[:40], True), ([replace(t, group="one") for t in every_turn[:40]], False)):
        metric = run(pacific, turns, Says("no idea"))[0].metric("macro F1")
        assert metric is not None and metric.low is not None and metric.high is not None
        assert (metric.low < metric.high) is width
        assert width or metric.low == metric.value


def test_every_reading_is_run_to_its_own_goal_and_its_first_response_counts_once(
    pacific: Task, ambiguous: Conversation, every_turn: list[TurnState]
) -> None:
    turns = [*pacific.turn_states(ambiguous), *[t for t in every_turn if t.action == "ANSWER"][:2]]
    report, rows = run(pacific, turns, Oracle())
    assert [r.turn_id for r in rows] == [t.turn_id for t in turns]
    assert [r.outcome for r in rows[:3]] == ["5 (in millions)", "6 (in millions)", "7 (in millions)"]
    assert {(r.prompt_id, r.group) for r in rows[:3]} == {("sales-1", "a bakery")}
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
    report, rows = run(pacific, turns, Says(turns[0].response.text, "6 (in millions)"))
    assert [r.score("turn", "official") for r in rows] == [1.0, 1.0, 1.0, 0.0]
    assert figure(report, "turn official")[0] == 0.5
    assert [r.score("trajectory", "official") for r in rows] == [0.0, 1.0, 0.0, 0.0]
    assert figure(report, "trajectory official")[0] == 0.25


def test_the_user_of_each_reading_is_grounded_in_that_reading(pacific: Task, ambiguous: Conversation) -> None:
    class Wanting:
        """A user who says what they are grounded in."""

        def reply(self, turns: Any, intents: Sequence[str], trajectories: Any) -> list[str]:
            return list(intents)

    turns = pacific.turn_states(ambiguous)
    _, rows = run(pacific, turns, Oracle(), Wanting(), {t.intent_id: f"I mean {t.clear_request}" for t in turns})
    wanted = [f"I mean What were the sales in {year}?" for year in (2018, 2019, 2020)]
    assert [r.utterances[1] for r in rows] == [Said("user", text, "", False) for text in wanted]


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


def test_all_trajectories_are_scored_at_once_and_each_gets_its_own_scores(
    pacific: Task, few_turns: list[TurnState]
) -> None:
    a, b, c = few_turns[:3]
    said = [Utterance("assistant", text, "") for text in ("no idea", "Which?", c.goal.text)]
    trajectories = [
        Trajectory(a.turn_id, (said[0],), "settled"),
        Trajectory(b.turn_id, (replace(said[1], truncated=True),), "max_clarifications"),
        Trajectory(c.turn_id, (said[1], Utterance("user", "2019", ""), said[2]), "settled"),
    ]
    judge = Counting()
    rows = score_trajectories(replace(pacific, judge=judge), [a, b, c], trajectories)
    assert judge.asked == [["no idea", "Which?", "Which?"], ["no idea", c.goal.text]], "what settled nothing is not"
    assert [r.score("trajectory", "official") for r in rows] == [0.0, 0.0, 1.0]
    assert [r.outcome for r in rows] == ["no idea", None, c.goal.text]
    assert [r.truncated for r in rows] == [False, True, False]
    assert {s.form for s in rows[1].scores} == set(pacific.judge.forms), "an unsettled one scores 0 in every form"


def test_what_is_an_error_and_no_score(pacific: Task, few_turns: list[TurnState]) -> None:
    class Refusing:
        def reply(self, turns: Sequence[TurnState], intents: Any, trajectories: Any) -> list[LLMFailure]:
            return [LLMFailure("timeout", "no answer", True, t.turn_id) for t in turns]

    with pytest.raises(DataError):
        run(pacific, [], Oracle())
    with pytest.raises(RoleError) as caught:
        run(pacific, few_turns[:5], Says("Which?"), Refusing())
    assert len(caught.value.failures) == 5
    with pytest.raises(RoleError) as caught:
        score_trajectories(pacific, few_turns[:1], [Trajectory("t", (), "too_long")])
    assert caught.value.where == few_turns[0].where
