"""Asks a language model, memo first.

    llm = LLM(provider, max_concurrency=8)                  # service.open_llm adds memo, prices and budget
    results = llm.complete_all(requests)                    # one per request, in order: LLMResponse or LLMFailure

For every question: its key; the memo, in one look-up for all; else the question's lock, the call (asking.py), the
answer on disk, and only then into the caller's hands.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resources.llm.base import (
    SAMPLES,
    Exchange,
    LLMFailure,
    LLMRequest,
    LLMResponse,
    LLMResult,
    Provider,
    Usage,
)
from resources.llm.budget import Budget
from resources.llm.memo.database import Stored
from resources.llm.memo.explain import record_miss
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Asker, Use, key_of, new_answer, question_of
from resources.llm.prices import Price
from resources.llm.rate_limit import Limits, Pacer
from resources.llm.retry import Line, Outcome, Persistence, failure
from resources.llm.runtime import run_calls

Mode = Literal["normal", "offline", "refresh"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Where answers are kept. `not_before` (seconds since 1970): older ones are asked again (mode `refresh`);
    `offline`: nothing is asked that the memo does not hold."""

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
        pacer: Pacer | None = None,
        memory: Memory | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
        persistence: Persistence | None = None,
        asker: Asker | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ValueError("max_concurrency must be at least 1")
        lanes = list(providers) if isinstance(providers, Sequence) else [providers]
        if pacer is None:
            pacer = Pacer(lanes)
            pacer.restrict(Limits(max_concurrency=max_concurrency))
        self.provider = lanes[0]
        self.max_concurrency = max_concurrency
        self.memory = memory
        self.line = Line(pacer, budget or Budget(None, None), price, persistence or Persistence())
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
            return run_calls(batch.run(), batch.stop)
        finally:
            with self._counting:
                self.usage += batch.usage


# Questions that are being asked in this process, by memo folder and key. None: given up, ask it yourself; so it is
# where the question was not sent, for another batch may be allowed to send it.
_flights: dict[tuple[int, Path, str], asyncio.Future[Outcome | None]] = {}


class _Batch:
    """The questions of one `complete_all`."""

    def __init__(self, llm: LLM, requests: Sequence[LLMRequest], on_done: Callable[[], None] | None) -> None:
        self.llm, self.requests, self.on_done = llm, requests, on_done
        self.usage, self.use = Usage(), _ledger(llm, requests[0])
        self._stopping = False
        self._gate = asyncio.Semaphore(llm.max_concurrency)

    def stop(self) -> None:
        """Sends nothing more; what is under way goes on."""
        self._stopping = True

    async def run(self) -> list[LLMResult]:
        """All results, in order."""
        memory = self.llm.memory
        if memory is None:
            return await self._gather([self._counted(r, self._ask(r)) for r in self.requests])
        memo = memory.memo
        questions = [self.llm.question(r) for r in self.requests]
        keys = [key_of(q) for q in questions]
        found, generation = await asyncio.to_thread(memo.look_up, keys, memory.not_before)
        missing = {k for k in keys if k not in found}
        memo.opened(missing, generation)
        try:
            return await self._gather(
                [
                    self._counted(r, _found(found[k]) if k in found else self._share(memory, r, q, k))
                    for r, q, k in zip(self.requests, questions, keys, strict=True)
                ]
            )
        finally:
            memo.closed(missing)
            if self.use.hits or self.use.failures:
                await memo.note(self.use)

    async def _gather(self, work: Sequence[Coroutine[Any, Any, LLMResult]]) -> list[LLMResult]:
        """All results; the first error ends what is still going on, and is raised."""
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

    async def _counted(self, request: LLMRequest, work: Coroutine[Any, Any, Outcome]) -> LLMResult:
        outcome = await work
        result = outcome.result
        sample: tuple[Exchange, ...] = ()
        if isinstance(result, LLMFailure):
            result = replace(result, label=request.label)
        elif len(self.usage.samples) < SAMPLES:
            sample = (Exchange(request.role, request.label, request.messages, result.text, outcome.hit),)
        self.usage += _usage(outcome, sample)
        self.use = _with(self.use, outcome)
        if outcome.lost_calls and self.llm.memory is not None:  # budgets count them, so they are noted at once
            note, self.use = self.use, _ledger(self.llm, request)
            await self.llm.memory.memo.note(note)
        if self.on_done:
            self.on_done()
        return result

    # --- one question, once in this process and once in all of them ------------------------------------------

    async def _share(self, memory: Memory, request: LLMRequest, question: str, key: str) -> Outcome:
        """The outcome of a question that the memo did not hold; the same question is under way only once."""
        flight = (os.getpid(), memory.memo.folder, key)
        while (under_way := _flights.get(flight)) is not None:
            outcome = await asyncio.shield(under_way)
            if outcome is not None and not outcome.own:
                return outcome.shared()
        future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        _flights[flight] = future
        outcome = None
        try:
            outcome = await self._lead(memory, request, question, key)
            return outcome
        finally:
            del _flights[flight]
            future.set_result(outcome)

    async def _lead(self, memory: Memory, request: LLMRequest, question: str, key: str) -> Outcome:
        """Asks, unless another process is asking; then waits for its answer. Locks no more questions at a time than
        may be asked at a time, so that processes share the work."""
        memo = memory.memo
        while True:
            async with self._gate:
                if memo.flights.begin(key):
                    try:
                        if memo.stale():
                            stored = await asyncio.to_thread(memo.answered, key, memory.not_before)
                        else:
                            stored = memo.answered(key, memory.not_before)
                        if stored is not None:
                            return await _found(stored)
                        if memory.offline:
                            await asyncio.to_thread(
                                record_miss, memo.folder, key, question, request.role, request.label
                            )
                            missing = failure(request, "offline", f"not in the memo: key {key}", False)
                            return Outcome(missing, own=True)
                        return await self._ask_and_keep(memo, request, question)
                    finally:
                        memo.flights.end(key)
            await memo.changed(key)

    async def _ask_and_keep(self, memo: Memo, request: LLMRequest, question: str) -> Outcome:
        outcome = await self._ask(request)
        if isinstance(outcome.result, LLMFailure):
            return outcome
        provider = self.llm.provider
        answer = new_answer(
            provider.name, provider.base_url, request, question, outcome.result, self.llm.asker, outcome.cost_usd
        )
        await memo.keep(answer)
        return replace(outcome, result=answer.response())

    async def _ask(self, request: LLMRequest) -> Outcome:
        return await self.llm.line.ask(request, lambda: self._stopping)


