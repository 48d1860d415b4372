"""One question, asked until it is answered or asking again is of no use: rate limits, budget,
retries, timeouts.

Nothing here knows of the memo; `client` asks only what the memo does not hold.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from resources.llm.base import FailureKind, LLMFailure, LLMRequest, LLMResponse, LLMResult, ProviderError, Usage
from resources.llm.budget import Budget, Reservation, estimate_tokens
from resources.llm.models import is_asked_model
from resources.llm.prices import Price
from resources.llm.rate_limit import LONGEST_BACKOFF_S, RateLimiter, Slot

_jitter = random.Random()  # spreads retries; touches no result


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How long one question is tried. `timeout_s` bounds one attempt; `attempts` counts those that
    failed for the provider's reasons (5xx, timeouts, lost connections), with `backoff_s` before the
    second, doubled before each further one; `patience_s` bounds the waiting for a provider that
    says 429 or that it is overloaded, which counts as no attempt."""

    timeout_s: float = 120.0
    attempts: int = 5
    patience_s: float = 600.0
    backoff_s: float = 1.0


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """How a question ended, and what it came to. `cost_usd` is that of the answer, None where no
    price is known; `own`: it failed for the asker's own reasons (budget, interrupt, offline)."""

    result: LLMResult
    usage: Usage
    cost_usd: float | None = None
    own: bool = False

    @staticmethod
    def hit(answer: LLMResponse, cost_usd: float | None) -> CallOutcome:
        """An answer that was paid for elsewhere."""
        saved = Usage(
            hits=1,
            saved_usd=cost_usd or 0.0,
            saved_prompt_tokens=answer.prompt_tokens,
            saved_output_tokens=answer.output_tokens,
        )
        return CallOutcome(answer, saved, cost_usd)

    def shared(self) -> CallOutcome:
        """The same for another who asked it meanwhile: nothing was sent or lost for them."""
        if isinstance(self.result, LLMFailure):
            return CallOutcome(self.result, Usage(failures=1))
        return CallOutcome.hit(self.result, self.cost_usd)


