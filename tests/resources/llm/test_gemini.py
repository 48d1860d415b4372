"""The Gemini provider, with the real client library against the loopback server."""

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

KEY = "a-key-of-the-tests-0123456789"


def _request(*messages: tuple[Any, str], model: str = "gemini-test", **sampling: Any) -> LLMRequest:
    asked = tuple(ChatMessage(role, content) for role, content in messages or (("user", "hello"),))
    return LLMRequest("role", model, asked, Sampling(**sampling), "an example")


def _with(server: Any, work: Callable[[GeminiProvider], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    async def main() -> Any:
        provider = GeminiProvider(KEY, base_url=server.url, timeout_s=timeout_s)
        try:
            return await work(provider)
        finally:
            await provider.close()

    return asyncio.run(main())


def _answer(server: Any, request: LLMRequest | None = None) -> LLMResponse:
    response: LLMResponse = _with(server, lambda provider: provider.complete(request or _request()))
    return response


def _error(server: Any, request: LLMRequest | None = None, timeout_s: float = 10.0) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        _with(server, lambda provider: provider.complete(request or _request()), timeout_s)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert len(str(caught.value)) <= 500
    return caught.value


def _raw(loopback: Any, body: Any, status: int = 200, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return loopback.always("raw", status=status, body=content, headers=headers)


def _candidate(finish: str | None, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": finish}]}


def test_an_answer(loopback: Any) -> None:
    messages = [
        ("system", "be brief"),
        ("user", "tab\tand\nline"),
        ("assistant", "ü “quoted” 漢字 🎲"),
        ("user", "?"),
    ]
    with loopback.Loopback() as server:
        response = _answer(server, _request(*messages))
    assert response.text == loopback.answer_to(messages)  # without the thought in front of it
    assert (response.model, response.finish_reason) == ("gemini-test", "stop")
    assert response.prompt_tokens == sum(len(content.split()) for _, content in messages)
    assert response.output_tokens == 2 + 3  # of the answer and of the thought
    assert response.latency_s > 0


def test_what_is_asked_arrives(loopback: Any) -> None:
    request = _request(
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
    with loopback.Loopback() as server:
        _answer(server, request)
    [call] = server.calls
    assert call.request.body["systemInstruction"]["parts"] == [{"text": "one\n\ntwo"}]
    assert [(c["role"], c["parts"]) for c in call.request.body["contents"]] == [
        ("user", [{"text": "a"}]),
        ("model", [{"text": ""}]),
        ("user", [{"text": "b"}]),
    ]
    assert call.request.body["generationConfig"] == {
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
    assert call.request.body["tools"] == [{"googleSearch": {}}]
    assert call.request.key == KEY


def test_what_is_not_asked_is_not_sent(loopback: Any) -> None:
    with loopback.Loopback() as server:
        _answer(server)
    [call] = server.calls
    assert set(call.request.body) == {"contents", "generationConfig"}
    assert call.request.body["generationConfig"] == {"temperature": 0.0, "maxOutputTokens": 256}


@pytest.mark.parametrize(("timeout_s", "sent"), [(9.0, None), (30.5, "31")])
def test_the_deadline_is_told_unless_the_server_would_refuse_it(
    loopback: Any, timeout_s: float, sent: str | None
) -> None:
    with loopback.Loopback() as server:
        _with(server, lambda provider: provider.complete(_request()), timeout_s)
    assert server.calls[0].request.headers.get("x-server-timeout") == sent


def test_the_environment_changes_nothing(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GOOGLE_API_KEY": "another-key-0123456789",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_API_VERSION": "v9",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    with loopback.Loopback() as server:
        _answer(server)
    assert (server.calls[0].request.key, server.calls[0].request.path) == (
        KEY,
        "/v1beta/models/gemini-test:generateContent",
    )


@pytest.mark.parametrize(
    ("kind", "expected", "retryable", "tokens"),
    [
        ("500", "unavailable", True, (0, 0)),
        ("503", "unavailable", True, (0, 0)),
        ("reset", "unavailable", True, (0, 0)),
        ("malformed", "unavailable", True, (0, 0)),
        ("html", "unavailable", True, (0, 0)),
        ("blocked-prompt", "blocked", False, (1, 0)),
        ("safety", "blocked", False, (1, 5)),
        ("empty", "empty", True, (1, 5)),
        ("truncated", "truncated", False, (1, 5)),
        ("no-finish-reason", "rejected", False, (1, 5)),
        ("400", "rejected", False, (0, 0)),
        ("401", "rejected", False, (0, 0)),
        ("invalid-key", "rejected", False, (0, 0)),
        ("429", "rate_limited", True, (0, 0)),
        ("daily-quota", "rate_limited", False, (0, 0)),
    ],
)
def test_every_fault_is_one_request_and_one_failure(
    loopback: Any, kind: str, expected: str, retryable: bool, tokens: tuple[int, int]
) -> None:
    with loopback.Loopback(loopback.always(kind)) as server:
        error = _error(server)
    assert (error.kind, error.retryable) == (expected, retryable)
    assert (error.prompt_tokens, error.output_tokens) == tokens
    assert error.bad_key == (kind in ("401", "invalid-key", "daily-quota"))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("400", "400 INVALID_ARGUMENT: Request contains an invalid argument."),
        ("401", "Incorrect API key provided: [key]. You can"),
        ("invalid-key", "API key not valid: [key]. Please"),
        ("daily-quota", "the daily quota is used up"),
        ("blocked-prompt", "PROHIBITED_CONTENT"),
        ("safety", "SAFETY"),
        ("truncated", "MAX_TOKENS"),
        ("no-finish-reason", "no finish reason"),
        ("html", "Bad gateway"),
        ("reset", "ReadError"),
    ],
)
def test_failures_say_what_the_provider_says(loopback: Any, kind: str, said: str) -> None:
    with loopback.Loopback(loopback.always(kind)) as server:
        assert said in str(_error(server))


@pytest.mark.parametrize("kind", ["hang", "slow-drip"])
def test_no_whole_answer_in_time(loopback: Any, kind: str) -> None:
    # A slow drip never keeps a read waiting for long: only a limit on the whole ends it.
    with loopback.Loopback(loopback.always(kind, drip_s=3.0)) as server:
        error = _error(server, timeout_s=0.4)
    assert (error.kind, error.retryable, len(server.calls)) == ("timeout", True, 1)
    assert "within 0.4 s" in str(error)


def test_a_slow_drip_in_time_is_an_answer(loopback: Any) -> None:
    with loopback.Loopback(loopback.always("slow-drip", drip_s=0.2)) as server:
        assert _answer(server).text == loopback.answer_to([("user", "hello")])


def test_no_server_at_all(loopback: Any) -> None:
    with loopback.Loopback() as server:
        pass
    error = _error(server)
    assert (error.kind, error.retryable) == ("unavailable", True)
    assert "ConnectError" in str(error)


@pytest.mark.parametrize("kind", ["429", "503"])
@pytest.mark.parametrize(
    ("hint", "low", "high"),
    [("seconds", 7.5, 7.5), ("date", 6.0, 8.0), ("ms", 7.5, 7.5), ("retry-info", 7.5, 7.5), ("none", None, None)],
)
def test_when_to_ask_again(loopback: Any, kind: str, hint: str, low: float | None, high: float | None) -> None:
    with loopback.Loopback(loopback.always(kind, hint=hint, retry_after_s=7.5)) as server:
        wait = _error(server).retry_after_s
    assert wait is None if low is None or high is None else wait is not None and low <= wait <= high


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "inf", "", "Wed, 99 Foo 2020 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_none(loopback: Any, value: str) -> None:
    headers = {"Retry-After": value}
    with loopback.Loopback(loopback.always("raw", status=429, body=b"{}", headers=headers)) as server:
        error = _error(server)
    assert (error.kind, error.retryable, error.retry_after_s) == ("rate_limited", True, None)


def test_dates_are_counted_from_the_servers_clock(loopback: Any) -> None:
    headers = {"Date": "Mon, 06 Jan 2020 10:00:00 GMT", "Retry-After": "Mon, 06 Jan 2020 10:00:09 GMT"}
    with loopback.Loopback(loopback.always("raw", status=429, body=b"{}", headers=headers)) as server:
        assert _error(server).retry_after_s == 9.0


def test_the_daily_quota_is_found_beside_others_and_in_a_list(loopback: Any) -> None:
    quotas = [{"quotaId": "GenerateRequestsPerMinutePerProject"}, {"quotaId": "GenerateRequestsPerDayPerProject"}]
    error = {"code": 429, "message": "no more", "details": [{"violations": quotas}, {"retryDelay": "17s"}]}
    for body in ({"error": error}, [{"error": error}]):
        with loopback.Loopback(_raw(loopback, body, 429)) as server:
            failure = _error(server)
        assert (failure.kind, failure.retryable, failure.retry_after_s) == ("rate_limited", False, None)


@pytest.mark.parametrize(
    ("status", "expected", "retryable", "bad_key"),
    [
        (204, "unavailable", True, False),
        (302, "rejected", False, False),
        (403, "rejected", False, True),
        (404, "rejected", False, False),
        (408, "unavailable", True, False),
        (409, "unavailable", True, False),
        (422, "rejected", False, False),
        (502, "unavailable", True, False),
        (504, "unavailable", True, False),
        (529, "unavailable", True, False),
    ],
)
def test_statuses_count_whatever_the_body(
    loopback: Any, status: int, expected: str, retryable: bool, bad_key: bool
) -> None:
    bodies = [b""] if status == 204 else [b"", b"<html>no</html>", b"[1, 2]", b"null", b'{"error": "no"}']
    headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
    answers = [loopback.Behaviour("raw", status=status, body=body, headers=headers) for body in bodies]

    async def work(provider: GeminiProvider) -> None:
        for _ in bodies:
            with pytest.raises(ProviderError, match=str(status)) as caught:
                await provider.complete(_request())
            error = caught.value
            assert (error.kind, error.retryable, error.bad_key) == (expected, retryable, bad_key)

    with loopback.Loopback(loopback.first(*answers)) as server:
        _with(server, work)
    assert len(server.calls) == len(bodies)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'"text"', b"null", b'{"candidates": 5}', b'{"candidates": ["text"]}', b"\xff\xfe\x00", b'{"a": 1'],
)
def test_a_body_of_another_kind_is_no_answer(loopback: Any, body: bytes) -> None:
    with loopback.Loopback(_raw(loopback, body)) as server:
        error = _error(server)
    assert (error.kind, error.retryable, len(server.calls)) == ("unavailable", True, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "empty"),
        ({"candidates": []}, "empty"),
        (_candidate("STOP"), "empty"),
        (_candidate("STOP", {"text": ""}), "empty"),
        (_candidate("STOP", {"text": " \n"}), "empty"),
        (_candidate("STOP", {"text": "only a thought", "thought": True}), "empty"),
        (_candidate("STOP", {"functionCall": {"name": "f"}}), "empty"),
        (_candidate("MAX_TOKENS"), "truncated"),
        (_candidate("CONTINUATION", {"text": "half"}), "truncated"),
        (_candidate("RECITATION", {"text": "half"}), "blocked"),
        (_candidate("SPII"), "blocked"),
        (_candidate("OTHER", {"text": "half"}), "rejected"),
        (_candidate("FINISH_REASON_UNSPECIFIED", {"text": "half"}), "rejected"),
        (_candidate("A_NEW_REASON", {"text": "half"}), "rejected"),
        (_candidate("MALFORMED_FUNCTION_CALL"), "rejected"),
    ],
)
def test_only_a_whole_answer_with_text_is_one(loopback: Any, body: dict[str, Any], expected: str) -> None:
    with loopback.Loopback(_raw(loopback, body)) as server:
        error = _error(server)
    assert (error.kind, len(server.calls)) == (expected, 1)
    if expected in ("rejected", "blocked"):
        assert body["candidates"][0]["finishReason"] in str(error)


def test_a_continuation_is_not_followed(loopback: Any) -> None:
    body = _candidate("CONTINUATION", {"text": "half"})
    body["candidates"][0]["continuationToken"] = "dG9rZW4="
    with loopback.Loopback(_raw(loopback, body)) as server:
        assert _error(server).kind == "truncated"
    assert len(server.calls) == 1


def test_an_answer_may_lack_counts_and_have_more_fields(loopback: Any) -> None:
    body = _candidate("STOP", {"text": "a", "new": 1}, {"thought": True, "text": "-"}, {"text": "b"}) | {"new": {}}
    with loopback.Loopback(_raw(loopback, body | {"modelVersion": "gemini-test-007"})) as server:
        response = _answer(server)
    assert (response.text, response.model) == ("ab", "gemini-test-007")
    assert (response.prompt_tokens, response.output_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (_request(extra={"no_such_field": 1}), "no_such_field"),
        (_request(extra={"thinkingConfig": {"no_such": 1}}), "thinking_config.no_such"),
        (_request(extra={"temperature": 1.0}), "Sampling.temperature"),
        (_request(extra={"maxOutputTokens": 1}), "max_output_tokens"),
        (_request(extra={"httpOptions": {"base_url": "http://127.0.0.1:1"}}), "http_options"),
        (_request(extra={"automatic_continuation": True}), "automatic_continuation"),
        (_request(extra={"audio_timestamp": True}), "audio_timestamp"),
        (_request(("system", "alone")), "contents"),
        (_request(model=""), "model"),
        (_request(model="a?b"), "model"),
    ],
)
def test_what_cannot_be_asked_is_rejected_unsent(loopback: Any, request_: LLMRequest, named: str) -> None:
    with loopback.Loopback() as server:
        error = _error(server, request_)
    assert (error.kind, error.retryable, server.calls) == ("rejected", False, [])
    assert named in str(error)


