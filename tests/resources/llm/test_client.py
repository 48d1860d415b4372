"""One typed result per request, in order; each question is paid once, whoever asks it again, meanwhile or later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from scripted import Provider, asking, paid, texts

from resources.llm import client as client_module
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, LLMResult, ProviderError, Usage
from resources.llm.budget import Budget
from resources.llm.client import LLM, Memory
from resources.llm.memo.memo import Memo, close_memos, memo_at
from resources.llm.memo.records import Asker, key_of, question_of
from resources.llm.prices import Price
from resources.llm.retry import RetrySettings

PRICE = Price(1e6, 2e6)  # a dollar for each prompt token, two for each output token


@pytest.fixture(params=["in this process", "in the next one"])
def later(request: pytest.FixtureRequest, memo: Memo) -> Callable[[], Memory]:
    """The memory as it is found later."""

    def found() -> Memory:
        if request.param == "in the next one":
            close_memos()
        return Memory(memo_at(memo.folder))

    return found


# --- without a memo ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 3, 8])
def test_no_more_are_asked_at_once_than_allowed_and_results_come_in_order(bound: int) -> None:
    provider, seen = Provider(0.003), []
    questions = [f"{i}" for i in range(24)]
    llm = LLM(provider, max_concurrency=bound)
    results = llm.complete_all(asking(*questions), lambda: seen.append(len(provider.asked)))
    assert [t.partition(":")[0] for t in texts(results)] == questions and provider.most == bound
    assert len(seen) == 24 and (bound > 1 or seen == list(range(1, 25))), "each is announced as it ends"
    with pytest.raises(ValueError, match="at least 1"):
        LLM(provider, max_concurrency=0)


def test_failures_are_typed_in_their_place_and_counted_with_the_rest() -> None:
    provider = Provider(
        b=[ProviderError("blocked", "no answer", retryable=True)], blank=["\n\t "], bug=[KeyError("choices")]
    )
    llm = LLM(provider, retry=RetrySettings(attempts=1))
    assert llm.complete_all([]) == [] and llm.usage == Usage()
    results = llm.complete_all(asking("a", "b", "blank", "a"))
    assert results[1] == LLMFailure("blocked", "no answer", True, "example 1")
    assert results[2] == LLMFailure("empty", "the provider returned no text", True, "example 2")
    assert len(set(texts(results))) == 4, "without a memo everything is asked"
    used = replace(llm.usage, samples=())
    lost = {"lost_calls": 1, "lost_prompt_tokens": 3, "lost_output_tokens": 4}  # of the blank answer
    assert used == Usage(calls=4, failures=2, prompt_tokens=9, output_tokens=12, **lost)
    llm.complete_all(asking("a"))
    assert replace(llm.usage, samples=()) == used + Usage(calls=1, prompt_tokens=3, output_tokens=4)
    with pytest.raises(KeyError, match="choices"):
        llm.complete_all(asking("a", "bug"))


def test_latency_is_the_providers_own_or_measured() -> None:
    class Silent(Provider):
        async def complete(self, request: LLMRequest) -> LLMResponse:
            return replace(await super().complete(request), latency_s=0.0)

    (own,), (measured,) = (LLM(p).complete_all(asking("a")) for p in (Provider(), Silent(0.01)))
    assert isinstance(own, LLMResponse) and own.latency_s == 0.5
    assert isinstance(measured, LLMResponse) and 0 < measured.latency_s < 5
    assert replace(measured, latency_s=0.5) == own, "nothing is lost by measuring"


# --- with a memo -------------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing_and_gets_the_same(memo: Memo, later: Callable[[], Memory]) -> None:
    provider = Provider()
    first = LLM(provider, memory=Memory(memo), price=PRICE)
    announced: list[int] = []
    results = first.complete_all(asking("a", "b", "a", "refused"), lambda: announced.append(1))
    assert texts(results) == ["a: 1", "b: 2", "a: 1", "rejected"] and len(announced) == 4
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
    who = ("scripted", "https://scripted.example", "model-1", "generator", "pairs", "pacific/50", "run-1", "budget-1")
    counts = "hits, saved_prompt_tokens, saved_output_tokens, saved_usd, failures"
    assert database.query(f"SELECT {columns}, {counts} FROM uses ORDER BY hits") == [
        (*who, hits, 3 * hits, 4 * hits, 11.0 * hits, failures) for hits, failures in ((0, 2), (1, 0), (2, 0))
    ]
    assert database.query(f"SELECT {columns}, label, text, cost_usd FROM answers ORDER BY text") == [
        (*who, "example 0", "a: 1", 11.0),
        (*who, "example 2", "b: 1", 11.0),
    ]
    assert memo_at(memo.folder).spent("budget-1") == (22.0, 2)


def test_the_first_to_ask_gets_the_answer_as_it_is_kept(memo: Memo, later: Callable[[], Memory]) -> None:
    class Odd(Provider):
        async def complete(self, request: LLMRequest) -> LLMResponse:
            return LLMResponse("half \ud83d, NUL \0, 😀", "\ud800", "stop", 10**30, 4, 0.123456789)

    first = LLM(Odd(), memory=Memory(memo), accept_models=["\ud800"]).complete_all(asking("a"))
    assert texts(first) == ["half ?, NUL \0, 😀"]
    [again] = LLM(Odd(), memory=replace(later(), offline=True)).complete_all(asking("a"))
    assert first == [again]


@pytest.mark.parametrize("offline", [False, True])
def test_five_samples_are_five_answers_and_come_back_as_the_same_five(
    memo: Memo, later: Callable[[], Memory], offline: bool
) -> None:
    provider = Provider()
    [question] = asking("a", temperature=1.0)
    samples = [replace(question, sample_index=i) for i in range(5)]
    first = LLM(provider, memory=Memory(memo)).complete_all(samples)
    assert len(set(texts(first))) == 5
    assert LLM(provider, memory=replace(later(), offline=offline)).complete_all(samples[::-1]) == first[::-1]
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


# --- the same question at the same time --------------------------------------------------------------------------


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
    assert client_module._under_way == {}


def test_no_more_is_under_way_or_locked_than_allowed(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(latency_s=0.002)
    acquire, release, held, most = memo.key_locks.acquire, memo.key_locks.release, set(), []

    def acquired(key: str) -> bool:
        held.add(key)
        most.append(len(held))
        return acquire(key)

    def released(key: str) -> None:
        held.remove(key)
        release(key)

    monkeypatch.setattr(memo.key_locks, "acquire", acquired)
    monkeypatch.setattr(memo.key_locks, "release", released)
    LLM(provider, memory=Memory(memo), max_concurrency=3).complete_all(asking(*map(str, range(30))))
    assert provider.most == 3 and max(most) == 3 and not held


def test_what_another_process_is_answered_meanwhile_is_not_asked(memo: Memo) -> None:
    other = Memo(memo.folder)

    class Slow(Provider):
        async def complete(self, request: LLMRequest) -> LLMResponse:
            if not self.asked:
                [later] = asking("b")
                question = question_of(self.name, self.base_url, later)
                other.append([paid("b", "theirs", 1e9, 7.0, key=key_of(question), question=question)])
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
