"""When the next call goes out, and through which of several providers.

The providers of a `RateLimiter` ask the same model at the same endpoint, each with a credential of
its own; each is a `Lane`. A lane takes as many calls at once as it has shown to bear (additive
increase, and a decrease by half the share of refused calls, as DCTCP does: RFC 8257), rests after
a 429, and keeps to the rates stated for it. Callers are served in the order they ask.

Everything happens on one event loop, and nothing here awaits while it changes state, so there are
no locks. It is decided when a call is sent, never what is asked: no result depends on it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from resources.llm.base import Provider, ProviderError

WINDOW_S = 60.0  # the minute in "per minute"
START = 8  # calls at once before anything is known of a lane: about TCP's initial window (10, RFC 6928)
WEIGHT = 0.25  # of the latest round trip in the share of refused calls; DCTCP's 1/16 is for thousands of them
LONGEST_BACKOFF_S = 60.0  # after a minute of rest every limit per minute is free again
JITTER = 0.25  # at most this share longer, so that processes that were refused together do not return together
SHORTEST_TIMER_S = 0.001  # clocks and floats differ by less; a timer that fires early must not spin


@dataclass(frozen=True, slots=True)
class Limits:
    """What a role allows. `max_concurrency` bounds the calls in flight over all lanes together; the rates hold for
    each lane, since providers count them by credential (keys of one project share a quota: state each one's part).

    The default of 8 is where a lane starts: unless a role asks for more, nothing has to be found out by refusals.
    """

    max_concurrency: int = START
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for value in (self.max_concurrency, self.requests_per_minute, self.tokens_per_minute):
            if value is not None and value < 1:
                raise ValueError(f"limits are at least 1: {self}")


@dataclass(eq=False, slots=True)
class Slot:
    """Leave for one call. Ends with the first outcome reported for it; further ones do nothing."""

    lane: Lane
    number: int  # of the calls of its lane, from 1
    sent_at: float  # seconds of the limiter's clock
    tokens: int  # as estimated, then as used
    ended: bool = False


@dataclass(eq=False, slots=True)
class Lane:
    """One provider and what its calls have shown. Times are seconds of the limiter's clock."""

    provider: Provider
    retired: bool = False
    refusal: str = ""  # what the provider said last when it refused a call
    in_flight: int = 0
    limit: float = START  # calls at once that it is taken to bear
    slow_start: bool = True  # until the first congestion
    congested_at: int = 0  # number of the last call sent before the last decrease
    share: float = 1.0  # of calls refused or failed, smoothed over round trips; at first the worst is assumed
    round_until: int = 0  # number of the last call sent before the present round trip began
    round_ended: int = 0
    round_refused: int = 0
    refusals: int = 0  # bursts of 429s in a row
    refused_at: int = 0  # number of the last call sent before the last such burst began
    paused_until: float = -math.inf
    sends: int = 0
    window: deque[Slot] = field(default_factory=deque)  # sent in the last 60 s, the oldest first
    window_tokens: int = 0

    def send(self, now: float, tokens: int) -> Slot:
        self.sends += 1
        self.in_flight += 1
        self.window_tokens += tokens
        slot = Slot(self, self.sends, now, tokens)
        self.window.append(slot)
        return slot

    def heard(self, slot: Slot, refused: bool) -> None:
        """Count an outcome. When a call sent since the round trip began has ended, the round trip is over.

        Successes before the first refusal say nothing of how many are refused when it comes.
        """
        if self.slow_start:
            return
        self.round_ended += 1
        self.round_refused += refused
        if slot.number > self.round_until:
            self.share += WEIGHT * (self.round_refused / self.round_ended - self.share)
            self.round_until, self.round_ended, self.round_refused = self.sends, 0, 0

    def slide(self, now: float) -> None:
        """Drop what has left the window."""
        while self.window and self.window[0].sent_at + WINDOW_S <= now:
            self.window_tokens -= self.window.popleft().tokens

    def opens_at(self, now: float, tokens: int, limits: Limits) -> float:
        """The first moment at which the pause and the rates allow a call of so many tokens."""
        self.slide(now)
        moment = self.paused_until
        requests = limits.requests_per_minute
        if requests is not None and len(self.window) >= requests:
            moment = max(moment, self.window[-requests].sent_at + WINDOW_S)
        if limits.tokens_per_minute is not None:
            # A call larger than the whole limit goes out once the window is empty: no wait would ever be enough.
            excess = self.window_tokens + tokens - limits.tokens_per_minute
            for slot in self.window:
                if excess <= 0:
                    break
                moment = max(moment, slot.sent_at + WINDOW_S)
                excess -= slot.tokens
        return moment

    def pause(self, until: float) -> None:
        """Send nothing until then. Never ends a pause earlier than it was to end."""
        self.paused_until = max(self.paused_until, until)


@dataclass(eq=False, slots=True)
class _Waiter:
    turn: int
    tokens: int
    future: asyncio.Future[Slot]
    patience_s: float


class RateLimiter:
    """Hands out slots. Every slot is given back by one of the outcomes, whatever becomes of the call.

    `rng` draws the jitter of pauses; unseeded by default, since processes are to differ in it.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        if not providers:
            raise ValueError("a rate limiter needs at least one provider")
        self.lanes = tuple(Lane(provider) for provider in providers)
        self._clock = clock
        self._rng = rng if rng is not None else random.Random()
        self._limits: Limits | None = None
        self._waiting: deque[_Waiter] = deque()
        self._turns = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> Limits:
        return self._limits or Limits()

    @property
    def in_flight(self) -> int:
        """Calls on their way now, over all lanes."""
        return sum(lane.in_flight for lane in self.lanes)

    @property
    def rest_s(self) -> float:
        """Seconds until some lane is out of its pause; 0 where one is not paused."""
        return max(0.0, min((lane.paused_until for lane in self._open_lanes()), default=0.0) - self._clock())

    def restrict(self, limits: Limits) -> None:
        """One more role: the largest concurrency and the strictest rates hold for all."""
        both = (self._limits or limits, limits)
        self._limits = Limits(
            max(each.max_concurrency for each in both),
            min((rate for each in both if (rate := each.requests_per_minute)), default=None),
            min((rate for each in both if (rate := each.tokens_per_minute)), default=None),
        )
        self._serve()

    async def acquire(self, tokens: int, patience_s: float = math.inf) -> Slot:
        """Wait until a call of about so many tokens (prompt and answer) may go out.

        Raises ProviderError where no lane is left, or where the provider asks to wait longer than `patience_s`.
        """
        turn = next(self._turns)
        while True:
            waiter = _Waiter(turn, tokens, asyncio.get_running_loop().create_future(), patience_s)
            # Behind those that came before it: a call whose slot was taken back keeps its turn.
            self._waiting.insert(sum(w.turn < turn for w in self._waiting), waiter)
            self._serve()
            try:
                slot = await waiter.future
            except asyncio.CancelledError:
                if waiter.future.cancelled():
                    self._serve()  # a call behind this one may be small enough to go
                elif waiter.future.exception() is None:
                    self._take_back(waiter.future.result())
                raise
            if slot.lane.paused_until <= self._clock() and not slot.lane.retired:
                return slot
            # Between the grant and now another call was refused: nothing is sent during a Retry-After.
            self._take_back(slot)

    def succeeded(self, slot: Slot, tokens_used: int) -> None:
        """The call was answered. `tokens_used` of 0 means that the provider reports none."""
        if self._end(slot):
            lane, ceiling, now = slot.lane, self.limits.max_concurrency, self._clock()
            lane.heard(slot, False)
            lane.slide(now)
            if tokens_used and slot.sent_at + WINDOW_S > now:
                lane.window_tokens += tokens_used - slot.tokens
                slot.tokens = tokens_used
            if slot.number > lane.refused_at:
                lane.refusals = 0
            if slot.number > lane.congested_at and lane.limit < ceiling:
                lane.limit = min(lane.limit + (1.0 if lane.slow_start else 1.0 / lane.limit), float(ceiling))
        self._serve()

    def rate_limited(self, slot: Slot, retry_after_s: float | None) -> None:
        """The provider answered 429: rest for as long as it says, or for 1, 2, 4 ... 60 s where it does not say.

        Several 429s of calls that were on their way together are one sign of congestion, not several.
        """
        if self._end(slot):
            lane = slot.lane
            self._congested(slot)
            first = slot.number > lane.refused_at
            if first:
                lane.refusals += 1
                lane.refused_at = lane.sends
            if retry_after_s:  # "in 0 seconds" says as little as no word at all
                lane.pause(self._clock() + retry_after_s)
            elif first:
                backoff_s = min(2.0 ** min(lane.refusals - 1, 10), LONGEST_BACKOFF_S)
                lane.pause(self._clock() + backoff_s * (1.0 + JITTER * self._rng.random()))
        self._serve()

    def overloaded(self, slot: Slot, retry_after_s: float | None) -> None:
        """The provider failed (5xx, a timeout): fewer at once, and a rest only where it asks for one."""
        if self._end(slot):
            self._congested(slot)
            if retry_after_s:
                slot.lane.pause(self._clock() + retry_after_s)
        self._serve()

    def released(self, slot: Slot) -> None:
        """The call ended in a way that says nothing about the load."""
        self._end(slot)
        self._serve()

    def retire(self, slot: Slot) -> None:
        """The credential of this slot's lane is refused: end the slot and send nothing more there."""
        self._end(slot)
        slot.lane.retired = True
        self._serve()

    def _open_lanes(self) -> list[Lane]:
        return [lane for lane in self.lanes if not lane.retired]

    def _end(self, slot: Slot) -> bool:
        """Give the slot back; False where that was done before."""
        if slot.ended:
            return False
        slot.ended = True
        slot.lane.in_flight -= 1
        return True

    def _take_back(self, slot: Slot) -> None:
        """Whoever the slot was for went away before sending anything."""
        self._end(slot)
        if slot in slot.lane.window:
            slot.lane.window.remove(slot)
            slot.lane.window_tokens -= slot.tokens
        self._serve()

    def _congested(self, slot: Slot) -> None:
        lane = slot.lane
        if slot.number > lane.congested_at:  # calls sent before the last decrease say nothing about the new limit
            lane.congested_at = lane.sends
            lane.slow_start = False
            lane.limit = max(1.0, min(lane.limit, self.limits.max_concurrency) * (1.0 - lane.share / 2.0))
        lane.heard(slot, True)

    def _serve(self) -> None:
        """Let go whoever may, in the order asked; then set a timer for when the next one may.

        No timer where only the end of a call in flight can help: its outcome comes here too.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (rest_s := self.rest_s) > 0.0:
            for waiter in [w for w in self._waiting if rest_s > w.patience_s]:
                self._waiting.remove(waiter)
                if not waiter.future.done():
                    why = f"the provider asks to wait {rest_s:.0f} s more, longer than patience_s"
                    why += _said(self._open_lanes())
                    waiter.future.set_exception(ProviderError("rate_limited", why, retryable=True))
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.future.done():  # cancelled meanwhile
                self._waiting.popleft()
                continue
            lanes = self._open_lanes()
            if not lanes:
                self._waiting.popleft()
                provider = self.lanes[0].provider
                where = f" at {provider.base_url}" if provider.base_url else ""
                refused = "the only credential" if len(self.lanes) == 1 else f"all {len(self.lanes)} credentials"
                why = f"{provider.name}{where} refuses {refused}{_said(self.lanes)}"
                waiter.future.set_exception(ProviderError("rejected", why, retryable=False))
                continue
            if self.in_flight >= self.limits.max_concurrency:
                return
            now = self._clock()
            moments = [
                (lane.opens_at(now, waiter.tokens, self.limits), lane)
                for lane in lanes
                if lane.in_flight < int(lane.limit)
            ]
            ready = [lane for moment, lane in moments if moment <= now]
            if not ready:
                if moments:
                    delay_s = min(moment for moment, _ in moments) - now
                    loop = waiter.future.get_loop()
                    self._timer = loop.call_later(max(delay_s, SHORTEST_TIMER_S), self._serve)
                return
            self._waiting.popleft()
            idlest = min(ready, key=lambda lane: (lane.in_flight, len(lane.window)))
            waiter.future.set_result(idlest.send(now, waiter.tokens))


def _said(lanes: Iterable[Lane]) -> str:
    return next((f": {lane.refusal}" for lane in lanes if lane.refusal), "")
