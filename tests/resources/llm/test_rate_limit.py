"""When calls go out: never more than the limits allow, never during a pause, each one at last, and no slot lost."""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
import unittest.mock
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.llm.base import LLMRequest, LLMResponse, ProviderError
from resources.llm.rate_limit import LONGEST_BACKOFF_S, START, Lane, Limits, RateLimiter, Slot

T = TypeVar("T")


class _NoWait(selectors.SelectSelector):
    """Lets the loop's clock jump to the next timer instead of waiting for it."""

    def __init__(self, loop: _FastLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits and no timer is set: somebody was forgotten")
        self._loop.now += timeout
        return super().select(0)


class _FastLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, on a clock of its own that waits for nothing."""
    with asyncio.Runner(loop_factory=_FastLoop) as runner:
        return runner.run(main)


def on_its_clock(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Lets a coroutine be a test, on such a clock."""

    @functools.wraps(test)
    def call(*args: Any, **named: Any) -> None:
        run(test(*args, **named))

    return call


def now() -> float:
    return asyncio.get_running_loop().time()


class Provider:
    name = "test"
    base_url = "https://host/v1"

    async def complete(self, request: LLMRequest) -> LLMResponse:
        raise NotImplementedError

    def fingerprint(self, request: LLMRequest) -> str | None:
        return None


def new_limiter(lanes: int = 1, **limits: int) -> RateLimiter:
    """On the clock of the running loop."""
    limiter = RateLimiter([Provider() for _ in range(lanes)], asyncio.get_running_loop().time, random.Random(0))
    limiter.restrict(Limits(**limits))
    return limiter


async def turns(number: int = 5) -> None:
    """Let everybody who can go on do so, without time going by."""
    for _ in range(number):
        await asyncio.sleep(0)


def concurrency(limiter: RateLimiter) -> int:
    """Calls at once that the lanes are taken to bear now, all together."""
    return min(limiter.limits.max_concurrency, sum(int(lane.limit) for lane in limiter.lanes if not lane.retired))


def idle(limiter: RateLimiter) -> bool:
    return limiter.in_flight == 0 and not limiter._waiting


@pytest.mark.parametrize("wrong", [{"max_concurrency": 0}, {"requests_per_minute": 0}, {"tokens_per_minute": -1}])
def test_limits_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Limits(**wrong)


def test_roles_that_share_a_limiter_get_the_largest_concurrency_and_the_strictest_rates() -> None:
    limiter = RateLimiter([Provider()])
    assert limiter.limits == Limits()
    limiter.restrict(Limits(3, 100, None))
    assert limiter.limits == Limits(3, 100, None) and concurrency(limiter) == 3
    limiter.restrict(Limits(16, 500, 9000))
    limiter.restrict(Limits(2, None, 20000))
    assert limiter.limits == Limits(16, 100, 9000) and concurrency(limiter) == START


def test_a_limiter_without_providers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RateLimiter([])


@pytest.mark.parametrize(("lanes", "ceiling"), [(1, 1), (1, 5), (2, 5), (3, 40)])
@on_its_clock
async def test_the_ceiling_holds_for_all_lanes_together_and_is_reached(lanes: int, ceiling: int) -> None:
    limiter = new_limiter(lanes, max_concurrency=ceiling)
    most = 0

    async def call() -> None:
        nonlocal most
        slot = await limiter.acquire(10)
        most = max(most, limiter.in_flight)
        await asyncio.sleep(1)
        limiter.succeeded(slot, 10)

    await asyncio.gather(*(call() for _ in range(200)))
    assert most == ceiling and idle(limiter)


@on_its_clock
async def test_slow_start_adds_one_for_each_success_and_congestion_ends_it() -> None:
    limiter = new_limiter(max_concurrency=100)
    (lane,) = limiter.lanes
    assert lane.limit == START
    for _ in range(8):
        limiter.succeeded(await limiter.acquire(1), 1)
    assert lane.limit == 16
    limiter.overloaded(await limiter.acquire(1), None)
    assert lane.limit == 8 and concurrency(limiter) == 8
    limiter.succeeded(await limiter.acquire(1), 1)
    assert lane.limit == pytest.approx(8 + 1 / 8)


@on_its_clock
async def test_the_limit_falls_by_half_the_share_of_refused_calls() -> None:
    limiter = new_limiter(max_concurrency=20)
    (lane,) = limiter.lanes
    for number in range(400):  # one of ten is refused, round trip by round trip
        slots = [await limiter.acquire(1) for _ in range(concurrency(limiter))]
        for i, slot in enumerate(slots):
            if (number + i) % 10 == 0:
                limiter.overloaded(slot, None)
            else:
                limiter.succeeded(slot, 1)
    assert 0.03 < lane.share < 0.2, "the share that was refused"
    assert lane.limit > 7, "a cut by a fixed 0.7 would leave three or four"


@on_its_clock
async def test_a_call_granted_just_before_a_pause_waits_for_its_end() -> None:
    limiter = new_limiter(max_concurrency=2)
    (lane,) = limiter.lanes
    one, two = await limiter.acquire(1), await limiter.acquire(1)
    third = asyncio.ensure_future(limiter.acquire(1))
    await asyncio.sleep(0)
    limiter.released(one)  # grants the third call, which has not gone on yet
    limiter.rate_limited(two, 5.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not third.done() and limiter.in_flight == 0
    slot = await third
    assert now() >= lane.paused_until
    limiter.released(slot)
    assert idle(limiter)


@on_its_clock
async def test_nobody_waits_longer_than_their_patience() -> None:
    limiter = new_limiter(max_concurrency=1)
    slot = await limiter.acquire(1)
    hasty = asyncio.ensure_future(limiter.acquire(1, patience_s=30.0))
    patient = asyncio.ensure_future(limiter.acquire(1, patience_s=3600.0))
    await asyncio.sleep(0)
    slot.lane.refusal = "come back later"
    limiter.rate_limited(slot, 600.0)
    with pytest.raises(ProviderError, match=r"600 s more.*come back later") as error:
        await hasty
    assert error.value.retryable
    limiter.released(await patient)
    assert idle(limiter)


@on_its_clock
async def test_the_limit_stays_between_one_and_the_ceiling() -> None:
    limiter = new_limiter(max_concurrency=10)
    for _ in range(20):
        limiter.succeeded(await limiter.acquire(1), 1)
    assert concurrency(limiter) == 10
    for _ in range(20):
        limiter.overloaded(await limiter.acquire(1), None)
    assert limiter.lanes[0].limit == 1 and concurrency(limiter) == 1


@on_its_clock
async def test_a_burst_of_refusals_counts_once_and_so_do_calls_sent_before_the_decrease() -> None:
    limiter = new_limiter()
    (lane,) = limiter.lanes
    first = [await limiter.acquire(1) for _ in range(8)]
    for slot in first[:5]:
        limiter.rate_limited(slot, None)
    assert lane.limit == 4 and lane.refusals == 1
    assert 1 <= lane.paused_until - now() <= 1.25
    limiter.succeeded(first[5], 1)  # sent before the decrease: neither growth nor the end of the row of refusals
    second = [await limiter.acquire(1), await limiter.acquire(1)]
    limiter.overloaded(first[6], None)
    assert lane.limit == 4 and lane.refusals == 1
    limiter.rate_limited(second[0], None)
    assert lane.limit == 2 and lane.refusals == 2
    limiter.rate_limited(first[7], None)
    limiter.overloaded(second[1], None)
    assert lane.limit == 2 and lane.refusals == 2
    assert idle(limiter)


@on_its_clock
async def test_pauses_without_a_word_from_the_provider_double_up_to_a_minute_and_a_success_ends_the_row() -> None:
    limiter = new_limiter()
    for expected in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        slot = await limiter.acquire(1)
        limiter.rate_limited(slot, None)
        pause = limiter.lanes[0].paused_until - now()
        assert expected <= pause <= expected * 1.25
    assert pause != LONGEST_BACKOFF_S  # the jitter
    limiter.succeeded(await limiter.acquire(1), 1)
    limiter.rate_limited(await limiter.acquire(1), 0.0)  # "at once" is no pause to rely on
    assert 1 <= limiter.lanes[0].paused_until - now() <= 1.25


@on_its_clock
async def test_overload_pauses_only_where_the_provider_asks_for_it() -> None:
    limiter = new_limiter()
    start = now()
    limiter.overloaded(await limiter.acquire(1), None)
    slot = await limiter.acquire(1)
    assert now() == start
    limiter.overloaded(slot, 7.0)
    limiter.released(await limiter.acquire(1))
    assert now() == pytest.approx(start + 7)


@on_its_clock
async def test_calls_spread_over_lanes_with_rates_of_their_own_and_go_on_where_one_is_paused() -> None:
    limiter = new_limiter(2, max_concurrency=1, requests_per_minute=3)
    start = now()
    lanes = []
    for _ in range(7):
        slot = await limiter.acquire(1)
        lanes.append(limiter.lanes.index(slot.lane))
        limiter.succeeded(slot, 1)
    assert lanes == [0, 1, 0, 1, 0, 1, 0] and now() == pytest.approx(start + 60)
    slot = await limiter.acquire(1)
    limiter.rate_limited(slot, 50.0)
    start = now()
    assert (await limiter.acquire(1)).lane is not slot.lane and now() == start


@on_its_clock
async def test_a_retired_lane_sends_nothing_more_and_the_last_one_ends_the_waiting() -> None:
    limiter = new_limiter(2, max_concurrency=2)
    first, second = await limiter.acquire(1), await limiter.acquire(1)
    waiting = [asyncio.create_task(limiter.acquire(1)) for _ in range(3)]
    await turns()
    limiter.retire(first)
    limiter.released(first)  # ended already
    await turns()
    assert waiting[0].done() and waiting[0].result().lane is second.lane
    assert limiter.in_flight == 2 and concurrency(limiter) == 2
    limiter.retire(second)
    with pytest.raises(ProviderError, match="test at https://host/v1 refuses all 2 credentials") as failure:
        await waiting[1]
    assert failure.value.kind == "rejected" and not failure.value.retryable
    with pytest.raises(ProviderError):
        await waiting[2]
    with pytest.raises(ProviderError):
        await limiter.acquire(1)
    limiter.succeeded(waiting[0].result(), 1)
    assert idle(limiter) and concurrency(limiter) == 0


@pytest.mark.parametrize("again", ["succeeded", "rate_limited", "overloaded", "released", "retire"])
@on_its_clock
async def test_a_slot_ends_once(again: str) -> None:
    limiter = new_limiter()
    slot, other = await limiter.acquire(10), await limiter.acquire(10)
    limiter.released(slot)
    {
        "succeeded": lambda: limiter.succeeded(slot, 900),
        "rate_limited": lambda: limiter.rate_limited(slot, 60.0),
        "overloaded": lambda: limiter.overloaded(slot, 60.0),
        "released": lambda: limiter.released(slot),
        "retire": lambda: limiter.retire(slot),
    }[again]()
    assert limiter.in_flight == 1 and limiter.lanes[0].window_tokens == 20 and limiter.lanes[0].limit == START
    limiter.released(other)
    assert limiter.in_flight == 0 and limiter.rest_s == 0


@on_its_clock
async def test_what_a_call_used_replaces_its_estimate_in_the_window() -> None:
    limiter = new_limiter(tokens_per_minute=100)
    start = now()
    limiter.succeeded(await limiter.acquire(90), 20)
    slot = await limiter.acquire(80)
    assert now() == start
    limiter.succeeded(slot, 0)  # nothing reported: the estimate stays
    assert limiter.lanes[0].window_tokens == 100
    slot = await limiter.acquire(50)
    assert now() == pytest.approx(start + 60)
    await asyncio.sleep(70)
    limiter.succeeded(slot, 5000)  # known only when it has left the window
    assert limiter.lanes[0].window_tokens == 0
    slot = await limiter.acquire(10)
    limiter.succeeded(slot, 110)  # more than the limit, but it happened
    start = now()
    await limiter.acquire(1)
    assert now() == pytest.approx(start + 60)


@on_its_clock
async def test_a_stricter_rate_of_a_role_that_comes_later_counts_what_was_sent_before() -> None:
    limiter = new_limiter()
    start = now()
    for _ in range(5):
        limiter.released(await limiter.acquire(1))
        await asyncio.sleep(1)
    limiter.restrict(Limits(requests_per_minute=3))
    await limiter.acquire(1)
    assert now() == pytest.approx(start + 62)  # two of the five are left, sent after 3 and 4 seconds


@on_its_clock
async def test_a_larger_ceiling_lets_those_go_who_wait() -> None:
    limiter = new_limiter(max_concurrency=1)
    await limiter.acquire(1)
    task = asyncio.create_task(limiter.acquire(1))
    await turns()
    assert not task.done()
    limiter.restrict(Limits(max_concurrency=2))
    await turns()
    assert task.done()


@on_its_clock
async def test_a_large_call_that_gives_up_no_longer_holds_up_a_small_one() -> None:
    limiter = new_limiter(tokens_per_minute=100)
    limiter.released(await limiter.acquire(60))
    start = now()
    large = asyncio.create_task(limiter.acquire(90))
    small = asyncio.create_task(limiter.acquire(40))
    await asyncio.sleep(5)
    large.cancel()
    await small
    assert now() == pytest.approx(start + 5)


@on_its_clock
async def test_a_slot_given_to_a_caller_cancelled_in_the_same_turn_goes_to_the_next_and_counts_for_no_rate() -> None:
    limiter = new_limiter(max_concurrency=1, requests_per_minute=2, tokens_per_minute=100)
    slot = await limiter.acquire(10)
    tasks = [asyncio.create_task(limiter.acquire(90)) for _ in range(2)]
    await turns()
    start = now()
    limiter.released(slot)  # gives the slot to tasks[0], which has no turn before it is cancelled
    tasks[0].cancel()
    slot = await tasks[1]
    assert tasks[0].cancelled() and now() == start
    assert limiter.in_flight == 1 and limiter.lanes[0].window_tokens == 100 and len(limiter.lanes[0].window) == 2
    limiter.released(slot)
    assert idle(limiter)


class Pause:
    """What a refusal asks for: nothing sent on the lane from now on until then."""

    def __init__(self, lane: Lane, until: float) -> None:
        self.lane, self.until = lane, until
        self.sent_before = lane.sends

    def forbids(self, slot: Slot) -> bool:
        return slot.lane is self.lane and slot.number > self.sent_before and slot.sent_at < self.until - 1e-6


@dataclass(frozen=True)
class Call:
    after_s: float  # since the call before was asked for
    tokens: int
    used: int
    takes_s: float
    outcome: str
    retry_after_s: float | None = None
    patience_s: float | None = None  # given up after so long


calls = st.builds(
    Call,
    after_s=st.sampled_from([0.0, 0.0, 0.0, 0.1, 3.0, 20.0, 61.0]),
    tokens=st.integers(1, 150),
    used=st.integers(0, 200),
    takes_s=st.sampled_from([0.0, 0.5, 2.0, 30.0, 90.0]),
    outcome=st.sampled_from(["succeeded"] * 6 + ["rate_limited", "overloaded", "released"]),
    retry_after_s=st.sampled_from([None, 0.0, 0.3, 10.0, 100.0]),
    patience_s=st.sampled_from([None] * 8 + [0.0, 5.0]),
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(calls, min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(1, 12),
    st.none() | st.integers(1, 10),
    st.none() | st.integers(1, 300),
)
def test_no_window_ever_holds_more_than_the_rates_allow(
    plan: list[Call], lanes: int, ceiling: int, rpm: int | None, tpm: int | None
) -> None:
    """Kept apart from the limiter's own books: what was sent when, through which lane, and what is known of it."""
    sent: list[Slot] = []
    known: dict[Slot, int] = {}
    served: dict[int, Slot] = {}
    given_up: set[int] = set()
    pauses: list[Pause] = []
    send = Lane.send

    def checked(lane: Lane, at: float, tokens: int) -> Slot:
        """Looks at the moment of sending; the caller has its turn a little later, when more may be known."""
        slot = send(lane, at, tokens)
        assert not any(pause.forbids(slot) for pause in pauses)
        never_sent = {s for s in sent if s.ended and s not in served.values()}  # its caller had gone
        window = [s for s in sent if s.lane is lane and s.sent_at > at - 60 + 1e-6 and s not in never_sent]
        assert rpm is None or len(window) < rpm
        before = sum(known[s] for s in window)
        assert tpm is None or before + tokens <= tpm or not window
        assert lane.in_flight <= lane.limit and sum(not s.ended for s in sent) < ceiling
        sent.append(slot)
        known[slot] = tokens
        return slot

    async def main() -> None:
        limiter = RateLimiter([Provider() for _ in range(lanes)], asyncio.get_running_loop().time, random.Random(1))
        limiter.restrict(Limits(ceiling, rpm, tpm))

        async def call(number: int, plan: Call) -> None:
            try:
                async with asyncio.timeout(plan.patience_s):
                    slot = await limiter.acquire(plan.tokens)
            except TimeoutError:
                given_up.add(number)
                return
            served[number] = slot
            await asyncio.sleep(plan.takes_s)
            if plan.outcome == "succeeded":
                known[slot] = plan.used or plan.tokens
                limiter.succeeded(slot, plan.used)
            elif plan.outcome == "released":
                limiter.released(slot)
            else:
                pauses.append(Pause(slot.lane, now() + (plan.retry_after_s or 0.0)))
                getattr(limiter, plan.outcome)(slot, plan.retry_after_s)

        tasks = []
        for number, planned in enumerate(plan):
            await asyncio.sleep(planned.after_s)
            tasks.append(asyncio.create_task(call(number, planned)))
        await asyncio.gather(*tasks)
        assert idle(limiter)

    with unittest.mock.patch.object(Lane, "send", checked):
        run(main())
    assert sorted([*served, *given_up]) == list(range(len(plan)))
    if lanes > 1 and any(slot not in served.values() for slot in sent):
        return  # a slot was taken back, and meanwhile a later call had gone out by another lane
    in_order = [served[number] for number in sorted(served)]
    for lane in {slot.lane for slot in in_order}:
        numbers = [slot.number for slot in in_order if slot.lane is lane]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("retry_after_s", [None, 12.5])
@pytest.mark.parametrize("lanes", [1, 2])
@on_its_clock
async def test_a_storm_of_429s_is_weathered(lanes: int, retry_after_s: float | None) -> None:
    """A provider that bears 4 calls at once per credential, then 64: nothing goes out during a pause, every call gets
    through, and the concurrency comes back."""
    limiter = new_limiter(lanes, max_concurrency=32)
    at_once = dict.fromkeys(limiter.lanes, 0)
    pauses: list[Pause] = []
    capacity, refusals, answered = 4, 0, 0

    async def one() -> None:
        nonlocal refusals, answered
        while True:
            slot = await limiter.acquire(10)
            lane = slot.lane
            assert not any(pause.forbids(slot) for pause in pauses)
            at_once[lane] += 1
            refused = at_once[lane] > capacity
            await asyncio.sleep(0.05 if refused else 1.0)
            at_once[lane] -= 1
            if not refused:
                answered += 1
                return limiter.succeeded(slot, 10)
            refusals += 1
            if retry_after_s is not None:
                pauses.append(Pause(lane, now() + retry_after_s))
            limiter.rate_limited(slot, retry_after_s)

    await asyncio.gather(*(one() for _ in range(300)))
    assert answered == 300 and idle(limiter) and refusals > 0
    assert refusals < 300 and concurrency(limiter) <= 8 * lanes
    capacity = 64
    start = now()
    await asyncio.gather(*(one() for _ in range(1500)))
    assert concurrency(limiter) == 32 and idle(limiter)
    assert now() - start < 200


def test_waiting_wakes_up_only_when_something_can_have_changed() -> None:
    """No polling: an hour of waiting for a rate costs a handful of timers."""

    async def main() -> int:
        limiter = new_limiter(requests_per_minute=1)
        slots = [limiter.acquire(1) for _ in range(60)]
        served = 0
        serve: Callable[[], None] = limiter._serve

        def counted() -> None:
            nonlocal served
            served += 1
            serve()

        limiter._serve = counted  # type: ignore[method-assign]
        waiting: list[Awaitable[Slot]] = [asyncio.create_task(coroutine) for coroutine in slots]
        for slot in waiting:
            limiter.released(await slot)
        return served

    assert run(main()) <= 60 * 4
