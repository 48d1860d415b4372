"""What has no answer is said so, never kept, and asked again by the next run, together with nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import Provider, asking, texts

from resources.errors import ActError
from resources.llm import client as client_module
from resources.llm.base import FailureKind, LLMFailure, LLMResponse, ProviderError
from resources.llm.budget import Budget
from resources.llm.client import LLM, Memory
from resources.llm.memo.memo import Memo, close_memos, memo_at
from resources.llm.memo.records import key_of, question_of
from resources.llm.prices import Price
from resources.llm.retry import RetrySettings

pytestmark = pytest.mark.integration

PRICE = Price(1e6, 1e6)  # a dollar for each token, 7 for a call
QUICK = RetrySettings(timeout_s=5.0, attempts=3, patience_s=5.0, backoff_s=0.001)


def fails(kind: FailureKind, *, retryable: bool = False, wait: float | None = None, lost: int = 0) -> ProviderError:
    return ProviderError(kind, f"said {kind}", retryable=retryable, retry_after_s=wait, output_tokens=lost)


def test_failures_are_not_kept_and_only_they_are_asked_again(memo: Memo) -> None:
    kinds: tuple[FailureKind, ...] = ("unavailable", "blocked", "empty", "truncated", "rejected", "timeout")
    provider = Provider(**{kind: [fails(kind), "late"] for kind in kinds}, blank=[" \n", "text"])
    questions = ["a", *kinds, "blank", "b"]
    first = LLM(provider, memory=Memory(memo), retry=QUICK)
    results = first.complete_all(asking(*questions))
    assert texts(results) == ["a: 1", *kinds, "empty", "b: 9"]
    failed = [r for r in results if isinstance(r, LLMFailure)]
    assert [f.label for f in failed] == [f"example {i}" for i in range(1, 8)] and failed[1].message == "said blocked"
    close_memos()
    assert memo_at(memo.folder).database.query("SELECT count(*) FROM answers") == [(2,)]
    provider.asked.clear()
    provider.steps = {kind: ["late"] for kind in (*kinds, "blank")}
    for asked in ([*kinds, "blank"], []):
        again = LLM(provider, memory=Memory(memo_at(memo.folder)), retry=QUICK)
        assert texts(again.complete_all(asking(*questions))) == ["a: 1", *["late"] * 7, "b: 9"]
        assert sorted(provider.asked) == sorted(asked) and again.usage.calls == len(asked)
        provider.asked.clear()


@pytest.mark.parametrize("kind", ["unavailable", "timeout"])
def test_what_may_pass_is_tried_again_a_bounded_number_of_times(memo: Memo, kind: FailureKind) -> None:
    provider = Provider(a=[fails(kind, retryable=True)], b=[*[fails(kind, retryable=True)] * 2, "at last"])
    llm = LLM(provider, memory=Memory(memo), retry=QUICK)
    failed, answered = llm.complete_all(asking("a", "b"))
    assert isinstance(failed, LLMFailure) and failed.kind == kind and failed.retryable
    assert failed.message == f"said {kind} (3 attempts)"
    assert texts([answered]) == ["at last"]
    assert provider.asked.count("a") == provider.asked.count("b") == 3
    assert (llm.usage.calls, llm.usage.retries, llm.usage.failures) == (2, 4, 1)


@pytest.mark.parametrize("kind", ["blocked", "empty", "truncated", "rejected", "malformed"])
@pytest.mark.parametrize("retryable", [True, False])
def test_what_will_not_change_is_tried_once(memo: Memo, kind: FailureKind, retryable: bool) -> None:
    provider = Provider(a=[fails(kind, retryable=retryable, lost=7), "never"])
    llm = LLM(provider, memory=Memory(memo), retry=QUICK, price=PRICE)
    [failed] = llm.complete_all(asking("a"))
    assert isinstance(failed, LLMFailure) and (failed.kind, failed.retryable) == (kind, retryable)
    assert provider.asked == ["a"] and (llm.usage.calls, llm.usage.retries) == (1, 0)
    assert (llm.usage.output_tokens, llm.usage.cost_usd) == (7, 7.0)  # it was charged
    assert memo.spent("") == (7.0, 1)


def test_unavailable_is_not_tried_again_where_the_provider_says_so(memo: Memo) -> None:
    provider = Provider(a=[fails("unavailable", retryable=False), "never"])
    assert texts(LLM(provider, retry=QUICK).complete_all(asking("a"))) == ["unavailable"]
    assert provider.asked == ["a"]


def test_an_answer_of_another_model_is_not_kept_unless_it_is_accepted(memo: Memo) -> None:
    provider = Provider()
    provider.reports = "model-9-flash"
    [failed] = LLM(provider, memory=Memory(memo), retry=QUICK, price=PRICE).complete_all(asking("a"))
    assert isinstance(failed, LLMFailure) and (failed.kind, failed.retryable) == ("other_model", False)
    assert "accept_models: [model-9-flash]" in failed.message and provider.asked == ["a"]
    assert memo.spent("") == (7.0, 1), "it was charged"
    admits = LLM(provider, memory=Memory(memo), retry=QUICK, accept_models=["model-9-flash"])
    assert texts(admits.complete_all(asking("a"))) == ["a: 2"]
    assert texts(LLM(provider, memory=Memory(memo)).complete_all(asking("a"))) == ["a: 2"], "what is kept stays of use"


@pytest.mark.parametrize("kind", ["rate_limited", "overloaded"])
def test_a_provider_that_says_429_or_503_uses_up_no_attempts(memo: Memo, kind: FailureKind) -> None:
    busy = fails(kind, retryable=True, wait=0.01)
    provider = Provider(a=[*[busy] * 6, fails("unavailable", retryable=True), busy, "at last"])
    once = RetrySettings(attempts=2, patience_s=5.0, backoff_s=0.001)
    llm = LLM(provider, memory=Memory(memo), retry=once)
    assert texts(llm.complete_all(asking("a"))) == ["at last"]
    assert (llm.usage.calls, llm.usage.retries) == (1, 8)


def test_patience_with_429s_is_bounded(memo: Memo) -> None:
    provider = Provider(a=[fails("rate_limited", retryable=True, wait=0.05)])
    started = time.monotonic()
    [failed] = LLM(provider, retry=RetrySettings(patience_s=0.2)).complete_all(asking("a"))
    assert isinstance(failed, LLMFailure) and failed.kind == "rate_limited" and failed.retryable
    assert "waited" in failed.message and 2 <= len(provider.asked) <= 5 and time.monotonic() - started < 3
    provider = Provider(a=[fails("rate_limited", retryable=True, wait=1000.0)])
    [failed] = LLM(provider, retry=RetrySettings(patience_s=900.0)).complete_all(asking("a"))
    assert isinstance(failed, LLMFailure) and "told to wait 1000 s" in failed.message and provider.asked == ["a"]
    provider = Provider(a=[fails("rate_limited", retryable=False)])
    assert texts(LLM(provider, retry=QUICK).complete_all(asking("a"))) == ["rate_limited"]
    assert provider.asked == ["a"]


def test_a_provider_that_hangs_is_given_up(memo: Memo) -> None:
    async def hang() -> str:
        await asyncio.sleep(60)
        return "too late"

    provider = Provider(a=[hang], b=[hang, "in time"])
    limited = RetrySettings(timeout_s=0.05, attempts=2, backoff_s=0.001)
    llm = LLM(provider, memory=Memory(memo), retry=limited)
    started = time.monotonic()
    failed, answered = llm.complete_all(asking("a", "b"))
    assert time.monotonic() - started < 5
    assert isinstance(failed, LLMFailure) and failed.kind == "timeout" and failed.retryable
    assert failed.message == "no answer within 0.05 s (2 attempts)" and texts([answered]) == ["in time"]


# --- budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(None, 3), (28.0, None)], ids=["calls", "dollars"])
def test_a_budget_stops_the_run_and_keeps_what_was_paid(memo: Memo, bounds: tuple[float | None, int | None]) -> None:
    provider, budget = Provider(), Budget(*bounds)
    questions = [f"question number {i}" for i in range(10)]
    llm = LLM(provider, memory=Memory(memo), budget=budget, price=PRICE, max_concurrency=4)
    results = llm.complete_all(asking(*questions, max_output_tokens=2))
    answered = [r for r in results if isinstance(r, LLMResponse)]
    failed = [r for r in results if isinstance(r, LLMFailure)]
    assert len(provider.asked) == len(answered) == llm.usage.calls and 1 <= len(answered) <= 3
    assert {f.kind for f in failed} == {"budget"} and not any(f.retryable for f in failed)
    assert all("reached" in f.message for f in failed) and llm.usage.failures == len(failed)
    assert memo.spent("") == (7.0 * len(answered), len(answered))
    provider.asked.clear()
    again = LLM(provider, memory=Memory(memo))
    assert len(again.complete_all(asking(*questions, max_output_tokens=2))) == 10
    assert len(provider.asked) == 10 - len(answered) and again.usage.hits == len(answered)


# --- bugs and interrupts ---------------------------------------------------------------------------------------


def can_be_asked_elsewhere(folder: Path, *questions: str) -> list[bool]:
    """Whether another process may ask these now."""
    keys = [key_of(question_of(Provider.name, Provider.base_url, r)) for r in asking(*questions)]
    program = """import sys; from pathlib import Path; from resources.llm.memo.key_locks import KeyLocks
