"""A server of language models on 127.0.0.1, for tests and benchmarks: Gemini's generateContent and OpenAI's chat
completions, with faults as asked for.

    with Loopback(plan) as server:                      # in a thread of its own
        provider = GeminiProvider("some-key", base_url=server.url)
        ...
        assert [call.answered for call in server.calls] == ["429", "ok"]

    python tests/loopback.py --latency 0.3 --rate-429 0.1 --retry-after 1
    # prints {"port": 40123}; `GET /stats` says what came in; ends when its standard input closes

OpenAI's base URL is `{server.url}/v1`. An answer's text depends on the messages alone: `answer_to(messages)`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any, Literal, Self

KINDS = (
    "ok",
    "slow-drip",  # a whole answer, in pieces over `drip_s`
    "429",
    "daily-quota",  # a 429 that waiting does not cure; of Gemini
    "insufficient-quota",  # the same of OpenAI
    "500",
    "503",
    "hang",  # no answer at all
    "reset",  # the headers and half of the body, then RST
    "malformed",  # JSON cut in half
    "html",  # status 200, and a page of a proxy
    "blocked-prompt",
    "safety",  # the answer is filtered
    "empty",
    "truncated",
    "no-finish-reason",
    "400",
    "401",  # the message echoes the key
    "invalid-key",  # the same as Gemini says it: a 400
    "raw",  # `status`, `headers` and `body` as given
)
# How a 429 or 503 says when to ask again; `retry-info` is Gemini's, in the body.
HINTS = ("seconds", "date", "ms", "retry-info", "none")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the server does with one request."""

    kind: str = "ok"
    latency_s: float = 0.0
    retry_after_s: float = 1.0
    hint: str = "seconds"
    drip_s: float = 0.5
    message: str = ""  # of an error; "" for a usual one
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.hint not in HINTS:
            raise ValueError(f"no such behaviour: {self.kind}, {self.hint}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came; `arrived` by the monotonic clock, header names in lower case."""

    arrived: float
    protocol: Literal["gemini", "openai"]
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    key: str
    model: str
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A request and what it got. `early`: it came while the Retry-After of its key was running."""

    request: Request
    behaviour: Behaviour
    early: bool

    @property
    def answered(self) -> str:
        return self.behaviour.kind


Plan = Callable[[int, Request], Behaviour]


def always(kind: str = "ok", **options: Any) -> Plan:
    """The same behaviour for every request."""
    behaviour = Behaviour(kind, **options)
    return lambda number, request: behaviour


def first(*behaviours: Behaviour | str, then: Behaviour | str = "ok") -> Plan:
    """These behaviours in the order of arrival, then the other."""
    planned = [b if isinstance(b, Behaviour) else Behaviour(b) for b in (*behaviours, then)]
    return lambda number, request: planned[min(number, len(planned) - 1)]


def at_rates(rates: Mapping[str, float], seed: int = 0, base: Behaviour = Behaviour()) -> Plan:  # noqa: B008, RUF100
    """Each kind with its probability, `ok` for the rest. Which request gets which depends on its number alone."""

    def plan(number: int, request: Request) -> Behaviour:
        drawn = random.Random(f"{seed}:{number}").random()
        for kind, rate in rates.items():
            if drawn < rate:
                return replace(base, kind=kind)
            drawn -= rate
        return base

    return plan


def answer_to(messages: Sequence[tuple[str, str]]) -> str:
    """The text that these (role, content) messages get. System messages count as one, for Gemini joins them."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    canonical = [["system", system], *([role, content] for role, content in messages if role != "system")]
    return "answer " + hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:12]


