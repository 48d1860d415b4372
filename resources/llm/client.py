"""Asks a language model, memo first.

    llm = LLM(provider, max_concurrency=8)                  # service.open_llm adds memo, prices and budget
    results = llm.complete_all(requests)                    # one per request, in order: LLMResponse or LLMFailure

For every question: its key; the memo, in one look-up for all; else the question's lock, the call
(retry.py), the answer on disk, and only then into the caller's hands.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resources.llm.base import SAMPLES, Exchange, LLMFailure, LLMRequest, LLMResult, Provider, Usage
from resources.llm.budget import Budget
from resources.llm.memo.explain import record_miss
from resources.llm.memo.memo import POLL_S, Memo, Watch
from resources.llm.memo.records import Asker, Stored, key_of, new_answer, new_use, question_of
from resources.llm.prices import Price
from resources.llm.rate_limit import Limits, RateLimiter
from resources.llm.retry import CallOutcome, RetrySettings, Sender
from resources.llm.runtime import run_calls

Mode = Literal["normal", "offline", "refresh"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Where answers are kept. `not_before` (seconds since 1970): older ones are asked again (mode
    `refresh`); `offline`: nothing is asked that the memo does not hold."""

    memo: Memo
    offline: bool = False
    not_before: float = 0.0


class LLM:
    """A model at a provider. Safe for threads; every call is made on the process's one loop (runtime.py).

    `providers` are several credentials for the same server and model, used in turn.
    """

    def __init__(
        self,
        providers: Provider | Sequence[Provider],
        *,
        max_concurrency: int = 8,
        limiter: RateLimiter | None = None,
        memory: Memory | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
        retry: RetrySettings | None = None,
        accept_models: Sequence[str] = (),
        asker: Asker | None = None,
    ) -> None:
        given = list(providers) if isinstance(providers, Sequence) else [providers]
        if limiter is None:
            limiter = RateLimiter(given)
            limiter.restrict(Limits(max_concurrency=max_concurrency))
        self.provider = given[0]
        self.max_concurrency = max_concurrency
        self.memory = memory
        self.sender = Sender(
            limiter, budget or Budget(None, None), price, retry or RetrySettings(), tuple(accept_models)
        )
        self.asker = asker or Asker()
        self.usage = Usage()
        self._counting = threading.Lock()

    def question(self, request: LLMRequest) -> str:
        """A request as the memo keys it (records.question_of)."""
        provider = self.provider
        return question_of(provider.name, provider.base_url, request, provider.fingerprint(request))

    def complete_all(
        self, requests: Sequence[LLMRequest], on_done: Callable[[], None] | None = None
    ) -> list[LLMResult]:
        """One result per request, in the order asked; `on_done` is called after each, from the calls' thread.

        Raises ActError where an answer cannot be kept (disk full) or a question is not plain JSON.
        """
        if not requests:
            return []
        batch = _Batch(self, requests, on_done)
        try:
            return run_calls(batch.run(), batch.stopping.set)
        finally:
            with self._counting:
                self.usage += batch.usage


# Questions that are being asked in this process, by memo folder and key. None: given up, ask it yourself; so it is
# where the question was not sent, for another batch may be allowed to send it.
_under_way: dict[tuple[int, Path, str], asyncio.Future[CallOutcome | None]] = {}


