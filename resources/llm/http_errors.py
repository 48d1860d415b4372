"""What the providers that speak HTTP have in common: the call, and failures as ProviderErrors."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from resources.llm.base import FailureKind, LLMRequest, LLMResponse, ProviderError
from resources.llm.keys import clean_base_url, redact
from resources.llm.models import setting_for
from resources.llm.prices import OWN_ENDPOINTS
from resources.llm.thoughts import UnfinishedThought, split_thoughts

if TYPE_CHECKING:
    import httpx2

LONGEST = 500  # characters of a message


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server's answer says. `problem`: why it is of no use."""

    text: str
    model: str | None
    prompt_tokens: int
    output_tokens: int
    problem: tuple[FailureKind, str] | None
    thoughts: str = ""
    thinking_tokens: int = 0
    cached_tokens: int = 0


class HttpProvider(ABC):
    """A provider over HTTP, with one key; one HTTP request per call, said by a subclass."""

    name: str
    speaker: str  # whose answer it is, in messages

    def __init__(self, api_key: str, *, base_url: str | None = None, timeout_s: float = 120.0) -> None:
        self.base_url = clean_base_url(base_url or OWN_ENDPOINTS[self.name])
        self.timeout_s = timeout_s
        self._key = api_key
        self._client: Any = None
        self._http: httpx2.AsyncClient | None = None

    @abstractmethod
    def _open(self, http: httpx2.AsyncClient) -> Any:
        """The client library's client."""

    @abstractmethod
    def _parameters(self, request: LLMRequest) -> dict[str, Any]:
        """What `_send` is called with. Raises ProviderError for what cannot be asked."""

    @abstractmethod
    async def _send(self, client: Any, **parameters: Any) -> str | bytes:
        """The body of an answer with a success status, as it came."""

    @abstractmethod
    def _read(self, body: str | bytes) -> Reply:
        """Raises ValidationError for a body that is not of the protocol."""

    @abstractmethod
    def _refusal(self, error: Exception) -> ProviderError | None:
        """What an exception of the client library means; None where the server did not answer."""

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer, from one attempt. Raises ProviderError for everything that is not a whole answer."""
        if self._client is None:  # not before: the imports take their time, and the pool belongs to the running loop
            from resources.llm.pool import PooledClient

            self._http = PooledClient()
            self._client = self._open(self._http)
        client = self._client
        parameters = self._parameters(request)
        started = time.perf_counter()
        # Raised `from None` throughout: the library's exceptions quote the answer, which may quote the key.
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._send(client, **parameters)
        except Exception as error:
            raise self._refusal(error) or self._unsent_or_lost(error) from None
        try:
            reply = self._read(body)
        except ValidationError:  # say a proxy's HTML
            start = (body.decode("utf-8", "replace") if isinstance(body, bytes) else body)[:LONGEST]
            why = f"{self.base_url} answered with something that is not of its protocol: {start or 'an empty body'}"
            raise ProviderError("malformed", self._message(why), retryable=True, maybe_charged=True) from None
        problem, thoughts, text = reply.problem, reply.thoughts, reply.text
        if problem is None:
            try:
                before, text = split_thoughts(reply.text)
            except UnfinishedThought as error:
                problem = "truncated", f"{error}: raise max_output_tokens"
            else:
                thoughts = "\n\n".join(part for part in (thoughts, before) if part)
        if problem is None and not text.strip():
            only = " but thoughts: raise max_output_tokens" if thoughts else ""
            problem = "empty", f"{self.speaker} answered without text{only}"
        if problem is not None:
            kind, why = problem
            used: Any = {"prompt_tokens": reply.prompt_tokens, "output_tokens": reply.output_tokens}
            raise ProviderError(kind, self._message(why), retryable=kind == "empty", **used)
        seconds = time.perf_counter() - started
        return LLMResponse(
            text,
            reply.model or request.model,
            "stop",
            reply.prompt_tokens,
            reply.output_tokens,
            seconds,
            thoughts,
            reply.thinking_tokens,
            reply.cached_tokens,
        )

    def fingerprint(self, request: LLMRequest) -> str | None:
        """None: an answer depends on nothing but the request's own fields."""
        return None

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        http, self._http, self._client = self._http, None, None
        if http:
            await http.aclose()

    def _message(self, text: str) -> str:
        return message(text, self._key)

    def _unsent_or_lost(self, error: Exception) -> ProviderError:
        """The failure that an exception means which is no answer of the provider."""
        import anyio
        import httpx2

        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            why = f"no whole answer from {self.base_url} within {self.timeout_s:g} s"
            return ProviderError("timeout", why, retryable=True, maybe_charged=True)
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        lost = (
            httpx2.RequestError,
            httpx2.StreamError,
            OSError,  # ssl.SSLError among them: the client lets some through as they are, and some of anyio's
            anyio.EndOfStream,
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
            UnicodeDecodeError,  # the answer is no text
        )
        if isinstance(error, lost) and not isinstance(error, httpx2.LocalProtocolError):
            sent = not isinstance(error, httpx2.ConnectError | httpx2.PoolTimeout)
            why = self._message(f"no answer from {self.base_url}: {cause}")
            return ProviderError("unavailable", why, retryable=True, maybe_charged=sent)
        return rejected(self._message(f"the request cannot be sent: {cause}"))


def rejected(text: str) -> ProviderError:
    """The failure of a request that is not sent, for it would be refused."""
    return ProviderError("rejected", text, retryable=False)


def message(text: str, *keys: str) -> str:
    """A message of a provider or a library: on one line, without keys, not too long."""
    line = " ".join(redact(text, *keys).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `retry-after-ms` or `Retry-After` asks to wait; None where neither can be
    read.

    `headers` must look names up without regard to case. A date is counted from the server's own
    clock where it sends one, since the two clocks may differ.
    """
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError):
            number = float(headers.get(name, ""))
            if math.isfinite(number) and number >= 0:
                return number / per_second
    if (until := _date(headers.get("retry-after", ""))) is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def status_failure(
    status: int, text: str, *, retry_after: float | None = None, bad_key: bool = False, exhausted: bool = False
) -> ProviderError:
    """The failure that an HTTP status other than success means.

    `bad_key`: the answer says so beside its status. `exhausted`: a 429 that waiting does not cure.
    """
    if status in (503, 529) or (status >= 500 and "overloaded" in text.lower()):
        return ProviderError("overloaded", text, retryable=True, retry_after_s=retry_after)
    if status == 429:
        return ProviderError(
            "rate_limited",
            text,
            retryable=not exhausted,
            retry_after_s=None if exhausted else retry_after,
            bad_key=exhausted,  # another credential may have quota left
        )
    if status in (408, 409) or status >= 500 or status < 300:
        return ProviderError("unavailable", text, retryable=True, retry_after_s=retry_after)
    setting = setting_for(text) if status in (400, 422) and not bad_key else ""
    advice = f" (if the model does not take it, set {setting} in the role's settings)" if setting else ""
    return ProviderError("rejected", text + advice, retryable=False, bad_key=bad_key or status in (401, 403))
