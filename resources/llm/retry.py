"""One question, asked until it is answered or there is no sense in going on: pace, budget, retries, timeouts.

Nothing here knows of the memo; `client` asks only what the memo does not hold.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from resources.llm.base import FailureKind, LLMFailure, LLMRequest, LLMResponse, LLMResult, ProviderError
from resources.llm.budget import Budget, Reservation, estimate_tokens
from resources.llm.prices import Price
from resources.llm.rate_limit import LONGEST_BACKOFF_S, Pacer, Slot

_jitter = random.Random()  # spreads retries; touches no result


@dataclass(frozen=True, slots=True)
class Persistence:
    """How long one question is tried. `timeout_s` bounds one attempt; `attempts` counts those that failed for the
    provider's reasons (5xx, timeouts, lost connections), with `backoff_s` before the second, doubled before each
    further one; `patience_s` bounds the waiting for a provider that says 429, which counts as no attempt."""

    timeout_s: float = 120.0
    attempts: int = 5
    patience_s: float = 600.0
    backoff_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a question ended. `cost_usd` is that of the answer, None where no price is known; `lost_*` were charged, or
    may have been, for no answer of use. `attempts` is 0 for a question that was not sent; `hit`: the answer was paid
    for elsewhere; `own`: it failed for the asker's own reasons (budget, interrupt, offline).
    """

    result: LLMResult
    cost_usd: float | None = None
    attempts: int = 0
    own: bool = False
    lost_calls: int = 0
    lost_prompt_tokens: int = 0
    lost_output_tokens: int = 0
    lost_usd: float = 0.0
    hit: bool = False

    def shared(self) -> Outcome:
        """The same for another who asked it meanwhile: nothing was sent or lost for them."""
        return Outcome(self.result, self.cost_usd, hit=isinstance(self.result, LLMResponse))


