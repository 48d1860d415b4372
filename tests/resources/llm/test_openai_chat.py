"""The provider of OpenAI's chat completions, with the real client library against the loopback server."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resources.errors import ActError
from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.openai_chat import OpenAIProvider

KEY = "a-key-of-the-tests-0123456789"


def _request(*messages: tuple[Any, str], model: str = "a/model", **sampling: Any) -> LLMRequest:
    asked = tuple(ChatMessage(role, content) for role, content in messages or (("user", "hello"),))
    return LLMRequest("role", model, asked, Sampling(**sampling), "an example")


def _with(server: Any, work: Callable[[OpenAIProvider], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    async def main() -> Any:
        provider = OpenAIProvider(KEY, base_url=f"{server.url}/v1", timeout_s=timeout_s)
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


def _choice(finish: str | None, content: str | None = "text", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


def test_an_answer(loopback: Any) -> None:
    messages = [
        ("system", "be brief"),
        ("user", "tab\tand\nline"),
        ("assistant", "ü “quoted” 漢字 🎲"),
        ("user", "?"),
    ]
    with loopback.Loopback() as server:
        response = _answer(server, _request(*messages))
    assert response.text == loopback.answer_to(messages)
    assert (response.model, response.finish_reason) == ("a/model", "stop")
    assert response.prompt_tokens == sum(len(content.split()) for _, content in messages)
    assert response.output_tokens == 2
    assert response.latency_s > 0


def test_what_is_asked_arrives(loopback: Any) -> None:
    request = _request(
        ("system", "one"),
        ("user", "a"),
        ("system", "two"),
        ("assistant", ""),
        temperature=0.0,
        max_output_tokens=7,
        top_p=0.5,
        seed=0,
        stop=("\n\n", "END"),
        extra={"top_k": 3, "response_format": {"type": "json_object"}, "chat_template_kwargs": {"thinking": None}},
    )
    with loopback.Loopback() as server:
        _answer(server, request)
    [call] = server.calls
    assert call.request.body == {
        "model": "a/model",
        "messages": [
            {"role": "system", "content": "one"},
            {"role": "user", "content": "a"},
            {"role": "system", "content": "two"},
            {"role": "assistant", "content": ""},
        ],
        "temperature": 0.0,
        "max_tokens": 7,
        "top_p": 0.5,
        "seed": 0,
        "stop": ["\n\n", "END"],
        "top_k": 3,
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"thinking": None},
    }
    assert call.request.key == KEY


def test_what_is_not_asked_is_not_sent(loopback: Any) -> None:
    with loopback.Loopback() as server:
        _answer(server)
    assert set(server.calls[0].request.body) == {"model", "messages", "temperature", "max_tokens"}


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1/", "max_completion_tokens"),
        ("https://notapi.openai.com.example/v1", "max_tokens"),
        ("http://127.0.0.1:8000/v1", "max_tokens"),
    ],
)
def test_openai_itself_takes_another_name_for_the_limit(base_url: str, name: str) -> None:
    parameters = OpenAIProvider(KEY, base_url=base_url)._parameters(_request(max_output_tokens=9))
    assert {k: v for k, v in parameters.items() if k.startswith("max")} == {name: 9}


@pytest.mark.parametrize(
    ("kind", "expected", "retryable", "tokens"),
    [
        ("500", "unavailable", True, (0, 0)),
        ("503", "unavailable", True, (0, 0)),
        ("reset", "unavailable", True, (0, 0)),
        ("malformed", "unavailable", True, (0, 0)),
        ("html", "unavailable", True, (0, 0)),
        ("blocked-prompt", "blocked", False, (1, 2)),
        ("safety", "blocked", False, (1, 2)),
        ("empty", "empty", True, (1, 2)),
        ("truncated", "truncated", False, (1, 2)),
        ("no-finish-reason", "rejected", False, (1, 2)),
        ("400", "rejected", False, (0, 0)),
        ("401", "rejected", False, (0, 0)),
        ("429", "rate_limited", True, (0, 0)),
        ("insufficient-quota", "rate_limited", False, (0, 0)),
    ],
)
def test_every_fault_is_one_request_and_one_failure(
    loopback: Any, kind: str, expected: str, retryable: bool, tokens: tuple[int, int]
) -> None:
    with loopback.Loopback(loopback.always(kind)) as server:
        error = _error(server)
    assert (error.kind, error.retryable) == (expected, retryable)
    assert (error.prompt_tokens, error.output_tokens) == tokens
    assert error.bad_key == (kind in ("401", "insufficient-quota"))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("400", "answered 400: Request contains an invalid argument."),
        ("401", "Incorrect API key provided: [key]. You can"),
        ("insufficient-quota", "exceeded your current quota"),
        ("blocked-prompt", "I can't help with that"),
        ("safety", "content_filter"),
        ("truncated", "length"),
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
    [("seconds", 7.5, 7.5), ("date", 6.0, 8.0), ("ms", 7.5, 7.5), ("none", None, None)],
)
def test_when_to_ask_again(loopback: Any, kind: str, hint: str, low: float | None, high: float | None) -> None:
    with loopback.Loopback(loopback.always(kind, hint=hint, retry_after_s=7.5)) as server:
        wait = _error(server).retry_after_s
    assert wait is None if low is None or high is None else wait is not None and low <= wait <= high


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
        (504, "unavailable", True, False),
        (529, "unavailable", True, False),
    ],
)
def test_statuses_count_whatever_the_body(
    loopback: Any, status: int, expected: str, retryable: bool, bad_key: bool
) -> None:
    bodies = [b"", b"<html>no</html>", b"[1, 2]", b"null", b'{"error": "no"}', b'{"message": "no"}', b"\xff\x80"]
    headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
    answers = [loopback.Behaviour("raw", status=status, body=body, headers=headers) for body in bodies]

    async def work(provider: OpenAIProvider) -> None:
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
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"error": {"message": "upstream failed", "code": 502}}',
        b'{"choices": 5}',
        b'{"choices": ["text"]}',
        b'{"choices": [{"message": "text", "finish_reason": "stop"}]}',
        b"\xff\xfe\x00",
        b'data: {"choices": []}\n\n',
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-8"])
def test_a_body_of_another_kind_is_no_answer(loopback: Any, body: bytes, content_type: str) -> None:
    with loopback.Loopback(_raw(loopback, body, **{"Content-Type": content_type})) as server:
        error = _error(server)
    assert (error.kind, error.retryable, len(server.calls)) == ("unavailable", True, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": []}, "empty"),
        ({"choices": None}, "empty"),
        (_choice("stop", None), "empty"),
        (_choice("stop", " \n"), "empty"),
        (_choice("stop", None, reasoning_content="only thought"), "empty"),
        ({"choices": [{"finish_reason": "stop"}]}, "empty"),
        (_choice("length", ""), "truncated"),
        (_choice("content_filter"), "blocked"),
        (_choice("stop", None, refusal="no"), "blocked"),
        (_choice("tool_calls", None), "rejected"),
        (_choice("function_call"), "rejected"),
        (_choice("abort"), "rejected"),
        (_choice(None), "rejected"),
    ],
)
def test_only_a_whole_answer_with_text_is_one(loopback: Any, body: dict[str, Any], expected: str) -> None:
    with loopback.Loopback(_raw(loopback, body)) as server:
        error = _error(server)
    assert (error.kind, len(server.calls)) == (expected, 1)
    if expected == "rejected":
        assert (body["choices"][0]["finish_reason"] or "no finish reason") in str(error)


@pytest.mark.parametrize("finish", ["stop", "eos", "eos_token", "stop_sequence"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_an_answer_may_lack_counts_and_have_more_fields(loopback: Any, finish: str, content_type: str) -> None:
    body = _choice(finish, " text\n", new=1) | {"new": {}, "model": "a/model-007"}
    with loopback.Loopback(_raw(loopback, body, **{"Content-Type": content_type})) as server:
        response = _answer(server)
    assert (response.text, response.model, response.finish_reason) == (" text\n", "a/model-007", "stop")
    assert (response.prompt_tokens, response.output_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (_request(extra={"stream": True}), "stream"),
        (_request(extra={"temperature": 1.0}), "Sampling.temperature"),
        (_request(extra={"max_completion_tokens": 1}), "Sampling.max_output_tokens"),
        (_request(extra={"logit_bias": {1, 2}}), "set"),
        (_request(("user", "half of a pair \ud800")), "surrogates"),
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
                await OpenAIProvider(key, base_url=server.url).complete(_request())
            return caught.value

        for key in ("with-a-line\nbreak-in-it", "not-ascii-ü-0123456789"):
            error = asyncio.run(main(key))
            assert (error.kind, error.retryable) == ("rejected", False)
            assert key not in "".join(traceback.format_exception(error))
    assert server.calls == []


def test_a_server_without_keys_needs_none(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-server-0123456789")
    with loopback.Loopback() as server:

        async def main() -> str:
            provider = OpenAIProvider("", base_url=f"{server.url}/v1")
            try:
                return (await provider.complete(_request())).text
            finally:
                await provider.close()

        assert asyncio.run(main()) == loopback.answer_to([("user", "hello")])
    assert server.calls[0].request.key == "none"


def test_messages_are_short_and_on_one_line(loopback: Any) -> None:
    with loopback.Loopback(loopback.always("400", message=f"lines\nand “quotes” {KEY} {'x' * 2000}")) as server:
        text = str(_error(server))
    assert len(text) == 500
    assert "lines and “quotes” [key] xxx" in text


def test_many_at_a_time_get_each_their_own(loopback: Any) -> None:
    requests = [_request(("user", f"question {i}")) for i in range(32)]

    async def work(provider: OpenAIProvider) -> list[LLMResponse]:
        return list(await asyncio.gather(*(provider.complete(r) for r in requests)))

    with loopback.Loopback(loopback.always(latency_s=0.2)) as server:
        responses = _with(server, work)
    assert [r.text for r in responses] == [loopback.answer_to([("user", f"question {i}")]) for i in range(32)]
    assert server.max_concurrency == 32


def test_a_cancelled_call_ends_and_its_provider_goes_on(loopback: Any) -> None:
    async def work(provider: OpenAIProvider) -> str:
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
        provider = OpenAIProvider(KEY, base_url=f"{server.url}/v1/")

        async def once() -> str:
            try:
                return (await provider.complete(_request())).text
            finally:
                await provider.close()

        assert asyncio.run(once()) == asyncio.run(once())
        assert provider.base_url == f"{server.url}/v1"
        assert provider.name == "openai"
        assert provider.fingerprint(_request()) is None


def test_a_base_url_with_a_key_is_refused() -> None:
    with pytest.raises(ActError):
        OpenAIProvider(KEY, base_url=f"https://{KEY}@host/v1")