flights = KeyLocks(Path(sys.argv[1])); print([flights.acquire(key) for key in sys.argv[2:]])"""
    command = [sys.executable, "-c", program, str(folder / "flights.lock"), *keys]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [word == "True" for word in said.strip("[]\n").split(", ")]


def test_a_bug_in_a_provider_comes_out_and_leaves_nothing_locked(memo: Memo) -> None:
    async def seen_elsewhere() -> str:
        locked.extend(await asyncio.to_thread(can_be_asked_elsewhere, memo.folder, "a", "b"))
        raise ZeroDivisionError("a bug")

    locked: list[bool] = []
    provider = Provider(a=[seen_elsewhere, "now it works"])
    llm = LLM(provider, memory=Memory(memo), retry=QUICK, max_concurrency=1)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        llm.complete_all(asking("a", "b", "a"))
    assert locked == [False, True]  # asked by this process at that moment
    assert client_module._under_way == {}
    assert can_be_asked_elsewhere(memo.folder, "a", "b") == [True, True]
    assert texts(llm.complete_all(asking("a", "b")))[0] == "now it works"


def test_a_bug_ends_the_batch_at_once(memo: Memo) -> None:
    async def slow() -> str:
        await asyncio.sleep(60)
        return "too late"

    provider = Provider(slow=[slow], bug=[ZeroDivisionError("a bug")])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        LLM(provider, memory=Memory(memo)).complete_all(asking("slow", "bug", "slow"))
    assert client_module._under_way == {}


def test_an_answer_that_cannot_be_kept_is_an_error(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    provider = Provider()
    llm = LLM(provider, memory=Memory(memo))
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", full)
        with pytest.raises(ActError, match="No space left on device") as caught:
            llm.complete_all(asking("a", "b"))
        assert "free disk space" in str(caught.value)
    assert client_module._under_way == {} and can_be_asked_elsewhere(memo.folder, "a") == [True]
    assert texts(llm.complete_all(asking("a", "b"))) == ["a: 3", "b: 4"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that runs the tests in the background has SIGINT ignored, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("allowed", [3, 16])
def test_an_interrupt_keeps_what_is_under_way_and_sends_nothing_more(
    memo: Memo, allowed: int, interruptible: None
) -> None:
    """With 16 allowed at once, half of them wait at the pacer, which starts with 8."""
    under_way = min(allowed, 8)
    interrupted = threading.Event()

    async def answer() -> str:
        if len(provider.asked) == under_way and not interrupted.is_set():
            interrupted.set()  # one interrupt: a second one ends the waiting
            await asyncio.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.1)
        return "paid"

    questions = [f"q{i}" for i in range(40)]
    provider = Provider(**{q: [answer] for q in questions})
    llm = LLM(provider, memory=Memory(memo), max_concurrency=allowed)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        llm.complete_all(asking(*questions))
    assert time.monotonic() - started < 5 and len(provider.asked) == under_way
    assert llm.usage.calls == under_way and llm.sender.limiter.in_flight == 0
    assert client_module._under_way == {}
    paid = set(provider.asked)
    provider.asked.clear()
    assert texts(llm.complete_all(asking(*questions))) == ["paid"] * 40
    assert set(provider.asked) == set(questions) - paid
