"""Gemini, over google-genai.

The client library would do more than one request per call in several ways; all of them are turned
off here. It returns the body as it came, which is read by the records below: they keep what is
used, and a finish reason that the library does not know yet is one like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel, to_snake

from resources.llm.base import FailureKind, LLMRequest, ProviderError
from resources.llm.http_errors import HttpProvider, Reply, rejected, retry_after_s, status_failure

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client

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

    def text(self, thought: bool = False) -> str:
        parts = self.content.parts if self.content else None
        return "".join(part.text or "" for part in parts or () if bool(part.thought) == thought)


class _Feedback(_Record):
    block_reason: str | None = None


class _Tokens(_Record):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None


class _Answer(_Record):
    candidates: tuple[_Candidate, ...] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Tokens | None = None
    model_version: str | None = None


class GeminiProvider(HttpProvider):
    """Answers of the Gemini API with one key."""

    name = speaker = "gemini"

    def _open(self, http: httpx2.AsyncClient) -> Client:
        from google.genai import Client
        from google.genai.types import HttpOptions, HttpRetryOptions

        deadline = {"X-Server-Timeout": str(math.ceil(self.timeout_s))}  # what nobody waits for costs nothing
        return Client(
            api_key=self._key,
            vertexai=False,  # otherwise the environment decides
            http_options=HttpOptions(
                base_url=self.base_url,
                api_version=API_VERSION,
                headers=deadline if self.timeout_s >= SHORTEST_DEADLINE_S else {},
                # With no options at all, the library retries in its own way where aiohttp is installed.
                retry_options=HttpRetryOptions(attempts=1),
                httpx_async_client=http,  # also settles the transport, which is another one where aiohttp is installed
            ),
        )

    def _parameters(self, request: LLMRequest) -> dict[str, Any]:
        from google.genai.types import AutomaticFunctionCallingConfig, GenerateContentConfig

        known = GenerateContentConfig.model_fields
        names = {field.alias: name for name, field in known.items()}
        extra = {names.get(name, name): value for name, value in request.sampling.extra.items()}
        for name in extra:
            if name not in known:
                raise rejected(f"`extra` has {name!r}, which is no field of GenerateContentConfig")
            if name in _RESERVED:
                raise rejected(f"`extra` may not have {name!r}; use {_RESERVED[name] or 'the defaults'}")
        thinking = {to_snake(name) for name in extra.get("thinking_config") or () if isinstance(name, str)}
        if {"thinking_level", "thinking_budget"} <= thinking:
            raise rejected("`extra` may not have both a thinking_level (Gemini 3 and later) and a thinking_budget")
        sampling = request.sampling
        system = [m.content for m in request.messages if m.role == "system"]
        roles = {"user": "user", "assistant": "model"}
        contents = [
            {"role": roles[m.role], "parts": [{"text": m.content}]} for m in request.messages if m.role != "system"
        ]
        try:
            config = GenerateContentConfig(
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
            raise rejected(self._message(f"not a GenerateContentConfig: {problems}")) from None
        return {"model": request.model, "contents": contents, "config": config}

    async def _send(self, client: Client, **parameters: Any) -> str:
        answer = await client.aio.models.generate_content(**parameters)
        return (answer.sdk_http_response.body if answer.sdk_http_response else None) or ""

    def _read(self, body: str | bytes) -> Reply:
        answer = _Answer.model_validate_json(body)
        used = answer.usage_metadata or _Tokens()
        output_tokens = (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)
        problem: tuple[FailureKind, str] | None = None
        candidate = answer.candidates[0] if answer.candidates else _Candidate()
        reason = candidate.finish_reason
        why = f"{reason}: {candidate.finish_message}" if candidate.finish_message else reason
        if answer.prompt_feedback and answer.prompt_feedback.block_reason:
            problem = "blocked", f"gemini blocked the prompt: {answer.prompt_feedback.block_reason}"
        elif not answer.candidates:
            problem = "empty", "gemini answered without a candidate"
        elif reason in _CUT_OFF:
            problem = "truncated", f"gemini's answer is cut off: {why}, {output_tokens} output tokens"
        elif reason in _FILTERED:
            problem = "blocked", f"gemini blocked the answer: {why}"
        elif reason != "STOP":
            problem = "rejected", f"gemini's answer did not end in a regular way: {why or 'no finish reason'}"
        return Reply(
            candidate.text(),
            answer.model_version,
            used.prompt_token_count or 0,
            output_tokens,
            problem,
            candidate.text(thought=True),
            used.thoughts_token_count or 0,
            used.cached_content_token_count or 0,
        )

    def _refusal(self, error: Exception) -> ProviderError | None:
        from google.genai.errors import APIError

        if not isinstance(error, APIError):
            return None
        # The typed details of an error: google.rpc.RetryInfo, QuotaFailure and ErrorInfo are read.
        body = error.details.get("error", error.details) if isinstance(error.details, Mapping) else None
        typed = body.get("details") if isinstance(body, Mapping) else None
        details = [d for d in typed if isinstance(d, Mapping)] if isinstance(typed, list) else []
        delays = (re.fullmatch(r"(\d+(?:\.\d+)?)s", str(d.get("retryDelay", ""))) for d in details)
        violations = [v for d in details for v in d.get("violations") or () if isinstance(v, Mapping)]
        daily = any("PerDay" in str(v.get("quotaId", "")) for v in violations)
        said = error.message if isinstance(error.message, str) and error.message else str(error.details)
        what = "the daily quota is used up: " if daily else ""
        wait = retry_after_s(getattr(error.response, "headers", None) or {})
        return status_failure(
            error.code,
            self._message(f"gemini answered {error.code} {error.status or ''}: {what}{said}"),
            retry_after=next((float(found[1]) for found in delays if found), None) if wait is None else wait,
            bad_key=any(d.get("reason") == "API_KEY_INVALID" for d in details),
            exhausted=daily,
        )
