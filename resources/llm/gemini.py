"""Gemini, over google-genai.

The client library would do more than one request per call in several ways; all of them are turned off here. It
returns the body as it came, which is read by the records below: they keep what is used, and a finish reason that the
library does not know yet is one like any other.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from resources.llm import http_errors as wire
from resources.llm.base import FailureKind, LLMRequest, LLMResponse, ProviderError
from resources.llm.keys import clean_base_url
from resources.llm.prices import GEMINI_URL

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client
    from google.genai.types import ContentDict, GenerateContentConfig

# Pinned, for the library also takes it from the environment, and the two do not know the same models.
API_VERSION = "v1beta"
# Gemini refuses requests that give it less.
SHORTEST_DEADLINE_S = 10

_CUT_OFF = {"MAX_TOKENS", "CONTINUATION"}
_FILTERED = {
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "ESCALATION",
    "MODEL_ARMOR",
}
# Fields of GenerateContentConfig that `extra` may not set: they are said elsewhere in the request, or they are
# about this client (its server, its retries, how it reads the answer) and not about the model's decoding.
_RESERVED = {
    "system_instruction": "a system message",
    "temperature": "Sampling.temperature",
    "max_output_tokens": "Sampling.max_output_tokens",
    "top_p": "Sampling.top_p",
    "seed": "Sampling.seed",
    "stop_sequences": "Sampling.stop",
    "http_options": "",
    "should_return_http_response": "",
    "automatic_function_calling": "",
    "automatic_continuation": "",
    "continuation_token": "",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class _Part(_Record):
    text: str | None = None
    thought: bool | None = None


class _Content(_Record):
    parts: tuple[_Part, ...] | None = None


class _Candidate(_Record):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None

    def text(self) -> str:
        parts = self.content.parts if self.content else None
        return "".join(part.text or "" for part in parts or () if not part.thought)


class _Feedback(_Record):
    block_reason: str | None = None


class _Tokens(_Record):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None


class _Answer(_Record):
    candidates: tuple[_Candidate, ...] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Tokens | None = None
    model_version: str | None = None


class GeminiProvider:
    """Answers of the Gemini API with one key; one HTTP request per call."""

    name = "gemini"

    def __init__(self, api_key: str, *, base_url: str = GEMINI_URL, timeout_s: float = 120.0) -> None:
        self.base_url = clean_base_url(base_url)
        self.timeout_s = timeout_s
        self._key = api_key
        self._client: Client | None = None
        self._http: httpx2.AsyncClient | None = None

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer, from one attempt. Raises ProviderError for everything that is not a whole answer."""
        client = self._open()
        # Raised `from None` throughout: the library's exceptions quote the answer, which may quote the key.
        config = self._config(request)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await client.aio.models.generate_content(
                    model=request.model, contents=_contents(request), config=config
                )
        except Exception as error:
            raise self._failure(error) from None
        body = (answer.sdk_http_response.body if answer.sdk_http_response else None) or ""
        try:
            read = _Answer.model_validate_json(body)
        except ValidationError:
            raise wire.no_answer(self.base_url, body, self._key) from None
        return self._response(read, request.model, time.perf_counter() - started)

    def fingerprint(self, request: LLMRequest) -> str | None:
        """None: an answer depends on nothing but the request's own fields."""
        return None

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        client, http, self._client, self._http = self._client, self._http, None, None
        if client:
            client.close()
        if http:
            await http.aclose()

    def _open(self) -> Client:
        # Not before the first call: the import takes half a second, and the pool belongs to the running loop.
        if self._client is None:
            from google.genai import Client
            from google.genai.types import HttpOptions, HttpRetryOptions

            from resources.llm.pool import PooledClient

            # An own client also settles the transport, which is another one where aiohttp is installed.
            self._http = PooledClient()
            deadline = {"X-Server-Timeout": str(math.ceil(self.timeout_s))}  # what nobody waits for costs nothing
            self._client = Client(
                api_key=self._key,
                vertexai=False,  # otherwise the environment decides
                http_options=HttpOptions(
                    base_url=self.base_url,
                    api_version=API_VERSION,
                    headers=deadline if self.timeout_s >= SHORTEST_DEADLINE_S else {},
                    # With no options at all, the library retries in its own way where aiohttp is installed.
                    retry_options=HttpRetryOptions(attempts=1),
                    httpx_async_client=self._http,
                ),
            )
        return self._client

    def _config(self, request: LLMRequest) -> GenerateContentConfig:
        from google.genai.types import AutomaticFunctionCallingConfig, GenerateContentConfig

        known = GenerateContentConfig.model_fields
        names = {field.alias: name for name, field in GenerateContentConfig.model_fields.items()}
        extra = {names.get(name, name): value for name, value in request.sampling.extra.items()}
        for name in extra:
            if name not in known:
                raise _rejected(f"`extra` has {name!r}, which is no field of GenerateContentConfig")
            if name in _RESERVED:
                raise _rejected(f"`extra` may not have {name!r}; use {_RESERVED[name] or 'the defaults'}")
        sampling = request.sampling
        system = [m.content for m in request.messages if m.role == "system"]
        try:
            return GenerateContentConfig(
                **extra,
                system_instruction="\n\n".join(system) if system else None,
                temperature=sampling.temperature,
                max_output_tokens=sampling.max_output_tokens,
                top_p=sampling.top_p,
                seed=sampling.seed,
                stop_sequences=list(sampling.stop) or None,
                # The body as it came: the library then finds no call to a function and no continuation to follow.
                should_return_http_response=True,
                automatic_function_calling=AutomaticFunctionCallingConfig(disable=True),
            )
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise _rejected(wire.message(f"not a GenerateContentConfig: {problems}", self._key)) from None

    def _response(self, answer: _Answer, model: str, latency_s: float) -> LLMResponse:
        used = answer.usage_metadata or _Tokens()
        prompt_tokens = used.prompt_token_count or 0
        output_tokens = (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)

        def useless(kind: FailureKind, text: str, *, retryable: bool = False) -> ProviderError:
            return ProviderError(
                kind,
                wire.message(text, self._key),
                retryable=retryable,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
            )

        if answer.prompt_feedback and answer.prompt_feedback.block_reason:
            raise useless("blocked", f"gemini blocked the prompt: {answer.prompt_feedback.block_reason}")
        if not answer.candidates:
            raise useless("empty", "gemini answered without a candidate", retryable=True)
        candidate = answer.candidates[0]
        reason = candidate.finish_reason
        why = f"{reason}: {candidate.finish_message}" if candidate.finish_message else reason
        if reason in _CUT_OFF:
            raise useless("truncated", f"gemini's answer is cut off: {why}, {output_tokens} output tokens")
        if reason in _FILTERED:
            raise useless("blocked", f"gemini blocked the answer: {why}")
        if reason != "STOP":
            raise useless("rejected", f"gemini's answer did not end in a regular way: {why or 'no finish reason'}")
        text = candidate.text()
        if not text.strip():
            raise useless("empty", "gemini answered without text", retryable=True)
        return LLMResponse(
            text=text,
            model=answer.model_version or model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            latency_s=latency_s,
        )

    def _failure(self, error: Exception) -> ProviderError:
        from google.genai.errors import APIError

        if not isinstance(error, APIError):
            return wire.unsent_or_lost(error, self.base_url, self.timeout_s, self._key)
        details = _details(error.details)
        daily = any("PerDay" in quota for quota in _quotas(details))
        said = error.message if isinstance(error.message, str) and error.message else str(error.details)
        what = "the daily quota is used up: " if daily else ""
        headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
        wait = wire.retry_after_s(headers)
        return wire.status_failure(
            error.code,
            wire.message(f"gemini answered {error.code} {error.status or ''}: {what}{said}", self._key),
            retry_after=_retry_delay_s(details) if wait is None else wait,
            bad_key=any(d.get("reason") == "API_KEY_INVALID" for d in details),
            exhausted=daily,
        )


def _rejected(text: str) -> ProviderError:
    return ProviderError("rejected", text, retryable=False)


def _contents(request: LLMRequest) -> list[ContentDict]:
    roles = {"user": "user", "assistant": "model"}
    return [{"role": roles[m.role], "parts": [{"text": m.content}]} for m in request.messages if m.role != "system"]


# The typed details of an error: google.rpc.RetryInfo, QuotaFailure and ErrorInfo are read.


def _details(body: Any) -> list[Mapping[str, Any]]:
    error = body.get("error", body) if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    return [d for d in details if isinstance(d, Mapping)] if isinstance(details, list) else []


def _quotas(details: list[Mapping[str, Any]]) -> list[str]:
    violations = [v for d in details for v in d.get("violations") or () if isinstance(v, Mapping)]
    return [str(v.get("quotaId", "")) for v in violations]


def _retry_delay_s(details: list[Mapping[str, Any]]) -> float | None:
    for detail in details:
        if found := re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay", ""))):
            return float(found[1])
    return None