@dataclass(frozen=True, slots=True)
class Line:
    """What stands between a question and a provider."""

    pacer: Pacer
    budget: Budget
    price: Price | None
    persistence: Persistence

    def cost(self, prompt_tokens: int, output_tokens: int) -> float | None:
        """US dollars, None where no price is known."""
        return self.price.cost(prompt_tokens, output_tokens) if self.price else None

    def _paid(self, prompt_tokens: int, output_tokens: int) -> float | None:
        """What an answer cost: None also where there is a price, and the provider does not say how many tokens."""
        free = self.price is not None and self.price.cost(1, 1) == 0
        return self.cost(prompt_tokens, output_tokens) if free or prompt_tokens + output_tokens else None

    async def ask(self, request: LLMRequest, stopping: Callable[[], bool]) -> Outcome:
        """Sends a question, again where that can help; sends nothing more once `stopping()`."""
        tries = self.persistence
        prompt_tokens = sum(estimate_tokens(m.content) for m in request.messages)
        tokens = prompt_tokens + request.sampling.max_output_tokens
        estimate = self.cost(prompt_tokens, request.sampling.max_output_tokens)
        so_far = Outcome(failure(request, "unavailable", "not sent: the run was interrupted", True), own=True)
        refused_at, failed = None, 0
        while not stopping():
            reservation = await self.budget.reserve(estimate)
            if reservation is None:
                return replace(so_far, result=failure(request, "budget", self.budget.describe(), False))
            try:
                slot = await self.pacer.acquire(tokens, tries.patience_s)
            except BaseException as error:
                reservation.refund()
                if isinstance(error, ProviderError):
                    return replace(so_far, result=failure(request, error.kind, str(error), error.retryable), own=False)
                raise
            if stopping():
                self.pacer.released(slot)
                reservation.refund()
                break
            so_far = replace(so_far, attempts=so_far.attempts + 1)
            try:
                response = await self._attempt(slot, request, reservation, estimate or 0.0)
            except ProviderError as error:
                so_far = self._charged(so_far, error, estimate or 0.0)
                slot.lane.refusal = str(error)
                if error.bad_key and any(not lane.retired for lane in self.pacer.lanes):
                    continue
                if error.kind == "rate_limited" and error.retryable:
                    refused_at = refused_at or time.monotonic()
                    waited, wait = time.monotonic() - refused_at, self.pacer.rest_s  # of another key perhaps none
                    if waited + wait <= tries.patience_s:
                        continue  # the pacer holds the next one back
                    why = f"{error} (waited {waited:.0f} s, told to wait {wait:.0f} s more)"
                    return replace(so_far, result=failure(request, "rate_limited", why, True), own=False)
                failed += 1
                again = error.retryable and error.kind in ("timeout", "unavailable")
                if not again or failed >= tries.attempts:
                    why = f"{error} ({failed} attempts)" if failed > 1 else str(error)
                    return replace(so_far, result=failure(request, error.kind, why, error.retryable), own=False)
            else:
                cost = self._paid(response.prompt_tokens, response.output_tokens)
                return replace(so_far, result=response, cost_usd=cost, own=False)
            pause = min(tries.backoff_s * 2.0 ** (failed - 1), LONGEST_BACKOFF_S)
            await asyncio.sleep(pause * _jitter.uniform(0.5, 1.0))
        return so_far

    async def _attempt(self, slot: Slot, request: LLMRequest, reservation: Reservation, estimate: float) -> LLMResponse:
        """One call, its end told to pacer and budget. Raises ProviderError."""
        seconds = self.persistence.timeout_s
        started = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                response = await slot.provider.complete(request)
            if not response.text.strip():
                raise ProviderError(
                    "empty",
                    "the provider returned no text",
                    retryable=True,
                    prompt_tokens=response.prompt_tokens,
                    output_tokens=response.output_tokens,
                )
        except TimeoutError:
            error = ProviderError("timeout", f"no answer within {seconds:g} s", retryable=True, maybe_charged=True)
            self._failed(slot, reservation, error, estimate)
            raise error from None
        except ProviderError as error:
            self._failed(slot, reservation, error, estimate)
            raise
        except BaseException:
            self.pacer.released(slot)
            reservation.settle(estimate)
            raise
        used = response.prompt_tokens + response.output_tokens
        self.pacer.succeeded(slot, slot.tokens, used)
        paid = self._paid(response.prompt_tokens, response.output_tokens)
        reservation.settle(estimate if paid is None else paid)
        return response if response.latency_s else replace(response, latency_s=time.perf_counter() - started)

    def _failed(self, slot: Slot, reservation: Reservation, error: ProviderError, estimate: float) -> None:
        if error.prompt_tokens or error.output_tokens:
            reservation.settle(self.cost(error.prompt_tokens, error.output_tokens) or 0.0)
        elif error.maybe_charged:
            reservation.settle(estimate)
        else:
            reservation.refund()
        if error.bad_key:
            self.pacer.retire(slot)
        elif error.kind == "rate_limited" and error.retryable:
            self.pacer.rate_limited(slot, error.retry_after_s)
        elif error.kind in ("timeout", "unavailable"):
            self.pacer.overloaded(slot, error.retry_after_s)
        else:
            self.pacer.released(slot)

    def _charged(self, so_far: Outcome, error: ProviderError, estimate: float) -> Outcome:
        known = error.prompt_tokens + error.output_tokens > 0
        if not known and not error.maybe_charged:
            return so_far
        lost_usd = (self.cost(error.prompt_tokens, error.output_tokens) or 0.0) if known else estimate
        return replace(
            so_far,
            lost_calls=so_far.lost_calls + 1,
            lost_prompt_tokens=so_far.lost_prompt_tokens + error.prompt_tokens,
            lost_output_tokens=so_far.lost_output_tokens + error.output_tokens,
            lost_usd=so_far.lost_usd + lost_usd,
        )


def failure(request: LLMRequest, kind: FailureKind, message: str, retryable: bool) -> LLMFailure:
    """Why a request has no answer."""
    return LLMFailure(kind, message, retryable, request.label)
