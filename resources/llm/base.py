"""The records between whoever asks a language model and whoever answers. `client.LLM` does the asking.

A failure is a value of its own type, never an error text in the place of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a request."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Everything about decoding that can change an answer. None leaves a choice to the provider.

    `extra` holds parameters of the provider's API that have no field here (tools, a response schema, top_k ...),
    as plain JSON, sent as they are.
    """

    temperature: float | None = 0.0
    max_output_tokens: int = 256
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """One question. `context` is the typed subject beside the rendered messages; it is never sent or stored,
    and only rule-based providers look at it. `label` names the example in messages."""

    role: str
    model: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    label: str
    sample_index: int = 0
    context: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LLMResponse:
    """One whole answer. `model` is the one that the provider reports; token counts are the provider's, 0 where it
    reports none; latency in seconds. `thoughts`: what a reasoning model wrote before its answer, kept in the memo and
    never a part of a prompt, an utterance or a pair; `thinking_tokens` of the output tokens, and `cached_tokens` of
    those of the prompt, which many providers charge less for."""

    text: str
    model: str
    finish_reason: Literal["stop"] = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    latency_s: float = 0.0
    thoughts: str = ""
    thinking_tokens: int = 0
    cached_tokens: int = 0


FailureKind = Literal[
    "rate_limited",  # 429
    "overloaded",  # 503, 529, or an answer that says so
    "timeout",  # no whole answer within timeout_s
    "unavailable",  # another 5xx, connection lost
    "malformed",  # an answer that is not of the protocol
    "other_model",  # an answer of another model than was asked
    "blocked",  # filtered by the provider, the request or the answer
    "empty",  # an answer without text
    "truncated",  # an answer cut off at max_output_tokens
    "rejected",  # the provider refuses the request: it will not help to send it again as it is
    "budget",  # not asked: the budget of the run does not allow it
    "offline",  # not asked: the memo does not hold it and the run is offline
]


@dataclass(frozen=True, slots=True)
class LLMFailure:
    """Why one question has no answer. `retryable` says whether asking again later can help."""

    kind: FailureKind
    message: str
    retryable: bool
    label: str


@dataclass(eq=False)
class ProviderError(Exception):
    """Raised by a provider for one request; `LLM` turns it into that item's LLMFailure.

    `retry_after_s`: the provider's own word on when to ask again. `bad_key`: the credential is refused or used up,
    another may do. `prompt_tokens`, `output_tokens`: what the provider says it charged for an answer that is of no use;
    `maybe_charged`: it may have charged, and nothing says how much.
    """

    kind: FailureKind
    message: str
    _: KW_ONLY
    retryable: bool
    retry_after_s: float | None = None
    bad_key: bool = False
    maybe_charged: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def waited_out(self) -> bool:
        """Whether the provider asks for patience, which uses up no attempt."""
        return self.retryable and self.kind in ("rate_limited", "overloaded")

    def __str__(self) -> str:
        return self.message


class Provider(Protocol):
    """Answers one request at a time, with one credential; called concurrently, always from one event loop."""

    name: str
    base_url: str  # which server answers, without credentials; "" where there is none

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer, from one attempt. Raises ProviderError for everything that is not a whole answer."""
        ...

    def fingerprint(self, request: LLMRequest) -> str | None:
        """What an answer depends on besides the request's own fields; None where there is nothing else."""
        ...


LLMResult = LLMResponse | LLMFailure

SAMPLES = 3  # exchanges kept for people to look at


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, to look at."""

    role: str
    label: str
    messages: tuple[ChatMessage, ...]
    answer: str
    memoized: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What a number of questions came to.

    `calls` were sent (failed ones included, each counted once), `retries` are attempts beyond the
    first; `hits` came from the memo or from the same question asked meanwhile; `failures` have no
    answer. Tokens and `cost_usd` are of the calls, `saved_*` is what the hits had cost. `lost_*` is
    the part of the calls that was charged, or may have been, for no answer of use. Costs are 0
    where no price is known.
    """

    calls: int = 0
    hits: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    samples: tuple[Exchange, ...] = ()
    saved_prompt_tokens: int = 0
    saved_output_tokens: int = 0
    lost_calls: int = 0
    lost_prompt_tokens: int = 0
    lost_output_tokens: int = 0
    lost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Usage(**{**sums, "samples": sums["samples"][:SAMPLES]})
