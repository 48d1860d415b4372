"""Asking a model: order, typed failures, and the small parsers that the roles share."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from act_assets.conversation import ANSWER, CLARIFY, Action, ClearRequest
from act_assets.profile import LLMRole
from act_assets.roles.perturbation import Perturber
from act_assets.roles.role import parse_action, require_all, spoken
from act_assets.tasks import get_task
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import RoleError
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError
from resources.llm.client import LLM
from resources.llm.retry import RetrySettings


class Uneven:
    """Answers later requests sooner, and every third not at all."""

    name = "uneven"

    async def complete(self, request: LLMRequest) -> LLMResponse:
        number = int(request.label.split()[-1])
        await asyncio.sleep(0.02 / (number + 1))
        if number % 3 == 0:
            raise ProviderError("timeout", "no answer in time", retryable=True)
        return LLMResponse(f"text {number}", request.model)


def test_answers_keep_their_order_and_failures_are_typed() -> None:
    clear = [ClearRequest("ambig_sql", "train", str(n), "db", "s", "How many?", "SELECT 1", "t") for n in range(12)]
    once = LLM(Uneven(), retry=RetrySettings(attempts=1))  # type: ignore[arg-type]
    perturber, done = Perturber(once, LLMRole(provider="openai", model="m"), get_task("ambig_sql")), []
    results = perturber.perturb(clear, lambda: done.append(1))
    assert results == [
        f"text {n}" if n % 3 else LLMFailure("timeout", "no answer in time", True, request.where)
        for n, request in enumerate(clear)
    ]
    assert len(done) == 12


TIMEOUT = LLMFailure("timeout", "late", True, "turn")
AGAIN = "run it again: only these are asked, the other answers are kept"


def test_require_all_gives_the_texts_or_names_the_first_five_that_failed() -> None:
    assert require_all(["a", "b"], "responses") == ["a", "b"]
    failures = [replace(TIMEOUT, message=f"message {i}", label=f"turn {i}") for i in range(7)]
    with pytest.raises(RoleError) as error:
        require_all(["fine", *failures], "user replies")
    assert error.value.failures == tuple(failures)
    text = error.value.what
    assert "user replies: 7 of 8 questions have no answer" in text
    assert "turn 4: timeout: message 4" in text and "turn 5" not in text and "and 2 more" in text


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["timeout"], AGAIN),
        (["timeout", "budget"], "--max-cost"),
        (["offline"], "--memo offline"),
        (["timeout", "blocked"], "asking again as it is will not help"),
    ],
)
def test_the_advice_promises_no_more_than_asking_again_can_do(kinds: list[str], said: str) -> None:
    with pytest.raises(RoleError) as error:
        require_all([replace(TIMEOUT, kind=k, retryable=k != "blocked") for k in kinds], "responses")
    assert said in error.value.todo
    assert (error.value.todo == AGAIN) == (said == AGAIN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Which year? ", "Which year?"),
        ("Assistant: Which year?", "Which year?"),
        ("assistant:  Which year?", "Which year?"),
        ("(Next, the Assistant asks.)\nAssistant: Which year?", "Which year?"),
        ("(9,819)", "(9,819)"),
        ("Which year?\nUser: 2019\nAssistant: 12", "Which year?"),
        ("Which year? Or which quarter?", "Which year? Or which quarter?"),
        ("Which\nyear?", "Which\nyear?"),
        ("12\nAssistant: 13", "12"),
        ("User: 2019", ""),
        ("Assistant:", ""),
        ("the User: a person", "the User: a person"),
    ],
)
def test_spoken(text, expected):
    assert spoken(text, "Assistant") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CLARIFY", "CLARIFY"),
        (" answer.\n", "ANSWER"),
        ("**ANSWER**", "ANSWER"),
        ("Label: CLARIFY", "CLARIFY"),
        ("CLARIFY, CLARIFY", "CLARIFY"),
        ("CLARIFY or ANSWER", None),
        ("It answers the user.", None),
        ("CLARIFY_MORE", None),
        ("NON-ANSWER", None),
        ("", None),
    ],
)
def test_parse_action(text, expected):
    assert parse_action(text, PACIFIC) == expected


def test_parse_action_tells_overlapping_names_apart():
    more = Action("CLARIFY-MORE", False, "asks again")
    task = replace(PACIFIC, actions=(CLARIFY, ANSWER, more))
    assert parse_action("CLARIFY-MORE", task) == "CLARIFY-MORE"
    assert parse_action("CLARIFY", task) == "CLARIFY"
    assert parse_action("CLARIFY, then CLARIFY-MORE", task) is None
