"""The seam to language models: one typed result per request, in order, whatever the provider does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, ProviderError, Sampling, Usage
from resources.llm.client import LLM
from resources.llm.retry import RetrySettings

ONCE = RetrySettings(attempts=1)


class Provider:
    """Answers by what `reply` makes of a request's number, after a random while; notes how many it does at once."""

    name = "test"

    def __init__(self, reply: Callable[[int], LLMResponse], longest_s: float = 0.0) -> None:
        self.reply, self.longest_s = reply, longest_s
        self.asked, self.now, self.most = 0, 0, 0

    async def complete(self, request: LLMRequest) -> LLMResponse:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(random.uniform(0, self.longest_s))
        self.now -= 1
        return self.reply(int(request.messages[0].content))


def requests(number: int) -> list[LLMRequest]:
    return [
        LLMRequest("simulator", "m", (ChatMessage("user", str(i)),), Sampling(), f"turn {i}") for i in range(number)
    ]


def numbered(number: int) -> LLMResponse:
    return LLMResponse(f"answer {number}", "m", prompt_tokens=10, output_tokens=number)


def failing(number: int) -> LLMResponse:
    """Every third request fails, each in its own way."""
    kinds = ("unavailable", "timeout", "blocked")
    if number % 3 == 0:
        raise ProviderError(kinds[number // 3 % 3], f"no answer to {number}", retryable=number % 2 == 0)
    return numbered(number)


def test_answers_come_in_the_order_asked_however_long_each_takes() -> None:
    results = LLM(Provider(numbered, 0.02), max_concurrency=16).complete_all(requests(60))
    assert [r.text for r in results if isinstance(r, LLMResponse)] == [f"answer {i}" for i in range(60)]


@pytest.mark.parametrize("bound", [1, 3, 8])
def test_no_more_are_asked_at_once_than_allowed_and_no_fewer(bound: int) -> None:
    provider = Provider(numbered, 0.005)
    LLM(provider, max_concurrency=bound).complete_all(requests(24))
    assert provider.most == bound


def test_concurrency_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LLM(Provider(numbered), max_concurrency=0)


def test_a_failure_is_typed_in_its_place_and_the_others_are_answered() -> None:
    results = LLM(Provider(failing, 0.005), retry=ONCE).complete_all(requests(9))
    assert results[0] == LLMFailure("unavailable", "no answer to 0", True, "turn 0")
    assert results[3] == LLMFailure("timeout", "no answer to 3", False, "turn 3")
    assert results[6] == LLMFailure("blocked", "no answer to 6", True, "turn 6")
    assert [r.text for i, r in enumerate(results) if i % 3] == [f"answer {i}" for i in range(9) if i % 3]


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_answer_is_a_failure_that_names_its_example(text: str) -> None:
    (result,) = LLM(Provider(lambda number: LLMResponse(text, "m"))).complete_all(requests(1))
    assert result == LLMFailure("empty", "the provider returned no text", True, "turn 0")


def test_a_bug_in_a_provider_is_not_taken_for_an_answer() -> None:
    def broken(number: int) -> LLMResponse:
        raise KeyError("choices")

    with pytest.raises(KeyError, match="choices"):
        LLM(Provider(broken)).complete_all(requests(3))


def test_usage_counts_calls_failures_and_tokens_over_all_batches() -> None:
    llm = LLM(Provider(failing), retry=ONCE)
    assert llm.usage == Usage()
    llm.complete_all(requests(6))  # 1, 2, 4 and 5 are answered
    assert replace(llm.usage, samples=()) == Usage(calls=6, failures=2, prompt_tokens=40, output_tokens=12)
    llm.complete_all(requests(2))  # 1 is answered
    assert replace(llm.usage, samples=()) == Usage(calls=8, failures=3, prompt_tokens=50, output_tokens=13)


def test_usages_add_up() -> None:
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)


def test_done_is_told_once_per_item_failures_included_as_it_goes() -> None:
    provider, seen = Provider(failing, 0.005), []
    LLM(provider, max_concurrency=1, retry=ONCE).complete_all(requests(9), lambda: seen.append(provider.asked))
    assert seen == list(range(1, 10))


def test_latency_is_the_providers_own_or_measured() -> None:
    (own,) = LLM(Provider(lambda number: LLMResponse("a", "m", latency_s=7.5))).complete_all(requests(1))
    (measured,) = LLM(Provider(numbered, 0.01)).complete_all(requests(1))
    assert isinstance(own, LLMResponse)
    assert isinstance(measured, LLMResponse)
    assert own.latency_s == 7.5
    assert 0 < measured.latency_s < 5
    assert (measured.text, measured.prompt_tokens) == ("answer 0", 10), "nothing is lost by measuring"


def test_nothing_asked_is_nothing_answered() -> None:
    llm = LLM(Provider(numbered))
    assert llm.complete_all([]) == []
    assert llm.usage == Usage()