class Loopback:
    """The server; a context manager that runs it in a thread, or `await serve()` in a loop of one's own."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or always()
        self.calls: list[Call] = []
        self.port = 0
        self.max_concurrency = 0
        self._in_flight = 0
        self._quiet_until: dict[str, float] = {}  # by key
        self._connections: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """What came in so far."""
        calls = list(self.calls)
        return {
            "requests": len(calls),
            "answers": dict(Counter(call.answered for call in calls)),
            "questions": len({call.request.messages for call in calls}),
            "early": sum(call.early for call in calls),
            "max_concurrency": self.max_concurrency,
        }

    # Running it

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="loopback", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failed:
            raise self._failed
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop and self._thread
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
            try:
                server = await self.serve()
            finally:
                ready.set()
            await self._stopped.wait()
            await self.close(server)

        try:
            asyncio.run(main())
        except BaseException as error:
            self._failed = error
            ready.set()

    async def serve(self) -> asyncio.Server:
        """Listens on a free port, in the running loop."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def close(self, server: asyncio.Server) -> None:
        """Stops listening and cuts every connection."""
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # One connection

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection is still of use."""
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, path, _ = start.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET" and path == "/stats":
            await _send(writer, 200, json.dumps(self.stats()).encode())
            return True
        request = _read(path, headers, content)
        if method != "POST" or request is None:
            await _send(writer, 404, b'{"error": {"code": 404, "message": "no such path"}}')
            return True
        self._in_flight += 1
        self.max_concurrency = max(self.max_concurrency, self._in_flight)
        try:
            early = request.arrived < self._quiet_until.get(request.key, 0.0)
            behaviour = self.plan(len(self.calls), request)
            self.calls.append(Call(request, behaviour, early))
            return await self._answer(request, behaviour, reader, writer)
        finally:
            self._in_flight -= 1

    async def _answer(
        self, request: Request, behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if behaviour.latency_s:
            await asyncio.sleep(behaviour.latency_s)
        if behaviour.kind == "hang":
            await reader.read(1)  # until the other side gives up
            return False
        status, headers, body = _answer(request, behaviour)
        if behaviour.kind == "429" and behaviour.hint != "none":
            until = time.monotonic() + behaviour.retry_after_s
            self._quiet_until[request.key] = max(until, self._quiet_until.get(request.key, 0.0))
        if behaviour.kind == "reset":
            writer.write(_head(status, headers, len(body)) + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.02)  # or the reset may overtake the bytes
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return False
        if behaviour.kind == "slow-drip":
            writer.write(_head(status, headers, len(body)))
            pieces = 20
            for i in range(pieces):
                writer.write(body[len(body) * i // pieces : len(body) * (i + 1) // pieces])
                await writer.drain()
                await asyncio.sleep(behaviour.drip_s / pieces)
            return True
        await _send(writer, status, body, headers)
        return True


# What came in


def _read(path: str, headers: Mapping[str, str], content: bytes) -> Request | None:
    arrived = time.monotonic()
    try:
        body = json.loads(content)
    except ValueError:
        return None
    if found := re.search(r"/models/([^/?]+):generateContent(?:\?|$)", path):
        key, model = headers.get("x-goog-api-key", ""), found[1]
        messages = _gemini_messages(body)
    elif path.partition("?")[0].endswith("/chat/completions"):
        key, model = headers.get("authorization", "").removeprefix("Bearer "), str(body.get("model"))
        messages = tuple((m["role"], m["content"]) for m in body["messages"])
    else:
        return None
    return Request(arrived, "gemini" if found else "openai", path, headers, body, key, model, messages)


def _gemini_messages(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    def text(content: Mapping[str, Any]) -> str:
        return "".join(part.get("text", "") for part in content.get("parts", ()))

    system = [("system", text(body["systemInstruction"]))] if "systemInstruction" in body else []
    roles = {"user": "user", "model": "assistant"}
    return (*system, *((roles[c["role"]], text(c)) for c in body.get("contents", ())))


# What goes out

Answer = tuple[int, dict[str, str], bytes]


def _answer(request: Request, behaviour: Behaviour) -> Answer:
    kind = behaviour.kind
    if kind == "raw":
        return behaviour.status, dict(behaviour.headers), behaviour.body
    if kind == "html":
        page = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
        return 200, {"Content-Type": "text/html"}, page
    errors: dict[str, tuple[int, str]] = {
        "429": (429, "Resource has been exhausted (e.g. check quota)."),
        "daily-quota": (429, "You exceeded your current quota, please check your plan and billing details."),
        "insufficient-quota": (429, "You exceeded your current quota, please check your plan and billing details."),
        "500": (500, "An internal error has occurred."),
        "503": (503, "The model is overloaded. Please try again later."),
        "400": (400, "Request contains an invalid argument."),
        "401": (401, f"Incorrect API key provided: {request.key}. You can find your key in your account."),
        "invalid-key": (400, f"API key not valid: {request.key}. Please pass a valid API key."),
    }
    if kind in errors:
        status, text = errors[kind]
        return _error(request, behaviour, status, behaviour.message or text)
    whole = _gemini(request, kind) if request.protocol == "gemini" else _openai(request, kind)
    body = json.dumps(whole, ensure_ascii=False).encode()
    return 200, {}, body[: len(body) // 2] if kind == "malformed" else body


def _error(request: Request, behaviour: Behaviour, status: int, text: str) -> Answer:
    kind, wait = behaviour.kind, behaviour.retry_after_s
    headers: dict[str, str] = {}
    hint = behaviour.hint if kind in ("429", "503") else "none"
    if hint == "seconds":
        headers["Retry-After"] = f"{wait:g}"
    elif hint == "date":
        headers["Retry-After"] = formatdate(time.time() + wait, usegmt=True)
    elif hint == "ms":
        headers["retry-after-ms"] = f"{wait * 1000:g}"
    if request.protocol == "openai":
        codes = {"insufficient-quota": "insufficient_quota", "401": "invalid_api_key"}
        error: dict[str, Any] = {"message": text, "type": codes.get(kind, "error"), "param": None}
        return status, headers, json.dumps({"error": {**error, "code": codes.get(kind)}}).encode()
    details: list[dict[str, Any]] = []
    rpc = "type.googleapis.com/google.rpc."
    if kind == "daily-quota":
        quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
        details.append({"@type": f"{rpc}QuotaFailure", "violations": [{"quotaId": quota}]})
        details.append({"@type": f"{rpc}RetryInfo", "retryDelay": "17s"})  # it says so all the same
    if kind == "invalid-key":
        details.append({"@type": f"{rpc}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"})
    if hint == "retry-info":
        details.append({"@type": f"{rpc}RetryInfo", "retryDelay": f"{wait:g}s"})
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
    error = {"code": status, "message": text, "status": names.get(status, "INTERNAL"), "details": details}
    return status, headers, json.dumps({"error": error}).encode()


def _counts(request: Request, text: str) -> tuple[int, int]:
    return sum(len(content.split()) for _, content in request.messages), len(text.split())


def _gemini(request: Request, kind: str) -> dict[str, Any]:
    text = answer_to(request.messages)
    prompt, output = _counts(request, text)
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": output, "thoughtsTokenCount": 3}
    common = {"usageMetadata": usage, "modelVersion": request.model}
    if kind == "blocked-prompt":
        usage = {"promptTokenCount": prompt}
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **common, "usageMetadata": usage}
    thought = {"text": "thinking about it", "thought": True}
    parts = [thought] if kind in ("empty", "safety") else [thought, {"text": text}]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if kind != "no-finish-reason":
        candidate["finishReason"] = {"safety": "SAFETY", "truncated": "MAX_TOKENS"}.get(kind, "STOP")
    return {"candidates": [candidate], **common}


def _openai(request: Request, kind: str) -> dict[str, Any]:
    text = answer_to(request.messages)
    prompt, output = _counts(request, text)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if kind == "empty":
        message["content"] = ""
    elif kind == "blocked-prompt":  # where OpenAI has the model say it
        message |= {"content": None, "refusal": "I'm sorry, I can't help with that."}
    finish = {"safety": "content_filter", "truncated": "length", "no-finish-reason": None}.get(kind, "stop")
    return {
        "id": "chatcmpl-loopback",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
    }


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    given = {name.lower() for name in headers}
    lines = [f"HTTP/1.1 {status} Loopback", f"Content-Length: {length}"]
    if "content-type" not in given:
        lines.append("Content-Type: application/json; charset=utf-8")
    if "date" not in given:
        lines.append(f"Date: {formatdate(usegmt=True)}")
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    writer.write(_head(status, headers or {}, len(body)) + body)
    await writer.drain()


# As a program


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds that a 429 asks to wait")
    parser.add_argument("--rate-429", type=float, default=0.0, help="share of requests that are refused so")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    base = Behaviour(latency_s=chosen.latency, retry_after_s=chosen.retry_after)
    asyncio.run(_serve_until_stdin_closes(at_rates({"429": chosen.rate_429}, chosen.seed, base)))


async def _serve_until_stdin_closes(plan: Plan) -> None:
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(closed.set)

    loopback = Loopback(plan)
    server = await loopback.serve()
    print(json.dumps({"port": loopback.port}), flush=True)
    threading.Thread(target=watch, daemon=True).start()
    await closed.wait()
    await loopback.close(server)


if __name__ == "__main__":
    main()
