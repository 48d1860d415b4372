"""A question that several ask at the same time is sent once, and each of them gets the answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources.llm import client as client_module
from resources.llm.base import (
    ChatMessage,
    LLMFailure,
    LLMRequest,
    LLMResponse,
    LLMResult,
    ProviderError,
    Sampling,
    Usage,
)
from resources.llm.budget import Budget
from resources.llm.client import LLM, Memory
from resources.llm.memo.memo import Memo, close_memos, memo_at
from resources.llm.memo.records import Asker, new_answer, question_of
from resources.llm.prices import Price

PRICE = Price(1e6, 2e6)  # a dollar for each prompt token, two for each output token


class Provider:
    """Answers with the question and the number of the call; notes what it is asked, and how much at once."""

    name = "scripted"
    base_url = "https://scripted.example"

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.asked: list[str] = []
        self.now = self.most = 0

    async def complete(self, request: LLMRequest) -> LLMResponse:
        question = request.messages[0].content
        self.asked.append(question)
        number = len(self.asked)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.latency_s)
        self.now -= 1
        if question.startswith("refused"):
            raise ProviderError("rejected", "no", retryable=False)
        return LLMResponse(f"{question}: {number}", "scripted-001", "stop", 3, 4, 0.5)

    def fingerprint(self, request: LLMRequest) -> None:
        return None


def asking(*questions: str) -> list[LLMRequest]:
    return [
        LLMRequest("generator", "model-1", (ChatMessage("user", q),), Sampling(), f"example {i}")
        for i, q in enumerate(questions)
    ]


def texts(results: Sequence[LLMResult]) -> list[str]:
    return [r.text if isinstance(r, LLMResponse) else r.kind for r in results]


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    yield memo_at(tmp_path / "memo")
    close_memos()


class SlowlyCounted(LLM):
    """Another thread may come between the reading and the writing of what has been used so far."""

    @property
    def usage(self) -> Usage:
        used = self._used
        time.sleep(0.005)
        return used

    @usage.setter
    def usage(self, used: Usage) -> None:
        self._used = used


def test_eight_threads_ask_each_question_once(memo: Memo) -> None:
    provider = Provider(latency_s=0.005)
    shared = SlowlyCounted(provider, memory=Memory(memo), price=PRICE, max_concurrency=4)
    questions = [f"question {i}" for i in range(40)]
    start = threading.Barrier(8)

    def work(number: int) -> list[LLMResult]:
        llm = shared if number % 2 else LLM(provider, memory=Memory(memo), price=PRICE)
        turned = questions[number * 5 :] + questions[: number * 5]
        start.wait()
        results = dict(zip(turned, llm.complete_all(asking(*turned)), strict=True))
        if not number % 2:
            usages.append(llm.usage)
        return [results[q] for q in questions]

    usages = [shared.usage]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(8)))
    assert sorted(provider.asked) == sorted(questions)
    assert all(r == results[0] for r in results)
    assert [text.partition(":")[0] for text in texts(results[0])] == questions
    usages.append(shared.usage)
    assert sum(u.calls for u in usages) == 40 and sum(u.hits for u in usages) == 7 * 40
    assert sum(u.cost_usd for u in usages) == 40 * 11 and sum(u.saved_usd for u in usages) == 7 * 40 * 11
    assert sum(u.failures + u.retries for u in usages) == 0
    assert memo._open == {} and client_module._under_way == {}


def test_no_more_is_under_way_or_locked_than_allowed(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(latency_s=0.002)
    begin, end, held, most = memo.key_locks.acquire, memo.key_locks.release, set(), []

    def begun(key: str) -> bool:
        held.add(key)
        most.append(len(held))
        return begin(key)

    def ended(key: str) -> None:
        held.remove(key)
        end(key)

    monkeypatch.setattr(memo.key_locks, "begin", begun)
    monkeypatch.setattr(memo.key_locks, "end", ended)
    LLM(provider, memory=Memory(memo), max_concurrency=3).complete_all(asking(*map(str, range(30))))
    assert provider.most == 3 and max(most) == 3 and not held


def test_what_another_process_is_answered_meanwhile_is_not_asked(memo: Memo) -> None:
    other = Memo(memo.folder)

    class Slow(Provider):
        async def complete(self, request: LLMRequest) -> LLMResponse:
            if not self.asked:
                [later] = asking("b")
                question = question_of(self.name, self.base_url, later)
                theirs = LLMResponse("theirs", "scripted-001", "stop", 3, 4, 0.5)
                other.append([new_answer(self.name, self.base_url, later, question, theirs, Asker(), 7.0)])
            return await super().complete(request)

    provider = Slow()
    llm = LLM(provider, memory=Memory(memo), max_concurrency=1, price=PRICE)
    assert texts(llm.complete_all(asking("a", "b", "b"))) == ["a: 1", "theirs", "theirs"]
    assert provider.asked == ["a"] and (llm.usage.calls, llm.usage.hits, llm.usage.saved_usd) == (1, 2, 14.0)


def test_everybody_who_shares_a_failure_is_told_of_their_own_example(memo: Memo) -> None:
    llm = LLM(Provider(), memory=Memory(memo))
    results = llm.complete_all(asking("refused", "refused", "refused"))
    assert [r.label for r in results if isinstance(r, LLMFailure)] == ["example 0", "example 1", "example 2"]
    assert (llm.usage.calls, llm.usage.failures) == (1, 3)


def test_a_question_that_another_may_not_ask_is_asked_by_who_may(memo: Memo) -> None:
    provider = Provider(latency_s=0.1)
    poor = LLM(provider, memory=Memory(memo), budget=Budget(None, 1))
    rich = LLM(provider, memory=Memory(memo))
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(poor.complete_all, asking("a", "b"))
        while not provider.asked:  # "b" now waits for what "a" will cost
            time.sleep(0.001)
        second = rich.complete_all(asking("b"))
    assert texts(first.result()) == ["a: 1", "budget"] and texts(second) == ["b: 2"]