class _Batch:
    """The questions of one `complete_all`."""

    def __init__(self, llm: LLM, requests: Sequence[LLMRequest], on_done: Callable[[], None] | None) -> None:
        self.llm, self.requests, self.on_done = llm, requests, on_done
        self.usage = self._unnoted = Usage()
        self.stopping = threading.Event()  # set: nothing more is sent; what is under way is finished
        self._gate = asyncio.Semaphore(llm.max_concurrency)

    async def run(self) -> list[LLMResult]:
        """All results, in order."""
        memory = self.llm.memory
        if memory is None:
            send, stopping = self.llm.sender.send, self.stopping.is_set
            return await self._gather([self._counted(r, send(r, stopping)) for r in self.requests])
        memo = memory.memo
        questions = [self.llm.question(r) for r in self.requests]
        keys = [key_of(q) for q in questions]
        watch = await asyncio.to_thread(Watch, memo, keys, memory.not_before)
        try:
            return await self._gather(
                [
                    self._counted(r, self._recall(watch.found[k]) if k in watch.found else self._share(watch, r, q, k))
                    for r, q, k in zip(self.requests, questions, keys, strict=True)
                ]
            )
        finally:
            if self._unnoted.hits or self._unnoted.failures:
                await self._note(memo)

    async def _gather(self, work: Sequence[Coroutine[Any, Any, LLMResult]]) -> list[LLMResult]:
        """All results; the first error ends what is still under way, and is raised."""
        tasks = [asyncio.create_task(w) for w in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
                raise error
        return [task.result() for task in tasks]

    async def _counted(self, request: LLMRequest, work: Coroutine[Any, Any, CallOutcome]) -> LLMResult:
        outcome = await work
        result, usage = outcome.result, outcome.usage
        if isinstance(result, LLMFailure):
            result = replace(result, label=request.label)
        elif len(self.usage.samples) < SAMPLES:
            shown = Exchange(request.role, request.label, request.messages, result.text, usage.hits > 0)
            usage = replace(usage, samples=(shown,))
        self.usage += usage
        self._unnoted += usage
        if usage.lost_calls and self.llm.memory is not None:  # budgets count them, so they are noted at once
            await self._note(self.llm.memory.memo)
        if self.on_done:
            self.on_done()
        return result

    async def _note(self, memo: Memo) -> None:
        """Writes to the ledger what no answer's own row says."""
        llm, unnoted, self._unnoted = self.llm, self._unnoted, Usage()
        await memo.keep(new_use(llm.provider.name, llm.provider.base_url, self.requests[0], llm.asker, unnoted))

    # --- one question, once in this process and once in all of them ------------------------------------------

    async def _share(self, watch: Watch, request: LLMRequest, question: str, key: str) -> CallOutcome:
        """The outcome of a question that the memo did not hold; the same question is under way only once."""
        identity = (os.getpid(), watch.memo.folder, key)
        while (asked := _under_way.get(identity)) is not None:
            outcome = await asyncio.shield(asked)
            if outcome is not None and not outcome.own:
                return outcome.shared()
        future: asyncio.Future[CallOutcome | None] = asyncio.get_running_loop().create_future()
        _under_way[identity] = future
        outcome = None
        try:
            outcome = await self._lead(watch, request, question, key)
            return outcome
        finally:
            del _under_way[identity]
            future.set_result(outcome)

    async def _lead(self, watch: Watch, request: LLMRequest, question: str, key: str) -> CallOutcome:
        """Asks, unless another process is asking; then waits until that one has been answered, has
        given up or has died. Locks no more questions at a time than may be asked at a time, so that
        processes share the work."""
        memo = watch.memo
        pause, longest = POLL_S
        while True:
            async with self._gate:
                if memo.key_locks.acquire(key):
                    try:
                        stored = await asyncio.to_thread(watch.answered, key) if watch.stale() else watch.answered(key)
                        if stored is not None:
                            return await self._recall(stored)
                        if self.llm.memory and self.llm.memory.offline:
                            label = request.label
                            await asyncio.to_thread(record_miss, memo.folder, key, question, request.role, label)
                            missed = LLMFailure("offline", f"not in the memo: key {key}", False, label)
                            return CallOutcome(missed, Usage(failures=1), own=True)
                        outcome = await self.llm.sender.send(request, self.stopping.is_set)
                        if isinstance(outcome.result, LLMFailure):
                            return outcome
                        name, url, asker = self.llm.provider.name, self.llm.provider.base_url, self.llm.asker
                        answer = new_answer(name, url, request, question, outcome.result, asker, outcome.cost_usd)
                        await memo.keep(answer)
                        return replace(outcome, result=answer.stored().response())
                    finally:
                        memo.key_locks.release(key)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)

    async def _recall(self, stored: Stored) -> CallOutcome:
        return CallOutcome.hit(stored.response(), stored.cost_usd)
