"""OpenAI's chat completions, over openai: the API of OpenAI, of vLLM's server and of many others.

The library does not check answers against its types, and servers differ in what they leave out; the
body is taken as it came and read by the records below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from resources.llm.base import FailureKind, LLMRequest, ProviderError
from resources.llm.http_errors import HttpProvider, Reply, rejected, retry_after_s, status_failure
from resources.llm.models import served_by_owner

if TYPE_CHECKING:
    import httpx2
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


class _Message(BaseModel):
    content: str | list[dict[str, Any]] | None = None  # parts: of Mistral's reasoning models, and of others
    refusal: str | None = None
    reasoning_content: Any = None  # DeepSeek's; older vLLM's
    reasoning: Any = None  # vLLM's, OpenRouter's

    def spoken(self) -> tuple[str, str]:
        """The answer, and the thoughts beside it."""
        beside = [t for t in (self.reasoning_content, self.reasoning) if isinstance(t, str)][:1]
        if not isinstance(self.content, list):
            return self.content or "", "".join(beside)
        answer = [part for part in self.content if part.get("type", "text") in ("text", "output_text")]
        thought = [part for part in self.content if part.get("type") in ("thinking", "reasoning")]
        return _text(answer), "\n\n".join(t for t in (*beside, _text(thought)) if t)


def _text(parts: Any) -> str:
    """The text of parts, which may hold parts themselves."""
    if isinstance(parts, list):
        return "".join(map(_text, parts))
    if isinstance(parts, Mapping):
        return "".join(_text(parts[name]) for name in ("text", "thinking", "reasoning") if name in parts)
    return parts if isinstance(parts, str) else ""


class _Choice(BaseModel):
    message: _Message | None = None
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's


class _Completion(BaseModel):
    choices: tuple[_Choice, ...] | None  # must be there: an error with status 200 has none
    usage: _Tokens | None = None
    model: str | None = None


class OpenAIProvider(HttpProvider):
    """Answers of a server with OpenAI's chat completions, with one key."""

    name, speaker = "openai", "the server"

    def __init__(
        self, api_key: str, *, base_url: str | None = None, timeout_s: float = 120.0, max_tokens_name: str | None = None
    ) -> None:
        super().__init__(api_key, base_url=base_url, timeout_s=timeout_s)
        # OpenAI's reasoning models refuse `max_tokens`; other servers know nothing else, vLLM's older ones among them.
        own = served_by_owner(self.name, self.base_url)
        self._max_tokens_name = max_tokens_name or ("max_completion_tokens" if own else "max_tokens")

    def _open(self, http: httpx2.AsyncClient) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._key or "none",  # the library insists on one; servers without keys ignore it
            base_url=self.base_url,
            timeout=None,  # see PooledClient
            max_retries=0,
            http_client=http,
        )

    def _parameters(self, request: LLMRequest) -> dict[str, Any]:
        sampling = request.sampling
        for name in sampling.extra:
            if name in _RESERVED:
                raise rejected(f"`extra` may not have {name!r}; use {_RESERVED[name]}")
        chosen = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
        }
        return {
            "model": request.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            self._max_tokens_name: sampling.max_output_tokens,
            **{name: value for name, value in chosen.items() if value is not None},
            "extra_body": dict(sampling.extra) or None,
        }

    async def _send(self, client: AsyncOpenAI, **parameters: Any) -> bytes:
        raw = await client.chat.completions.with_raw_response.create(**parameters)
        return bytes(raw.http_response.content)

    def _read(self, body: str | bytes) -> Reply:
        completion = _Completion.model_validate_json(body)
        used = completion.usage or _Tokens()
        output_tokens = used.completion_tokens or 0
        problem: tuple[FailureKind, str] | None = None
        choice = completion.choices[0] if completion.choices else _Choice()
        answer, reason = choice.message or _Message(), choice.finish_reason
        text, thoughts = answer.spoken()
        shared, spent = used.prompt_tokens_details or _Details(), used.completion_tokens_details or _Details()
        if not completion.choices:
            problem = "empty", "the server answered without a choice"
        elif answer.refusal:
            problem = "blocked", f"the model refused: {answer.refusal}"
        elif reason == "content_filter":
            problem = "blocked", "the server blocked the answer: content_filter"
        elif reason == "length":
            problem = "truncated", f"the answer is cut off: length, {output_tokens} output tokens"
        elif reason not in _WHOLE:
            problem = "rejected", f"the answer did not end in a regular way: {reason or 'no finish reason'}"
        return Reply(
            text,
            completion.model,
            used.prompt_tokens or 0,
            output_tokens,
            problem,
            thoughts,
            spent.reasoning_tokens or 0,
            shared.cached_tokens or used.prompt_cache_hit_tokens or 0,
        )

    def _refusal(self, error: Exception) -> ProviderError | None:
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIConnectionError) and isinstance(error.__cause__, Exception):
            return self._unsent_or_lost(error.__cause__)
        if not isinstance(error, APIStatusError):
            return None
        said = error.body.get("message") if isinstance(error.body, Mapping) else None
        text = f"{self.base_url} answered {error.status_code}: {said or error.response.text}"
        if error.code == "content_filter":  # as Azure refuses a prompt
            return ProviderError("blocked", self._message(text), retryable=False)
        return status_failure(
            error.status_code,
            self._message(text),
            retry_after=retry_after_s(error.response.headers),
            exhausted="insufficient_quota" in (error.code, error.type),
        )
