"""OpenAI's chat completions, over openai: the API of OpenAI, of vLLM's server and of many others.

The library does not check answers against its types, and servers differ in what they leave out; the body is taken as
it came and read by the records below.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from resources.llm import http_errors as wire
from resources.llm.base import FailureKind, LLMRequest, LLMResponse, ProviderError
from resources.llm.keys import clean_base_url
from resources.llm.prices import OPENAI_URL

if TYPE_CHECKING:
    from openai import AsyncOpenAI


_WHOLE = {"stop", "eos", "eos_token", "stop_sequence"}  # as some servers call it
# Parameters that `extra` may not set: they are said elsewhere in the request, or change the form of the answer.
_RESERVED = {
    "model": "LLMRequest.model",
    "messages": "LLMRequest.messages",
    "temperature": "Sampling.temperature",
    "max_tokens": "Sampling.max_output_tokens",
    "max_completion_tokens": "Sampling.max_output_tokens",
    "top_p": "Sampling.top_p",
    "seed": "Sampling.seed",
    "stop": "Sampling.stop",
    "stream": "the default",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Message(_Record):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Record):
    message: _Message | None = None
    finish_reason: str | None = None


class _Tokens(_Record):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(_Record):
    choices: tuple[_Choice, ...] | None  # must be there: an error with status 200 has none
    usage: _Tokens | None = None
    model: str | None = None


class OpenAIProvider:
    """Answers of a server with OpenAI's chat completions, with one key; one HTTP request per call."""

    name = "openai"

    def __init__(self, api_key: str, *, base_url: str = OPENAI_URL, timeout_s: float = 120.0) -> None:
        self.base_url = clean_base_url(base_url)
        self.timeout_s = timeout_s
        self._key = api_key
        self._client: AsyncOpenAI | None = None
        # OpenAI's reasoning models refuse `max_tokens`; other servers know nothing else, vLLM's older ones among them.
        own = urlsplit(self.base_url).hostname or ""
        self._limit = "max_completion_tokens" if f".{own}".endswith(".api.openai.com") else "max_tokens"

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer, from one attempt. Raises ProviderError for everything that is not a whole answer."""
        client = self._open()
        parameters = self._parameters(request)
        started = time.perf_counter()
        # Raised `from None` throughout: the library's exceptions quote the answer, which may quote the key.
        try:
            async with asyncio.timeout(self.timeout_s):
                raw = await client.chat.completions.with_raw_response.create(**parameters)
        except Exception as error:
            raise self._failure(error) from None
        try:
            read = _Completion.model_validate_json(raw.http_response.content)
        except ValidationError:
            raise wire.no_answer(self.base_url, raw.http_response.text, self._key) from None
        return self._response(read, request.model, time.perf_counter() - started)

    def fingerprint(self, request: LLMRequest) -> str | None:
        """None: an answer depends on nothing but the request's own fields."""
        return None

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        client, self._client = self._client, None
        if client:
            await client.close()

    def _open(self) -> AsyncOpenAI:
        # Not before the first call: the import takes its time, and the pool belongs to the running loop.
        if self._client is None:
            from openai import AsyncOpenAI

            from resources.llm.pool import PooledClient

            self._client = AsyncOpenAI(
                api_key=self._key or "none",  # the library insists on one; servers without keys ignore it
                base_url=self.base_url,
                timeout=None,  # see PooledClient
                max_retries=0,
                http_client=PooledClient(),
            )
        return self._client

    def _parameters(self, request: LLMRequest) -> dict[str, Any]:
        sampling = request.sampling
        for name in sampling.extra:
            if name in _RESERVED:
                raise ProviderError(
                    "rejected", f"`extra` may not have {name!r}; use {_RESERVED[name]}", retryable=False
                )
        chosen = {"top_p": sampling.top_p, "seed": sampling.seed, "stop": list(sampling.stop) or None}
        return {
            "model": request.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "temperature": sampling.temperature,
            self._limit: sampling.max_output_tokens,
            **{name: value for name, value in chosen.items() if value is not None},
            "extra_body": dict(sampling.extra) or None,
        }

    def _response(self, completion: _Completion, model: str, latency_s: float) -> LLMResponse:
        used = completion.usage or _Tokens()
        prompt_tokens, output_tokens = used.prompt_tokens or 0, used.completion_tokens or 0

        def useless(kind: FailureKind, text: str, *, retryable: bool = False) -> ProviderError:
            return ProviderError(
                kind,
                wire.message(text, self._key),
                retryable=retryable,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
            )

        if not completion.choices:
            raise useless("empty", "the server answered without a choice", retryable=True)
        choice = completion.choices[0]
        answer, reason = choice.message or _Message(), choice.finish_reason
        if answer.refusal:
            raise useless("blocked", f"the model refused: {answer.refusal}")
        if reason == "content_filter":
            raise useless("blocked", "the server blocked the answer: content_filter")
        if reason == "length":
            raise useless("truncated", f"the answer is cut off: length, {output_tokens} output tokens")
        if reason not in _WHOLE:
            raise useless("rejected", f"the answer did not end in a regular way: {reason or 'no finish reason'}")
        text = answer.content or ""
        if not text.strip():
            raise useless("empty", "the server answered without text", retryable=True)
        return LLMResponse(
            text=text,
            model=completion.model or model,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            latency_s=latency_s,
        )

    def _failure(self, error: Exception) -> ProviderError:
        from openai import APIConnectionError, APIStatusError

        if not isinstance(error, APIStatusError):
            cause = error.__cause__ if isinstance(error, APIConnectionError) else None
            lost = cause if isinstance(cause, Exception) else error
            return wire.unsent_or_lost(lost, self.base_url, self.timeout_s, self._key)
        said = error.body.get("message") if isinstance(error.body, Mapping) else None
        text = f"{self.base_url} answered {error.status_code}: {said or error.response.text}"
        return wire.status_failure(
            error.status_code,
            wire.message(text, self._key),
            retry_after=wire.retry_after_s(error.response.headers),
            exhausted="insufficient_quota" in (error.code, error.type),
        )