@dataclass(frozen=True, slots=True)
class Sender:
    """What stands between a question and a provider."""

    limiter: RateLimiter
    budget: Budget
    price: Price | None
    retry: RetrySettings
    accept_models: tuple[str, ...] = ()  # names beside the asked one that an answer may report

    def cost(self, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float | None:
        """US dollars, None where no price is known."""
        return self.price.cost(prompt_tokens, output_tokens, cached_tokens) if self.price else None

    async def send(self, request: LLMRequest, stopping: Callable[[], bool]) -> CallOutcome:
        """Sends a question, again where that can help; sends nothing more once `stopping()`."""
        retry = self.retry
        prompt_tokens = sum(estimate_tokens(m.content) for m in request.messages)
        tokens = prompt_tokens + request.sampling.max_output_tokens
        estimate = self.cost(prompt_tokens, request.sampling.max_output_tokens)
        usage, refused_at, failed = Usage(), None, 0

        def unanswered(kind: FailureKind, why: str, retryable: bool, own: bool = False) -> CallOutcome:
            return CallOutcome(LLMFailure(kind, why, retryable, request.label), usage + Usage(failures=1), own=own)

        while not stopping():
            reservation = await self.budget.reserve(estimate)
            if reservation is None:
                return unanswered("budget", self.budget.describe(), False, own=True)
            try:
                slot = await self.limiter.acquire(tokens, retry.patience_s)
            except BaseException as error:
                reservation.refund()
                if isinstance(error, ProviderError):
                    return unanswered(error.kind, str(error), error.retryable)
                raise
            if stopping():
                self.limiter.released(slot)
                reservation.refund()
                break
            usage += Usage(retries=1) if usage.calls else Usage(calls=1)
            try:
                answer, cost = await self._attempt(slot, request, reservation, estimate or 0.0)
            except ProviderError as error:
                usage += self._lost(error, estimate or 0.0)
                slot.lane.refusal = str(error)
                if error.bad_key and any(not lane.retired for lane in self.limiter.lanes):
                    continue
                if error.waited_out:
                    refused_at = refused_at or time.monotonic()
                    waited, wait = time.monotonic() - refused_at, self.limiter.rest_s  # of another key perhaps none
                    if waited + wait <= retry.patience_s:
                        continue  # the limiter holds the next one back
                    why = f"{error} (waited {waited:.0f} s, told to wait {wait:.0f} s more)"
                    return unanswered(error.kind, why, True)
                failed += 1
                again = error.retryable and error.kind in ("timeout", "unavailable")
                if not again or failed >= retry.attempts:
                    why = f"{error} ({failed} attempts)" if failed > 1 else str(error)
                    return unanswered(error.kind, why, error.retryable)
            else:
                usage += Usage(
                    prompt_tokens=answer.prompt_tokens, output_tokens=answer.output_tokens, cost_usd=cost or 0.0
                )
                return CallOutcome(answer, usage, cost)
            pause = min(retry.backoff_s * 2.0 ** (failed - 1), LONGEST_BACKOFF_S)
            await asyncio.sleep(pause * _jitter.uniform(0.5, 1.0))
        return unanswered("unavailable", "not sent: the run was interrupted", True, own=True)

    async def _attempt(
        self, slot: Slot, request: LLMRequest, reservation: Reservation, estimate: float
    ) -> tuple[LLMResponse, float | None]:
        """One call, its end told to limiter and budget; and what it cost. Raises ProviderError."""
        seconds = self.retry.timeout_s
        started = time.perf_counter()
        try:
            try:
                async with asyncio.timeout(seconds):
                    answer = await slot.lane.provider.complete(request)
            except TimeoutError:
                why = f"no answer within {seconds:g} s"
                raise ProviderError("timeout", why, retryable=True, maybe_charged=True) from None
            used: Any = {"prompt_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
            if not answer.text.strip():
                raise ProviderError("empty", "the provider returned no text", retryable=True, **used)
            if not is_asked_model(request.model, answer.model, self.accept_models):
                why = (
                    f"{request.model} was asked and {answer.model} answered, which is not kept: name a model that is "
                    f"served, or admit this one by accept_models: [{answer.model}] in the role's settings"
                )
                raise ProviderError("other_model", why, retryable=False, **used)
        except ProviderError as error:
            lost = self._lost(error, estimate)
            if lost.lost_calls:
                reservation.settle(lost.lost_usd)
            else:
                reservation.refund()
            if error.bad_key:
                self.limiter.retire(slot)
            elif error.waited_out:
                self.limiter.rate_limited(slot, error.retry_after_s)
            elif error.kind in ("timeout", "unavailable"):
                self.limiter.overloaded(slot, error.retry_after_s)
            else:
                self.limiter.released(slot)
            raise
        except BaseException:
            self.limiter.released(slot)
            reservation.settle(estimate)
            raise
        tokens, free = (
            answer.prompt_tokens + answer.output_tokens,
            self.price is not None and self.price.cost(1, 1) == 0,
        )
        self.limiter.succeeded(slot, tokens)
        # Where the provider does not say how many tokens, a price is of no use.
        used_up = (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens)
        cost = self.cost(*used_up) if tokens or free else None
        reservation.settle(estimate if cost is None else cost)
        return (answer if answer.latency_s else replace(answer, latency_s=time.perf_counter() - started)), cost

    def _lost(self, error: ProviderError, estimate: float) -> Usage:
        """What a failed call was charged, or may have been."""
        prompt, output = error.prompt_tokens, error.output_tokens
        if prompt + output:
            usd = self.cost(prompt, output) or 0.0
        elif error.maybe_charged:
            usd = estimate
        else:
            return Usage()
        return Usage(
            prompt_tokens=prompt,
            output_tokens=output,
            cost_usd=usd,
            lost_calls=1,
            lost_prompt_tokens=prompt,
            lost_output_tokens=output,
            lost_usd=usd,
        )
