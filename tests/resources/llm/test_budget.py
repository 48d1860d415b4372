"""The cap holds whatever the order in which calls end, nobody waits for nothing, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.errors import ActError
from resources.llm.budget import Budget, Reservation, estimate_tokens


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Lets a coroutine be a test."""

    @functools.wraps(test)
    def call(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return call


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def held(budget: Budget, estimate_usd: float | None) -> Reservation:
    reservation = await budget.reserve(estimate_usd)
    assert reservation is not None
    return reservation


@in_a_loop
async def test_ten_calls_of_ten_cents_fit_into_a_dollar_and_an_eleventh_does_not() -> None:
    budget = Budget(1.0, None)
    reservations = [await held(budget, 0.1) for _ in range(10)]
    for reservation in reservations:
        reservation.settle(0.1)
    assert budget.spent_usd == pytest.approx(1.0) and budget.calls == 10
    assert await budget.reserve(0.1) is None
    assert budget.describe() == "budget of $1.00 reached: $1.00 spent"


@in_a_loop
async def test_rounding_keeps_nobody_out() -> None:
    budget = Budget(0.3, None)
    for _ in range(3):
        (await held(budget, 0.1)).settle(0.1)  # comes to 0.30000000000000004
    assert await budget.reserve(0.000001) is None


@in_a_loop
async def test_nobody_waits_where_no_refund_could_help() -> None:
    budget = Budget(1.0, 5, spent_usd=0.7, calls=2)
    first = await held(budget, 0.1)
    assert await budget.reserve(0.4) is None  # more than is left with nothing in flight
    first.refund()
    assert await budget.reserve(0.31) is None
    assert await budget.reserve(0.3) is not None


@in_a_loop
async def test_calls_are_counted_when_answered_and_not_when_refused() -> None:
    budget = Budget(None, 2)
    first, second = await held(budget, None), await held(budget, 3.0)
    third = asyncio.create_task(budget.reserve(None))
    await turns()
    assert not third.done()
    first.refund()
    reservation = await third
    assert reservation is not None
    second.settle(7.5)
    reservation.settle(0.0)
    assert (budget.calls, budget.spent_usd) == (2, 7.5)
    assert await budget.reserve(None) is None
    assert budget.describe() == "budget of 2 calls reached"


@in_a_loop
async def test_no_bound_allows_everything_and_zero_nothing() -> None:
    assert await Budget(None, None).reserve(1e9) is not None
    assert await Budget(0.0, None).reserve(0.001) is None
    assert await Budget(0.0, None).reserve(0.0) is not None  # the embedded provider costs nothing
    assert await Budget(None, 0).reserve(None) is None


@in_a_loop
async def test_a_reservation_ends_once() -> None:
    budget = Budget(1.0, 3)
    first, second = await held(budget, 0.5), await held(budget, 0.5)
    first.settle(0.25)
    first.settle(0.25)
    first.refund()
    second.refund()
    second.settle(0.5)
    assert (budget.spent_usd, budget.calls) == (0.25, 1)
    assert await budget.reserve(0.75) is not None


@in_a_loop
async def test_a_budget_in_dollars_needs_a_price() -> None:
    with pytest.raises(ActError, match="no price is known") as error:
        await Budget(1.0, None).reserve(None)
    assert "ACT_PRICES" in error.value.todo and "max_calls" in error.value.todo


@pytest.mark.parametrize("amount", [-0.1, math.nan, math.inf])
@in_a_loop
async def test_amounts_that_are_none_are_refused(amount: float) -> None:
    budget = Budget(1.0, None)
    with pytest.raises(ValueError, match="cannot be estimated"):
        await budget.reserve(amount)
    reservation = await held(budget, 1.0)
    with pytest.raises(ValueError, match="cannot cost"):
        reservation.settle(amount)
    reservation.refund()


@in_a_loop
async def test_callers_are_served_in_the_order_they_ask() -> None:
    budget = Budget(1.0, None)
    first = await held(budget, 0.5)
    large = asyncio.create_task(budget.reserve(0.8))
    small = asyncio.create_task(budget.reserve(0.1))
    await turns()
    assert not large.done() and not small.done()
    first.refund()
    assert await large is not None and await small is not None


@in_a_loop
async def test_a_cancelled_waiter_holds_nothing_and_nobody_up() -> None:
    budget = Budget(1.0, None)
    first = await held(budget, 0.5)
    large = asyncio.create_task(budget.reserve(0.8))
    small = asyncio.create_task(budget.reserve(0.5))
    await turns()
    large.cancel()
    reservation = await small
    assert large.cancelled() and reservation is not None
    reservation.refund()
    late = asyncio.create_task(budget.reserve(1.0))
    await turns()
    first.refund()  # grants it to `late`, which has no turn before it is cancelled
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert await budget.reserve(1.0) is not None


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),  # estimate in cents
            st.integers(0, 100),  # percent of it that the call comes to
            st.sampled_from(["settle", "settle", "refund", "cancel"]),
            st.integers(0, 6),  # turns of the loop that it takes
            st.integers(0, 3),  # turns before the next one asks
        ),
        max_size=40,
    ),
    st.none() | st.integers(0, 300),
    st.none() | st.integers(0, 15),
)
@in_a_loop
async def test_the_budget_is_never_exceeded_and_what_fits_is_never_refused(
    plan: list[tuple[int, int, str, int, int]], cents: int | None, max_calls: int | None
) -> None:
    cap = math.inf if cents is None else cents / 100
    budget = Budget(None if cents is None else cap, max_calls)
    in_flight: dict[int, float] = {}
    ended = []

    async def call(number: int, estimate: float, share: float, outcome: str, takes: int) -> None:
        reservation = await budget.reserve(estimate)
        if reservation is None:
            ended.append(number)
            left = cap - budget.spent_usd
            assert left < estimate or (max_calls is not None and budget.calls >= max_calls)
            return
        in_flight[number] = estimate
        assert budget.spent_usd + sum(in_flight.values()) <= cap + 1e-6
        assert max_calls is None or budget.calls + len(in_flight) <= max_calls
        await turns(takes)
        del in_flight[number]
        ended.append(number)
        if outcome == "refund":
            reservation.refund()
        else:
            reservation.settle(estimate * share)
        assert budget.spent_usd <= cap + 1e-6 and (max_calls is None or budget.calls <= max_calls)

    tasks: list[asyncio.Task[None]] = []
    for number, (estimate, percent, outcome, takes, pause) in enumerate(plan):
        tasks.append(asyncio.create_task(call(number, estimate / 100, percent / 100, outcome, takes)))
        await turns(pause)
        if outcome == "cancel" and number not in in_flight:
            tasks[-1].cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
    assert not in_flight and not budget._turn.locked() and budget._held_calls == 0 and budget._held_usd == 0


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(1.0, None, spent_usd=0.98), "budget of $1.00 reached: $0.98 spent"),
        (Budget(0.05, None, spent_usd=0.0421), "budget of $0.05 reached: $0.0421 spent"),
        (Budget(0.0005, None), "budget of $0.0005 reached: $0.00 spent"),
        (Budget(250.0, 100, calls=100), "budget of 100 calls reached"),
        (Budget(250.0, 100, spent_usd=249.999), "budget of $250.00 reached: $250.00 spent"),
        (Budget(None, 1, calls=1), "budget of 1 call reached"),
    ],
)
def test_the_description_says_which_bound_and_how_much(budget: Budget, text: str) -> None:
    assert budget.describe() == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("word", 2), ("2019", 4), ("$1,234.5", 6), ("税", 1), ("€ 12", 4), ("\ud800", 1)],
)
def test_tokens_are_estimated_from_digits_and_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_the_estimate_of_prose_leans_to_the_upper_side() -> None:
    text = "What was the total revenue of the company in the year that ended on the last day of September?"
    assert len(text.split()) * 1.3 < estimate_tokens(text) < len(text.split()) * 2.5
