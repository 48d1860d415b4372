"""Each question is paid once: whoever asks it again, meanwhile or later, gets the same answer from the memo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from resources.llm.base import (
    ChatMessage,
    LLMFailure,
    LLMRequest,
    LLMResponse,
    LLMResult,
    ProviderError,
    Sampling,
)
from resources.llm.client import LLM, Memory
from resources.llm.memo.memo import Memo, close_memos, memo_at
from resources.llm.memo.records import Asker
from resources.llm.prices import Price

PRICE = Price(1e6, 2e6)  # a dollar for each prompt token, two for each output token


class Provider:
    """Answers with the question and the number of the call; notes what it is asked, and how much at once."""

    name = "scripted"
    base_url = "https://scripted.example"

    def __init__(self, latency_s: float = 0.0, rules: str | None = None) -> None:
        self.latency_s, self.rules = latency_s, rules
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

    def fingerprint(self, request: LLMRequest) -> str | None:
        return self.rules


def asking(*questions: str, **sampling: float) -> list[LLMRequest]:
    return [
        LLMRequest("generator", "model-1", (ChatMessage("user", q),), Sampling(**sampling), f"example {i}")
        for i, q in enumerate(questions)
    ]


def texts(results: Sequence[LLMResult]) -> list[str]:
    return [r.text if isinstance(r, LLMResponse) else r.kind for r in results]


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    yield memo_at(tmp_path / "memo")
    close_memos()


@pytest.fixture(params=["in this process", "in the next one"])
def later(request: pytest.FixtureRequest, memo: Memo) -> Callable[[], Memory]:
    """The memory as it is found later."""

    def found() -> Memory:
        if request.param == "in the next one":
            close_memos()
        return Memory(memo_at(memo.folder))

    return found


def test_a_second_run_asks_nothing_and_gets_the_same(memo: Memo, later: Callable[[], Memory]) -> None:
    provider = Provider()
    first = LLM(provider, memory=Memory(memo), price=PRICE)
    results = first.complete_all(asking("a", "b", "a", "refused"))
    assert texts(results) == ["a: 1", "b: 2", "a: 1", "rejected"]
    assert [r.label for r in results if isinstance(r, LLMFailure)] == ["example 3"]
    used = first.usage
    assert (used.calls, used.hits, used.failures, used.retries) == (3, 1, 1, 0)
    assert (used.prompt_tokens, used.output_tokens, used.cost_usd, used.saved_usd) == (6, 8, 22.0, 11.0)
    again = LLM(provider, memory=later(), price=PRICE)
    assert again.complete_all(asking("b", "a")) == [results[1], results[0]]
    assert provider.asked == ["a", "b", "refused"]
    used = again.usage
    assert (used.calls, used.hits, used.failures) == (0, 2, 0)
    assert (used.prompt_tokens, used.output_tokens, used.cost_usd, used.saved_usd) == (0, 0, 0.0, 22.0)
    assert [(s.label, s.answer, s.memoized) for s in used.samples] == [
        ("example 0", "b: 2", True),
        ("example 1", "a: 1", True),
    ]


def test_hits_and_failures_are_in_the_ledger_with_who_asked(memo: Memo) -> None:
    asker = Asker("pairs", "pacific/50", "run-1", "budget-1")
    for questions in (["a", "refused", "refused too"], ["a", "a", "b"], ["b"]):
        LLM(Provider(), memory=Memory(memo), price=PRICE, asker=asker).complete_all(asking(*questions))
    close_memos()
    database = memo_at(memo.folder).database
    columns = "provider, base_url, model, role, asset, partition, run, budget"
    assert database.query(
        f"SELECT {columns}, hits, saved_prompt_tokens, saved_output_tokens, saved_usd, failures FROM uses ORDER BY hits"
    ) == [
        (
            *("scripted", "https://scripted.example", "model-1", "generator"),
            *("pairs", "pacific/50", "run-1", "budget-1", hits, 3 * hits, 4 * hits, 11.0 * hits, failures),
        )
        for hits, failures in ((0, 2), (1, 0), (2, 0))
    ]
    answers = database.query(f"SELECT {columns}, label, text, cost_usd FROM answers ORDER BY text")
    assert [row[-3:] for row in answers] == [("example 0", "a: 1", 11.0), ("example 2", "b: 1", 11.0)]
    assert {row[:8] for row in answers} == {
        ("scripted", "https://scripted.example", "model-1", "generator", "pairs", "pacific/50", "run-1", "budget-1")
    }
    assert memo_at(memo.folder).spent("budget-1") == (22.0, 2)


def test_the_first_to_ask_gets_the_answer_as_it_is_kept(memo: Memo, later: Callable[[], Memory]) -> None:
    class Odd(Provider):
        async def complete(self, request: LLMRequest) -> LLMResponse:
            return LLMResponse("half \ud83d, NUL \0, 😀", "\ud800", "stop", 10**30, 4, 0.123456789)

    first = LLM(Odd(), memory=Memory(memo)).complete_all(asking("a"))
    assert texts(first) == ["half ?, NUL \0, 😀"]
    [again] = LLM(Odd(), memory=replace(later(), offline=True)).complete_all(asking("a"))
    assert first == [again]


def test_without_a_memo_everything_is_asked(tmp_path: Path) -> None:
    provider = Provider()
    llm = LLM(provider)
    assert len(set(texts(llm.complete_all(asking("a", "a", "b"))))) == 3
    assert llm.complete_all([]) == [] and (llm.usage.calls, llm.usage.hits) == (3, 0)


def test_results_come_in_order_and_each_is_announced(memo: Memo) -> None:
    announced: list[int] = []
    llm = LLM(Provider(), memory=Memory(memo))
    llm.complete_all(asking("b"))
    results = llm.complete_all(asking("a", "refused", "b", "a"), on_done=lambda: announced.append(1))
    assert [t[0] for t in texts(results)] == ["a", "r", "b", "a"] and len(announced) == 4


@pytest.mark.parametrize("mode", ["normal", "offline"])
def test_five_samples_are_five_answers_and_come_back_as_the_same_five(
    memo: Memo, later: Callable[[], Memory], mode: str
) -> None:
    provider = Provider()
    [question] = asking("a", temperature=1.0)
    samples = [replace(question, sample_index=i) for i in range(5)]
    first = LLM(provider, memory=Memory(memo)).complete_all(samples)
    assert len(set(texts(first))) == 5 and len(provider.asked) == 5
    memory = replace(later(), offline=mode == "offline")
    assert LLM(provider, memory=memory).complete_all(samples[::-1]) == first[::-1]
    assert len(provider.asked) == 5
    close_memos()
    rows = memo_at(memo.folder).database.query("SELECT sample_index, text FROM answers ORDER BY sample_index")
    assert rows == list(enumerate(texts(first)))


def test_offline_serves_what_is_there_and_says_what_is_not(memo: Memo, later: Callable[[], Memory]) -> None:
    provider = Provider()
    LLM(provider, memory=Memory(memo)).complete_all(asking("a"))
    llm = LLM(provider, memory=replace(later(), offline=True))
    hit, missed = llm.complete_all(asking("a", "b"))
    assert isinstance(hit, LLMResponse) and hit.text == "a: 1"
    assert isinstance(missed, LLMFailure) and (missed.kind, missed.retryable) == ("offline", False)
    assert missed.label == "example 1" and provider.asked == ["a"]
    assert (llm.usage.calls, llm.usage.hits, llm.usage.failures) == (0, 1, 1)
    LLM(provider, memory=Memory(memo_at(memo.folder))).complete_all(asking("b"))
    close_memos()
    [[key]] = memo_at(memo.folder).database.query("SELECT key FROM answers WHERE text = 'b: 2'")
    assert key in missed.message  # so that it can be found later


def test_refreshing_asks_what_is_older_once_more_and_keeps_what_was_there(
    memo: Memo, later: Callable[[], Memory]
) -> None:
    provider = Provider()
    llm = LLM(provider, memory=Memory(memo))
    llm.complete_all(asking("a"))
    time.sleep(0.002)
    since = time.time()
    llm.complete_all(asking("b"))
    for calls, hits in ((1, 1), (0, 2)):
        refreshing = LLM(provider, memory=replace(later(), not_before=since))
        assert texts(refreshing.complete_all(asking("a", "b"))) == ["a: 3", "b: 2"]
        assert (refreshing.usage.calls, refreshing.usage.hits) == (calls, hits)
    assert texts(LLM(provider, memory=later()).complete_all(asking("a", "b"))) == ["a: 3", "b: 2"]
    assert provider.asked == ["a", "b", "a"]
    close_memos()
    database = memo_at(memo.folder).database
    assert database.query("SELECT text FROM answers ORDER BY text") == [("a: 3",), ("b: 2",)]
    assert database.query("SELECT text FROM history") == [("a: 1",)]


def test_what_else_an_answer_depends_on_is_part_of_the_question(memo: Memo) -> None:
    results = [
        LLM(Provider(rules=rules), memory=Memory(memo)).complete_all(asking("a", "b"))
        for rules in (None, "rules 1", "rules 2", "rules 1", None)
    ]
    assert results[0] == results[4] and results[1] == results[3]
    close_memos()
    assert memo_at(memo.folder).database.query("SELECT count(*) FROM answers") == [(6,)]
