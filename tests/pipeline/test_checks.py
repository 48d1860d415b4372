"""Each check passes on what is sound and names what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import AmbiguousTwin, ClearRequest, Conversation, Message, PreferencePair
from act_assets.pipeline.checks import (
    Finding,
    balanced,
    chosen_differs,
    covers_actions,
    finite_loss,
    no_empty_response,
    no_leak,
    reward_margin,
    targets_run,
    twins_differ,
)
from act_assets.tasks.base import Task, TaskData, TwinMaker, messages_of
from act_assets.tasks.rules import same_text
from act_assets.training.logging import TrainingPoint

Pairs = list[PreferencePair]


@pytest.fixture(scope="module")
def conversations(sample: TaskData) -> Sequence[Conversation]:
    return sample.train[:6]


@pytest.fixture(scope="module")
def good(pacific: Task, conversations: Sequence[Conversation]) -> Pairs:
    """Every turn of six conversations, against a made-up loser."""
    return pairs_of(pacific, conversations)


def pairs_of(pacific: Task, conversations: Sequence[Conversation]) -> Pairs:
    return [
        PreferencePair(
            task="pacific",
            conversation_id=t.conversation_id,
            turn_id=t.turn_id,
            action=t.action,
            rejected_action="CLARIFY" if t.action == "ANSWER" else "ANSWER",
            prompt=messages_of(pacific, t),
            chosen=t.response.text,
            rejected="Which year?" if t.action == "ANSWER" else "no idea",
            goal=t.goal.text,
        )
        for c in conversations
        for t in pacific.turn_states(c)
    ]


def with_prompt(pair: PreferencePair, change: Callable[[tuple[Message, ...]], tuple[Message, ...]]) -> PreferencePair:
    return replace(pair, prompt=change(pair.prompt))


def test_sound_pairs_pass_everything(pacific: Task, conversations: Sequence[Conversation], good: Pairs) -> None:
    assert {p.action for p in good} == {"CLARIFY", "ANSWER"}
    for finding in (
        no_leak(good, conversations),
        no_empty_response(good),
        chosen_differs(good),
    ):
        assert finding == Finding(True, f"{len(good)} checked")
    assert covers_actions(good, pacific) == Finding(True, "all of CLARIFY, ANSWER")


# How a prompt can be wrong; `pair` is the fifth, whose conversation has earlier turns.
LEAKS: dict[str, Callable[[PreferencePair], PreferencePair]] = {
    "the answer at the end": lambda p: with_prompt(p, lambda m: (*m, Message("assistant", p.chosen))),
    "the answer inside the request": lambda p: with_prompt(
        p, lambda m: (*m[:-1], replace(m[-1], content=f"{m[-1].content} {p.chosen}"))
    ),
    "the next request": lambda p: with_prompt(
        p, lambda m: (*m, Message("assistant", p.chosen), Message("user", "and then?"))
    ),
    "duplicated history": lambda p: with_prompt(p, lambda m: (m[0], *m[1:], *m[1:])),
    "a duplicated exchange": lambda p: with_prompt(p, lambda m: (m[0], *m[1:3], *m[1:])),
    "an exchange too few": lambda p: with_prompt(p, lambda m: (m[0], *m[3:])),
    "no history": lambda p: with_prompt(p, lambda m: (m[0], m[-1])),
    "another order": lambda p: with_prompt(p, lambda m: (m[0], *m[3:5], *m[1:3], *m[5:])),
    "speakers swapped": lambda p: with_prompt(
        p, lambda m: (m[0], replace(m[1], role="assistant"), replace(m[2], role="user"), *m[3:])
    ),
    "an unknown turn": lambda p: replace(p, turn_id="of-nobody"),
}


@pytest.mark.parametrize("fault", LEAKS)
def test_a_prompt_with_more_or_less_than_the_earlier_turns_is_found(
    conversations: Sequence[Conversation], good: Pairs, fault: str
) -> None:
    assert len(good[4].prompt) >= 6, "it has two exchanges before its request"
    broken = LEAKS[fault](good[4])
    finding = no_leak([*good[:4], broken, *good[5:]], conversations)
    assert not finding.passed
    assert finding.offenders == (broken.turn_id,)
    assert finding.description.startswith(f"1 of {len(good)} ")


def test_every_reading_of_a_request_has_the_same_prompt_after_the_history(
    pacific: Task, ambiguous: Conversation
) -> None:
    pairs = pairs_of(pacific, [ambiguous])
    assert [p.turn_id for p in pairs] == list(ambiguous.turns[0].state_ids)
    assert no_leak(pairs, [ambiguous]) == Finding(True, "3 checked")
    # A label that takes the request for an answered one makes one state of the turn, under the turn's own name.
    taken_as_answer = replace(pairs[0], turn_id=ambiguous.turns[0].turn_id)
    assert no_leak([taken_as_answer], [ambiguous]) == Finding(True, "1 checked")


HISTORY_LEAKS: dict[str, Callable[[PreferencePair], PreferencePair]] = {
    "no history": lambda p: with_prompt(p, lambda m: (m[0], m[-1])),
    "half of the history": lambda p: with_prompt(p, lambda m: (m[0], *m[2:])),
    "the history twice": lambda p: with_prompt(p, lambda m: (m[0], *m[1:3], *m[1:])),
    "the reply of one reading": lambda p: with_prompt(
        p, lambda m: (*m, Message("assistant", p.chosen), Message("user", "In 2019."))
    ),
    "a turn that does not exist": lambda p: replace(p, turn_id="sales-2"),
    "a reading too many": lambda p: replace(p, turn_id="sales-1#4"),
}


@pytest.mark.parametrize("fault", HISTORY_LEAKS)
def test_a_prompt_with_more_or_less_than_the_history_is_found(
    pacific: Task, ambiguous: Conversation, fault: str
) -> None:
    first, second, third = pairs_of(pacific, [ambiguous])
    broken = HISTORY_LEAKS[fault](second)
    finding = no_leak([first, broken, third], [ambiguous])
    assert (finding.passed, finding.offenders) == (False, (broken.turn_id,))


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_empty_response_is_found_on_either_side(good: Pairs, side: str, text: str) -> None:
    finding = no_empty_response([*good[:3], replace(good[3], **{side: text})])
    assert (finding.passed, finding.offenders) == (False, (good[3].turn_id,))


@pytest.mark.parametrize("frame", ["{}", " {}", "{}\n"])
def test_equal_responses_are_found_white_space_aside(good: Pairs, frame: str) -> None:
    finding = chosen_differs([*good[:3], replace(good[3], rejected=frame.format(good[3].chosen))])
    assert (finding.passed, finding.offenders) == (False, (good[3].turn_id,))


def test_one_sided_pairs_are_found(pacific: Task, good: Pairs) -> None:
    only_answers = [p for p in good if p.action == "ANSWER"]
    finding = covers_actions(only_answers, pacific)
    assert (finding.passed, finding.offenders) == (False, ("CLARIFY never wins", "ANSWER never loses"))
    one_loser = [replace(p, rejected_action="CLARIFY") for p in good]
    assert covers_actions(one_loser, pacific).offenders == ("ANSWER never loses",)


def test_no_pairs_at_all_cover_nothing(pacific: Task) -> None:
    assert len(covers_actions([], pacific).offenders) == 4


def test_a_finding_counts_all_offenders_and_names_ten(good: Pairs) -> None:
    finding = chosen_differs([replace(p, rejected=p.chosen) for p in good])
    assert finding.description == f"{len(good)} of {len(good)} pairs have equal responses"
    assert finding.offenders == tuple(p.turn_id for p in good[:10])


def point(step: int, loss: float, margin: float | None = None, split: str = "train") -> TrainingPoint:
    return TrainingPoint(step, step / 10, split, loss, margin)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_found(loss: float) -> None:
    assert finite_loss([point(1, 0.5), point(2, 0.0)]) == Finding(True, "2 checked")
    finding = finite_loss([point(1, 0.5), point(2, loss)])
    assert (finding.passed, finding.offenders) == (False, ("step 2",))


def test_a_training_that_logged_nothing_does_not_pass() -> None:
    assert not finite_loss([]).passed
    assert not reward_margin([]).passed


@pytest.mark.parametrize(
    ("margins", "passed"), [([0.1], True), ([-0.2, 0.1, -0.3], True), ([0.0], False), ([-0.1, -0.2], False)]
)
def test_the_best_margin_on_the_validation_pairs_has_to_be_positive(margins: list[float], passed: bool) -> None:
    points = [point(n, 0.5, m, "validation") for n, m in enumerate(margins)]
    assert reward_margin(points).passed is passed
    assert f"{max(margins):+.4f}" in reward_margin(points).description


def test_margins_of_the_training_pairs_do_not_count() -> None:
    assert not reward_margin([point(1, 0.5, 3.0), point(2, 0.5, None, "validation")]).passed


# --- twins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How many?", "how  many", True),
        ("What's \u201cit\u201d?", 'what s "it".', True),
        ("How many?", "How many singers?", False),
        ("5-6", "56", False),
        ("Ünal", "ünal", True),
        ("", "?!", True),
    ],
)
def test_the_same_text_is_the_same_words_in_order(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same_text(other, one) is same


def twin(number: int, request: str = "How many?", target: str = "SELECT 1") -> AmbiguousTwin:
    clear = ClearRequest("tea", "train", f"r-{number}", "db", "columns", "How many singers are there?", target, "t(a)")
    return AmbiguousTwin(clear, request, "How many of what?")


class Maker(TwinMaker):
    """Finds something wrong with every target that says so."""

    def problem(self, folder: Path, request: ClearRequest) -> str | None:
        return f"no such table in {folder}" if request.target.endswith("nowhere") else None


@pytest.fixture
def with_twins(pacific: Task) -> Task:
    return replace(pacific, twins=Maker())


def test_a_twin_that_says_the_same_as_its_original_is_found() -> None:
    assert twins_differ([twin(1), twin(2)]) == Finding(True, "2 checked")
    assert twins_differ([]) == Finding(True, "0 checked")
    finding = twins_differ([twin(1), twin(2, "how many singers are there"), twin(3)])
    assert finding == Finding(False, "1 of 3 twins equal their original", ("r-2",))


def test_a_target_that_does_not_run_is_found(pacific: Task, with_twins: Task, tmp_path: Path) -> None:
    twins = [twin(1), twin(2, target="SELECT a FROM nowhere")]
    assert targets_run(twins[:1], with_twins, tmp_path) == Finding(True, "1 checked")
    assert targets_run(twins, with_twins, tmp_path) == Finding(False, "1 of 2 targets cannot be used", ("r-2",))
    assert targets_run([], pacific, tmp_path).passed, "a task without twins has no targets"


def test_a_group_that_asks_more_often_than_it_answers_is_found(
    pacific: Task, with_twins: Task, ambiguous: Conversation
) -> None:
    (asks,) = (replace(t, readings=()) for t in ambiguous.turns)
    answers = replace(asks, turn_id="a", action="ANSWER")

    def of(group: str, *turns: object) -> Conversation:
        return replace(ambiguous, conversation_id=f"{group} {len(turns)}", group=group, turns=turns)

    # The ambiguous twin goes on to its answer, which is trained on and not evaluated.
    even = [of("pair 1", answers), of("pair 1", asks, replace(answers, evaluated=False))]
    assert balanced(even, with_twins) == Finding(True, "1 checked")
    finding = balanced([*even, of("pair 2", asks), of("pair 3", asks, answers, answers)], with_twins)
    assert finding == Finding(False, "2 of 3 groups are not balanced", ("pair 2", "pair 3"))
    assert balanced([of("pair 2", asks)], pacific).passed, "data that brings its own requests is as it is"