def test_a_key_that_no_header_takes_is_rejected(loopback: Any) -> None:
    with loopback.Loopback() as server:

        async def main(key: str) -> ProviderError:
            with pytest.raises(ProviderError) as caught:
                await GeminiProvider(key, base_url=server.url).complete(_request())
            return caught.value

        for key in ("with-a-line\nbreak-in-it", "not-ascii-ü-0123456789"):
            error = asyncio.run(main(key))
            assert (error.kind, error.retryable) == ("rejected", False)
            assert key not in "".join(traceback.format_exception(error))
    assert server.calls == []


def test_messages_are_short_and_on_one_line(loopback: Any) -> None:
    with loopback.Loopback(loopback.always("400", message=f"lines\nand “quotes” {KEY} {'x' * 2000}")) as server:
        text = str(_error(server))
    assert len(text) == 500
    assert "lines and “quotes” [key] xxx" in text


def test_many_at_a_time_get_each_their_own(loopback: Any) -> None:
    requests = [_request(("user", f"question {i}")) for i in range(32)]

    async def work(provider: GeminiProvider) -> list[LLMResponse]:
        return list(await asyncio.gather(*(provider.complete(r) for r in requests)))

    with loopback.Loopback(loopback.always(latency_s=0.2)) as server:
        responses = _with(server, work)
    assert [r.text for r in responses] == [loopback.answer_to([("user", f"question {i}")]) for i in range(32)]
    assert server.max_concurrency == 32


def test_a_cancelled_call_ends_and_its_provider_goes_on(loopback: Any) -> None:
    async def work(provider: GeminiProvider) -> str:
        task = asyncio.create_task(provider.complete(_request()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await provider.complete(_request())).text

    with loopback.Loopback(loopback.first("hang")) as server:
        assert _with(server, work) == loopback.answer_to([("user", "hello")])


def test_a_closed_provider_opens_again_in_another_loop(loopback: Any) -> None:
    with loopback.Loopback() as server:
        provider = GeminiProvider(KEY, base_url=server.url + "/")

        async def once() -> str:
            try:
                return (await provider.complete(_request())).text
            finally:
                await provider.close()

        assert asyncio.run(once()) == asyncio.run(once())
        assert provider.base_url == server.url
        assert provider.name == "gemini"
        assert provider.fingerprint(_request()) is None


def test_a_base_url_with_a_key_is_refused() -> None:
    with pytest.raises(ActError):
        GeminiProvider(KEY, base_url=f"https://host/?key={KEY}")
