"""What both providers hold to, with their real client libraries against the loopback server; beside it what is
special of each."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resources.errors import ActError
from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.gemini import GeminiProvider
from resources.llm.http_errors import HttpProvider
from resources.llm.openai_chat import OpenAIProvider

pytestmark = pytest.mark.integration

KEY = "a-key-of-the-tests-0123456789"
PROVIDERS: dict[str, type[HttpProvider]] = {"gemini": GeminiProvider, "openai": OpenAIProvider}


def asked(*messages: tuple[Any, str], model: str = "a-model", **sampling: Any) -> LLMRequest:
    given = tuple(ChatMessage(role, content) for role, content in messages or (("user", "hello"),))
    return LLMRequest("role", model, given, Sampling(**sampling), "an example")


class Client:
    """One of the providers, and the server that it asks."""

    def __init__(self, name: str, loopback: Any) -> None:
        self.name, self.loopback = name, loopback

    def made(self, server: Any, key: str = KEY, timeout_s: float = 10.0) -> Any:
        url = server.url if self.name == "gemini" else f"{server.url}/v1"
        return PROVIDERS[self.name](key, base_url=url + "/", timeout_s=timeout_s)

    def do(self, server: Any, work: Callable[[Any], Awaitable[Any]], key: str = KEY, timeout_s: float = 10.0) -> Any:
        async def main() -> Any:
            provider = self.made(server, key, timeout_s)
            try:
                return await work(provider)
            finally:
                await provider.close()

        return asyncio.run(main())

    def answer(self, server: Any, request: LLMRequest | None = None, **made: Any) -> LLMResponse:
        response: LLMResponse = self.do(server, lambda provider: provider.complete(request or asked()), **made)
        return response

    def error(self, plan: Any, request: LLMRequest | None = None, key: str = KEY, timeout_s: float = 10.0) -> Any:
        """How the provider fails with a server of a plan, or of one that answers what it is told; and its calls."""
        if isinstance(plan, str):
            plan = self.loopback.always(plan)
        with self.loopback.Loopback(plan) as server, pytest.raises(ProviderError) as caught:
            self.answer(server, request, key=key, timeout_s=timeout_s)
        assert key not in "".join(traceback.format_exception(caught.value)) and len(str(caught.value)) <= 500
        return caught.value, server.calls

    def raw(self, body: Any, status: int = 200, **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.loopback.always("raw", status=status, body=content, headers=headers)


@pytest.fixture(params=PROVIDERS)
def client(request: pytest.FixtureRequest, loopback: Any) -> Client:
    return Client(request.param, loopback)


@pytest.fixture
def gemini(loopback: Any) -> Client:
    return Client("gemini", loopback)


@pytest.fixture
def openai(loopback: Any) -> Client:
    return Client("openai", loopback)


def test_an_answer(client: Client) -> None:
    messages = [
        ("system", "be brief"),
        ("user", "tab\tand\nline"),
        ("assistant", "ü “quoted” 漢字 🎲"),
        ("user", "?"),
    ]
    with client.loopback.Loopback() as server:
        response = client.answer(server, asked(*messages))
    assert response.text == client.loopback.answer_to(messages)  # of Gemini without the thought in front of it
    assert (response.model, response.finish_reason) == ("a-model", "stop")
    assert response.prompt_tokens == sum(len(content.split()) for _, content in messages)
    assert response.output_tokens == (2 + 3 if client.name == "gemini" else 2)  # of a thought, too
    assert response.latency_s > 0 and server.calls[0].request.key == KEY


@pytest.mark.parametrize(
    ("kind", "expected", "retryable", "counted", "said"),
    [
        ("500", "unavailable", True, False, "500"),
        ("503", "overloaded", True, False, "503"),
        ("reset", "unavailable", True, False, "ReadError"),
        ("malformed", "malformed", True, False, "not of its protocol"),
        ("html", "malformed", True, False, "Bad gateway"),
        ("blocked-prompt", "blocked", False, True, ""),
        ("safety", "blocked", False, True, ""),
        ("empty", "empty", True, True, ""),
        ("truncated", "truncated", False, True, ""),
        ("no-finish-reason", "rejected", False, True, "no finish reason"),
        ("400", "rejected", False, False, "Request contains an invalid argument."),
        ("401", "rejected", False, False, "Incorrect API key provided: [key]. You can"),
        ("invalid-key", "rejected", False, False, "API key not valid: [key]. Please"),
        ("429", "rate_limited", True, False, "429"),
        ("daily-quota", "rate_limited", False, False, "the daily quota is used up"),
        ("insufficient-quota", "rate_limited", False, False, "exceeded your current quota"),
    ],
)
def test_every_fault_is_one_request_and_one_failure_that_says_what_the_server_says(
    client: Client, kind: str, expected: str, retryable: bool, counted: bool, said: str
) -> None:
    if kind in ("daily-quota", "insufficient-quota") and (kind == "daily-quota") != (client.name == "gemini"):
        pytest.skip("of the other provider")
    error, calls = client.error(kind)
    assert (error.kind, error.retryable, len(calls)) == (expected, retryable, 1) and said in str(error)
    output = (0 if kind == "blocked-prompt" else 5) if client.name == "gemini" else 2
    assert (error.prompt_tokens, error.output_tokens) == ((1, output) if counted else (0, 0))
    bad = ("401", "daily-quota", "insufficient-quota", *(["invalid-key"] if client.name == "gemini" else []))
    assert error.bad_key == (kind in bad)


@pytest.mark.parametrize("kind", ["hang", "slow-drip"])
def test_no_whole_answer_in_time(client: Client, kind: str) -> None:
    # A slow drip never keeps a read waiting for long: only a limit on the whole ends it.
    error, calls = client.error(client.loopback.always(kind, drip_s=3.0), timeout_s=0.4)
    assert (error.kind, error.retryable, error.maybe_charged, len(calls)) == ("timeout", True, True, 1)


def test_a_slow_drip_in_time_is_an_answer(client: Client) -> None:
    with client.loopback.Loopback(client.loopback.always("slow-drip", drip_s=0.2)) as server:
        assert client.answer(server).text == client.loopback.answer_to([("user", "hello")])


def test_no_server_at_all(client: Client) -> None:
    with client.loopback.Loopback() as server:
        pass
    with pytest.raises(ProviderError, match="ConnectError") as caught:
        client.answer(server)
    assert (caught.value.kind, caught.value.retryable, caught.value.maybe_charged) == ("unavailable", True, False)


@pytest.mark.parametrize("kind", ["429", "503"])
@pytest.mark.parametrize("hint", ["seconds", "date", "ms", "retry-info", "none"])
def test_when_to_ask_again(client: Client, kind: str, hint: str) -> None:
    error, _ = client.error(client.loopback.always(kind, hint=hint, retry_after_s=7.5))
    if hint == "none" or (hint == "retry-info" and client.name == "openai"):
        assert error.retry_after_s is None
    else:
        assert 6.0 <= error.retry_after_s <= 8.0 if hint == "date" else error.retry_after_s == 7.5


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "inf", "", "Wed, 99 Foo 2020 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_none(openai: Client, value: str) -> None:
    error, _ = openai.error(openai.raw(b"{}", 429, **{"Retry-After": value}))
    assert (error.kind, error.retryable, error.retry_after_s) == ("rate_limited", True, None)


def test_dates_are_counted_from_the_servers_clock(openai: Client) -> None:
    headers = {"Date": "Mon, 06 Jan 2020 10:00:00 GMT", "Retry-After": "Mon, 06 Jan 2020 10:00:09 GMT"}
    assert openai.error(openai.raw(b"{}", 429, **headers))[0].retry_after_s == 9.0


@pytest.mark.parametrize(
    ("status", "expected", "retryable", "bad_key"),
    [
        (302, "rejected", False, False),
        (403, "rejected", False, True),
        (404, "rejected", False, False),
        (408, "unavailable", True, False),
        (409, "unavailable", True, False),
        (422, "rejected", False, False),
        (502, "unavailable", True, False),
        (503, "overloaded", True, False),
        (529, "overloaded", True, False),
    ],
)
def test_statuses_count_whatever_the_body(
    client: Client, status: int, expected: str, retryable: bool, bad_key: bool
) -> None:
    bodies = [b"", b"<html>no</html>", b"[1, 2]", b"null", b'{"error": "no"}', b'{"message": "no"}']
    bodies += [b"\xff\x80"] if client.name == "openai" else []
    headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
    answers = [client.loopback.Behaviour("raw", status=status, body=body, headers=headers) for body in bodies]

    async def work(provider: Any) -> None:
        for _ in bodies:
            with pytest.raises(ProviderError, match=str(status)) as caught:
                await provider.complete(asked())
            error = caught.value
            assert (error.kind, error.retryable, error.bad_key) == (expected, retryable, bad_key)

    with client.loopback.Loopback(client.loopback.first(*answers)) as server:
        client.do(server, work)
    assert len(server.calls) == len(bodies)


NO_ANSWERS = (b"", b"[]", b'"text"', b"null", b"\xff\xfe\x00", b'{"a": 1')
OF_GEMINI = (b'{"candidates": 5}', b'{"candidates": ["text"]}')
OF_OPENAI = (
    b"{}",
    b'{"error": {"message": "upstream failed", "code": 502}}',
    b'{"choices": 5}',
    b'{"choices": ["text"]}',
    b'{"choices": [{"message": "text", "finish_reason": "stop"}]}',
    b'data: {"choices": []}\n\n',
)


@pytest.mark.parametrize(
    ("name", "body"),
    [*(("gemini", b) for b in (*NO_ANSWERS, *OF_GEMINI)), *(("openai", b) for b in (*NO_ANSWERS, *OF_OPENAI))],
)
def test_a_body_of_another_kind_is_no_answer(loopback: Any, name: str, body: bytes) -> None:
    client = Client(name, loopback)
    types = ["application/json", *(["text/html; charset=utf-8"] if name == "openai" else [])]
    for content_type in types:
        error, calls = client.error(client.raw(body, **{"Content-Type": content_type}))
        assert (error.kind, error.retryable, error.maybe_charged, len(calls)) == ("malformed", True, True, 1)


def candidate(finish: str | None, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": finish, **more}]}


def choice(finish: str | None, content: str | None = "text", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("name", "body", "expected", "said"),
    [
        ("gemini", {}, "empty", ""),
        ("gemini", {"candidates": []}, "empty", ""),
        ("gemini", candidate("STOP"), "empty", ""),
        ("gemini", candidate("STOP", {"text": " \n"}), "empty", ""),
        ("gemini", candidate("STOP", {"text": "only a thought", "thought": True}), "empty", ""),
        ("gemini", candidate("STOP", {"functionCall": {"name": "f"}}), "empty", ""),
        ("gemini", candidate("MAX_TOKENS"), "truncated", "MAX_TOKENS"),
        # and it is not followed
        ("gemini", candidate("CONTINUATION", {"text": "half"}, continuationToken="dG9rZW4="), "truncated", ""),
        ("gemini", candidate("RECITATION", {"text": "half"}, finishMessage="a song"), "blocked", "RECITATION: a song"),
        ("gemini", candidate("SPII"), "blocked", "SPII"),
        ("gemini", {"promptFeedback": {"blockReason": "OTHER"}}, "blocked", "OTHER"),
        ("gemini", candidate("A_NEW_REASON", {"text": "half"}), "rejected", "A_NEW_REASON"),
        ("openai", {"choices": []}, "empty", ""),
        ("openai", {"choices": None}, "empty", ""),
        ("openai", choice("stop", None), "empty", ""),
        ("openai", choice("stop", " \n"), "empty", ""),
        ("openai", choice("stop", None, reasoning_content="only thought"), "empty", ""),
        ("openai", {"choices": [{"finish_reason": "stop"}]}, "empty", ""),
        ("openai", choice("length", ""), "truncated", "length"),
        ("openai", choice("content_filter"), "blocked", "content_filter"),
        ("openai", choice("stop", None, refusal="I can't"), "blocked", "I can't"),
        ("openai", choice("tool_calls", None), "rejected", "tool_calls"),
        ("openai", choice(None), "rejected", "no finish reason"),
    ],
)
def test_only_a_whole_answer_with_text_is_one(loopback: Any, name: str, body: Any, expected: str, said: str) -> None:
    client = Client(name, loopback)
    error, calls = client.error(client.raw(body))
    assert (error.kind, error.retryable, len(calls)) == (expected, expected == "empty", 1) and said in str(error)


@pytest.mark.parametrize(
    ("name", "body", "text"),
    [
        ("gemini", candidate("STOP", {"text": "a"}, {"thought": True, "text": "-"}, {"text": "b", "new": 1}), "ab"),
        *(("openai", choice(finish, " text\n", new=1), " text\n") for finish in ("stop", "eos", "eos_token")),
    ],
)
def test_an_answer_may_lack_counts_and_have_more_fields(loopback: Any, name: str, body: Any, text: str) -> None:
    client = Client(name, loopback)
    named = body | {"new": {}, "modelVersion": "a-model-007", "model": "a-model-007"}
    with loopback.Loopback(client.raw(named)) as server:
        response = client.answer(server)
    assert (response.text, response.model, response.finish_reason) == (text, "a-model-007", "stop")
    assert (response.prompt_tokens, response.output_tokens) == (0, 0)


THOUGHT = "The user wants 2019."


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gemini", candidate("STOP", {"text": THOUGHT, "thought": True}, {"text": "text"})),
        ("gemini", candidate("STOP", {"text": f"<think>{THOUGHT}</think>text"})),
        ("openai", choice("stop", f"<think>\n{THOUGHT}\n</think>\n\ntext")),  # vLLM without a reasoning parser
        ("openai", choice("stop", f"{THOUGHT}</think>text")),
        ("openai", choice("stop", reasoning_content=THOUGHT)),  # DeepSeek
        ("openai", choice("stop", reasoning=THOUGHT)),  # vLLM
        (
            "openai",  # Mistral
            {
                "choices": [
                    {
                        "message": {
                            "content": [
                                {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
                                {"type": "text", "text": "text"},
                            ]
                        },
                        "finish_reason": "stop",
                    }
                ]
            },
        ),
    ],
)
def test_thoughts_stand_beside_the_answer(loopback: Any, name: str, body: Any) -> None:
    client = Client(name, loopback)
    with loopback.Loopback(client.raw(body)) as server:
        response = client.answer(server)
    assert (response.text, response.thoughts) == ("text", THOUGHT)


@pytest.mark.parametrize(
    ("name", "body"),
    [("gemini", candidate("STOP", {"text": "<think>on and on"})), ("openai", choice("stop", "<think>on and on"))],
)
def test_a_thought_that_never_ends_is_a_truncated_answer(loopback: Any, name: str, body: Any) -> None:
    client = Client(name, loopback)
    error, calls = client.error(client.raw(body))
    assert (error.kind, error.retryable, len(calls)) == ("truncated", False, 1) and "max_output_tokens" in str(error)


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        (
            "gemini",
            {
                "usageMetadata": {
                    "promptTokenCount": 100,
                    "cachedContentTokenCount": 64,
                    "candidatesTokenCount": 2,
                    "thoughtsTokenCount": 5,
                }
            },
        ),
        (
            "openai",
            {
                "usage": {
                    "prompt_tokens": 100,
                    "completion_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 64},
                    "completion_tokens_details": {"reasoning_tokens": 5},
                }
            },
        ),
        (
            "openai",  # DeepSeek
            {
                "usage": {
                    "prompt_tokens": 100,
                    "completion_tokens": 7,
                    "prompt_cache_hit_tokens": 64,
                    "completion_tokens_details": {"reasoning_tokens": 5},
                }
            },
        ),
    ],
)
def test_cached_and_thinking_tokens_are_counted_apart(loopback: Any, name: str, usage: Any) -> None:
    client = Client(name, loopback)
    body = (candidate("STOP", {"text": "text"}) if name == "gemini" else choice("stop")) | usage
    with loopback.Loopback(client.raw(body)) as server:
        response = client.answer(server)
    assert (response.prompt_tokens, response.cached_tokens) == (100, 64)
    assert (response.output_tokens, response.thinking_tokens) == (7, 5)


def test_a_refused_parameter_names_the_setting_of_the_profile(client: Client) -> None:
    said = "Unsupported value: 'temperature' does not support 0 with this model."
    error, calls = client.error(client.loopback.always("400", message=said))
    assert (error.kind, error.retryable, len(calls)) == ("rejected", False, 1) and "temperature: null" in str(error)


def test_a_prompt_that_azure_filters_is_blocked(openai: Client) -> None:
    body = {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}}
    assert openai.error(openai.raw(body, 400))[0].kind == "blocked"


def test_what_is_null_is_not_sent(client: Client) -> None:
    with client.loopback.Loopback() as server:
        client.answer(server, asked(temperature=None))
    body = server.calls[0].request.body
    assert "temperature" not in {**body, **body.get("generationConfig", {})}


@pytest.mark.parametrize(
    ("name", "request_", "named"),
    [
        ("gemini", asked(extra={"no_such_field": 1}), "no_such_field"),
        ("gemini", asked(extra={"thinkingConfig": {"no_such": 1}}), "thinking_config.no_such"),
        ("gemini", asked(extra={"thinkingConfig": {"thinkingLevel": "low", "thinking_budget": 1}}), "thinking_budget"),
        ("gemini", asked(extra={"temperature": 1.0}), "Sampling.temperature"),
        ("gemini", asked(extra={"maxOutputTokens": 1}), "max_output_tokens"),
        ("gemini", asked(extra={"httpOptions": {"base_url": "http://127.0.0.1:1"}}), "http_options"),
        ("gemini", asked(extra={"automatic_continuation": True}), "automatic_continuation"),
        ("gemini", asked(extra={"audio_timestamp": True}), "audio_timestamp"),
        ("gemini", asked(("system", "alone")), "contents"),
        ("gemini", asked(model=""), "model"),
        ("gemini", asked(model="a?b"), "model"),
        ("openai", asked(extra={"stream": True}), "stream"),
        ("openai", asked(extra={"temperature": 1.0}), "Sampling.temperature"),
        ("openai", asked(extra={"max_completion_tokens": 1}), "Sampling.max_output_tokens"),
        ("openai", asked(extra={"logit_bias": {1, 2}}), "set"),
        ("openai", asked(("user", "half of a pair \ud800")), "surrogates"),
    ],
)
def test_what_cannot_be_asked_is_rejected_unsent(loopback: Any, name: str, request_: LLMRequest, named: str) -> None:
    error, calls = Client(name, loopback).error("ok", request_)
    assert (error.kind, error.retryable, error.maybe_charged, calls) == ("rejected", False, False, [])
    assert named in str(error)


@pytest.mark.parametrize("key", ["with-a-line\nbreak-in-it", "not-ascii-ü-0123456789"])
def test_a_key_that_no_header_takes_is_rejected(client: Client, key: str) -> None:
    error, calls = client.error("ok", key=key)
    assert (error.kind, error.retryable, calls) == ("rejected", False, [])


def test_messages_are_short_and_on_one_line(client: Client) -> None:
    error, _ = client.error(client.loopback.always("400", message=f"lines\nand “quotes” {KEY} {'x' * 2000}"))
    assert len(str(error)) == 500 and "lines and “quotes” [key] xxx" in str(error)


def test_many_at_a_time_get_each_their_own(client: Client) -> None:
    async def work(provider: Any) -> list[str]:
        requests = [asked(("user", f"question {i}")) for i in range(32)]
        return [r.text for r in await asyncio.gather(*(provider.complete(r) for r in requests))]

    with client.loopback.Loopback(client.loopback.always(latency_s=0.2)) as server:
        answers = client.do(server, work)
    assert answers == [client.loopback.answer_to([("user", f"question {i}")]) for i in range(32)]
    assert server.max_concurrency == 32


def test_a_cancelled_call_ends_and_its_provider_is_still_of_use(client: Client) -> None:
    async def work(provider: Any) -> str:
        task = asyncio.create_task(provider.complete(asked()))
        while not server.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return str((await provider.complete(asked())).text)

    with client.loopback.Loopback(client.loopback.first("hang")) as server:
        assert client.do(server, work) == client.loopback.answer_to([("user", "hello")])


def test_a_closed_provider_opens_again_in_another_loop(client: Client) -> None:
    with client.loopback.Loopback() as server:
        provider = client.made(server)

        async def once() -> str:
            try:
                return str((await provider.complete(asked())).text)
            finally:
                await provider.close()

        assert asyncio.run(once()) == asyncio.run(once())
        assert provider.base_url == server.url + ("" if client.name == "gemini" else "/v1")
        assert provider.name == client.name and provider.fingerprint(asked()) is None


@pytest.mark.parametrize("url", [f"https://host/?key={KEY}", f"https://{KEY}@host/v1"])
def test_a_base_url_with_a_key_is_refused(client: Client, url: str) -> None:
    with pytest.raises(ActError):
        PROVIDERS[client.name](KEY, base_url=url)


# --- Gemini ------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_gemini_arrives(gemini: Client) -> None:
    request = asked(
        ("system", "one"),
        ("user", "a"),
        ("system", "two"),
        ("assistant", ""),
        ("user", "b"),
        temperature=0.0,
        max_output_tokens=7,
        top_p=0.5,
        seed=0,
        stop=("\n\n", "END"),
        extra={
            "thinking_config": {"thinking_budget": 0},
            "topK": 3,
            "response_mime_type": "application/json",
            "response_json_schema": {"type": "object"},
            "tools": [{"google_search": {}}],
        },
    )
    with gemini.loopback.Loopback() as server:
        gemini.answer(server, request)
        gemini.answer(server)
    body, least = (call.request.body for call in server.calls)
    assert body["systemInstruction"]["parts"] == [{"text": "one\n\ntwo"}]
    assert [(c["role"], c["parts"]) for c in body["contents"]] == [
        ("user", [{"text": "a"}]),
        ("model", [{"text": ""}]),
        ("user", [{"text": "b"}]),
    ]
    assert body["generationConfig"] == {
        "temperature": 0.0,
        "maxOutputTokens": 7,
        "topP": 0.5,
        "seed": 0,
        "stopSequences": ["\n\n", "END"],
        "thinkingConfig": {"thinking_budget": 0},  # the library's spelling; the API takes both
        "topK": 3,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
    }
    assert body["tools"] == [{"googleSearch": {}}]
    assert set(least) == {"contents", "generationConfig"}, "what is not asked is not sent"
    assert least["generationConfig"] == {"temperature": 0.0, "maxOutputTokens": 256}


@pytest.mark.parametrize(("timeout_s", "sent"), [(9.0, None), (30.5, "31")])
def test_the_deadline_is_told_unless_gemini_would_refuse_it(gemini: Client, timeout_s: float, sent: str | None) -> None:
    with gemini.loopback.Loopback() as server:
        gemini.answer(server, timeout_s=timeout_s)
    assert server.calls[0].request.headers.get("x-server-timeout") == sent


def test_the_environment_changes_nothing(gemini: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GOOGLE_API_KEY": "another-key-0123456789",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_API_VERSION": "v9",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    with gemini.loopback.Loopback() as server:
        gemini.answer(server)
    asked_for = server.calls[0].request
    assert (asked_for.key, asked_for.path) == (KEY, "/v1beta/models/a-model:generateContent")


def test_the_daily_quota_is_found_beside_others_and_in_a_list(gemini: Client) -> None:
    quotas = [{"quotaId": "GenerateRequestsPerMinutePerProject"}, {"quotaId": "GenerateRequestsPerDayPerProject"}]
    error = {"code": 429, "message": "no more", "details": [{"violations": quotas}, {"retryDelay": "17s"}]}
    for body in ({"error": error}, [{"error": error}]):
        failure, _ = gemini.error(gemini.raw(body, 429))
        assert (failure.kind, failure.retryable, failure.retry_after_s) == ("rate_limited", False, None)


# --- OpenAI ------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_openai_arrives(openai: Client) -> None:
    messages = [("system", "one"), ("user", "a"), ("system", "two"), ("assistant", "")]
    extra = {"top_k": 3, "response_format": {"type": "json_object"}, "chat_template_kwargs": {"thinking": None}}
    request = asked(
        *messages, temperature=0.0, max_output_tokens=7, top_p=0.5, seed=0, stop=("\n\n", "END"), extra=extra
    )
    with openai.loopback.Loopback() as server:
        openai.answer(server, request)
        openai.answer(server)
    assert server.calls[0].request.body == {
        "model": "a-model",
        "messages": [{"role": role, "content": content} for role, content in messages],
        "temperature": 0.0,
        "max_tokens": 7,
        "top_p": 0.5,
        "seed": 0,
        "stop": ["\n\n", "END"],
        **extra,
    }
    assert set(server.calls[1].request.body) == {"model", "messages", "temperature", "max_tokens"}


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1/", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://notapi.openai.com.example/v1", "max_tokens"),
        ("http://127.0.0.1:8000/v1", "max_tokens"),
    ],
)
def test_openai_itself_takes_another_name_for_the_limit(base_url: str, name: str) -> None:
    parameters = OpenAIProvider(KEY, base_url=base_url)._parameters(asked(max_output_tokens=9))
    assert {k: v for k, v in parameters.items() if k.startswith("max")} == {name: 9}
    chosen = OpenAIProvider(KEY, base_url=base_url, max_tokens_name="max_tokens")._parameters(
        asked(max_output_tokens=9)
    )
    assert chosen["max_tokens"] == 9


def test_a_server_without_keys_needs_none(openai: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-server-0123456789")
    with openai.loopback.Loopback() as server:
        assert openai.answer(server, key="").text == openai.loopback.answer_to([("user", "hello")])
    assert server.calls[0].request.key == "none"
