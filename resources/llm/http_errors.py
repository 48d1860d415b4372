"""What the providers that speak HTTP have in common: failures as ProviderErrors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from resources.llm.base import ProviderError
from resources.llm.keys import redact

LONGEST = 500  # characters of a message


def message(text: str, *keys: str) -> str:
    """A message of a provider or a library: on one line, without keys, not too long."""
    line = " ".join(redact(text, *keys).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `retry-after-ms` or `Retry-After` asks to wait; None where neither can be read.

    `headers` must look names up without regard to case. A date is counted from the server's own clock where it
    sends one, since the two clocks may differ.
    """
    if (wait := _seconds(headers.get("retry-after-ms", ""))) is not None:
        return wait / 1000
    value = headers.get("retry-after", "")
    if (wait := _seconds(value)) is not None:
        return wait
    if (until := _date(value)) is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds())


def _seconds(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


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
    return ProviderError("rejected", text, retryable=False, bad_key=bad_key or status in (401, 403))


def unsent_or_lost(error: Exception, base_url: str, timeout_s: float, *keys: str) -> ProviderError:
    """The failure that an exception means which is no answer of the provider."""
    import anyio
    import httpx2

    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        why = f"no whole answer from {base_url} within {timeout_s:g} s"
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
        why = message(f"no answer from {base_url}: {cause}", *keys)
        return ProviderError("unavailable", why, retryable=True, maybe_charged=sent)
    return ProviderError("rejected", message(f"the request cannot be sent: {cause}", *keys), retryable=False)


def no_answer(base_url: str, body: str, *keys: str) -> ProviderError:
    """The failure that a success status means whose body is not of the protocol, say a proxy's HTML."""
    text = f"{base_url} answered with something that is not of its protocol: {body[:LONGEST] or 'an empty body'}"
    return ProviderError("unavailable", message(text, *keys), retryable=True, maybe_charged=True)