async def _found(stored: Stored) -> Outcome:
    return Outcome(stored.response(), stored.cost_usd, hit=True)


def _usage(outcome: Outcome, samples: tuple[Exchange, ...]) -> Usage:
    """What one question came to."""
    result, cost = outcome.result, outcome.cost_usd or 0.0
    if isinstance(result, LLMResponse) and outcome.hit:
        return Usage(hits=1, saved_usd=cost, samples=samples)
    answered = isinstance(result, LLMResponse)
    return Usage(
        calls=min(outcome.attempts, 1),
        failures=0 if answered else 1,
        prompt_tokens=outcome.lost_prompt_tokens + (result.prompt_tokens if isinstance(result, LLMResponse) else 0),
        output_tokens=outcome.lost_output_tokens + (result.output_tokens if isinstance(result, LLMResponse) else 0),
        retries=max(outcome.attempts - 1, 0),
        cost_usd=outcome.lost_usd + cost,
        samples=samples,
    )


def _ledger(llm: LLM, first: LLMRequest) -> Use:
    asker = llm.asker
    return Use(
        provider=llm.provider.name,
        base_url=llm.provider.base_url if llm.memory else "",
        model=first.model,
        role=first.role,
        asset=asker.asset,
        partition=asker.partition,
        run=asker.run,
        budget=asker.budget,
    )


def _with(use: Use, outcome: Outcome) -> Use:
    """The ledger with one more question: hits and what they saved, failures and what was charged for nothing."""
    result = outcome.result
    if isinstance(result, LLMResponse) and outcome.hit:
        return replace(
            use,
            hits=use.hits + 1,
            saved_prompt_tokens=use.saved_prompt_tokens + result.prompt_tokens,
            saved_output_tokens=use.saved_output_tokens + result.output_tokens,
            saved_usd=use.saved_usd + (outcome.cost_usd or 0.0),
        )
    return replace(
        use,
        failures=use.failures + isinstance(result, LLMFailure),
        lost_calls=use.lost_calls + outcome.lost_calls,
        lost_prompt_tokens=use.lost_prompt_tokens + outcome.lost_prompt_tokens,
        lost_output_tokens=use.lost_output_tokens + outcome.lost_output_tokens,
        lost_usd=use.lost_usd + outcome.lost_usd,
    )
