"""A hard cap on what a run may spend, in dollars and in calls.

Every call reserves its estimated cost before it goes out, so calls in flight cannot overrun the cap
together. It can be exceeded only by as much as calls cost more than estimated. For one event loop.
"""

from __future__ import annotations

import asyncio
import math

from resources.errors import ActError

_DUST_USD = 1e-9  # sums of floats are not exact: ten calls of $0.10 fit into $1.00


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, without its tokenizer; leans to the upper side.

    One for each digit, since Gemini's tokenizer splits numbers into digits (as reported for Gemma, which has a part of
    it, arXiv:2403.08295) and prompts here hold tables of them; one for every 3 bytes of UTF-8 of the rest, where
    English prose comes to about 4 bytes a token.
    """
    data = text.encode("utf-8", "replace")
    digits = sum(map(data.count, b"0123456789"))
    return digits + math.ceil((len(data) - digits) / 3)


class Reservation:
    """Part of a budget, held for one call. Ends once, with `settle` or `refund`; after that both do nothing."""

    def __init__(self, budget: Budget, estimate_usd: float) -> None:
        self._budget: Budget | None = budget
        self.estimate_usd = estimate_usd

    def settle(self, cost_usd: float) -> None:
        """The call was answered, or charged: it cost so much, and counts."""
        if cost_usd < 0 or not math.isfinite(cost_usd):
            raise ValueError(f"a call cannot cost {cost_usd} dollars")
        self._end(cost_usd, 1)

    def refund(self) -> None:
        """The provider refused the call (429, 5xx, 4xx): it cost nothing, and does not count."""
        self._end(0.0, 0)

    def _end(self, cost_usd: float, calls: int) -> None:
        budget, self._budget = self._budget, None
        if budget is not None:
            budget._held_calls -= 1
            # With nothing in flight the sum is exactly 0 again, whatever the rounding before.
            budget._held_usd = budget._held_usd - self.estimate_usd if budget._held_calls else 0.0
            budget.spent_usd += cost_usd
            budget.calls += calls
            budget._changed.set()


class Budget:
    """None for a bound means no bound. `spent_usd` and `calls` are what was spent before, then all that is settled."""

    def __init__(
        self, max_cost_usd: float | None, max_calls: int | None, spent_usd: float = 0.0, calls: int = 0
    ) -> None:
        self.max_cost_usd, self.max_calls = max_cost_usd, max_calls
        self.spent_usd, self.calls = spent_usd, calls
        self._held_usd, self._held_calls = 0.0, 0  # reserved by calls in flight
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    async def reserve(self, estimate_usd: float | None) -> Reservation | None:
        """Hold the estimated cost of one call, in dollars; None where the budget does not allow the call any more.

        Waits while calls in flight hold what this one needs, since they may come to less. Raises ActError where the
        budget is in dollars and the estimate is None, that is, no price is known.
        """
        if estimate_usd is None and self.max_cost_usd is not None:
            raise ActError(
                f"the budget is in dollars ({_dollars(self.max_cost_usd)}), but no price is known for this model",
                where="max_cost_usd",
                todo="name a price file in the environment variable ACT_PRICES that has a row for this provider and "
                "model, or bound the run with max_calls instead",
            )
        estimate = estimate_usd or 0.0
        if estimate < 0 or not math.isfinite(estimate):
            raise ValueError(f"a call cannot be estimated at {estimate} dollars")
        async with self._turn:  # in the order asked: a large call is not overtaken for ever
            while not self._fits(estimate, self._held_usd, self._held_calls):
                if not self._fits(estimate, 0.0, 0):  # what is spent stays spent: no use in waiting
                    return None
                self._changed.clear()
                await self._changed.wait()
            self._held_usd += estimate
            self._held_calls += 1
            return Reservation(self, estimate)

    def raise_to(self, spent_usd: float, calls: int) -> None:
        """Other processes have spent under this budget: so much has been spent in all, as far as is known."""
        self.spent_usd, self.calls = max(self.spent_usd, spent_usd), max(self.calls, calls)

    def describe(self) -> str:
        """Why a call was not allowed."""
        if self.max_calls is not None and self.calls + self._held_calls >= self.max_calls:
            return f"budget of {self.max_calls} call{'' if self.max_calls == 1 else 's'} reached"
        if self.max_cost_usd is not None:
            return f"budget of {_dollars(self.max_cost_usd)} reached: {_dollars(self.spent_usd)} spent"
        return "budget without bounds"

    def _fits(self, estimate_usd: float, held_usd: float, held_calls: int) -> bool:
        cost = self.max_cost_usd is None or self.spent_usd + held_usd + estimate_usd <= self.max_cost_usd + _DUST_USD
        return cost and (self.max_calls is None or self.calls + held_calls + 1 <= self.max_calls)


def _dollars(amount: float) -> str:
    """Cents; below ten cents as many digits as it takes."""
    if amount >= 0.1 or amount == 0:
        return f"${amount:.2f}"
    whole, _, part = f"{amount:.6f}".partition(".")
    return f"${whole}.{part.rstrip('0').ljust(2, '0')}"
