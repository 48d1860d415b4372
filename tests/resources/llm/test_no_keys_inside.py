"""No key is in what the memo's files hold once they are unpacked, nor in any error's text or traceback."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from resources.errors import ActError
from resources.llm import service
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.gemini import GeminiProvider
from resources.llm.memo.memo import close_memos
from resources.llm.openai_chat import OpenAIProvider
from resources.llm.rate_limit import Limits
from resources.llm.retry import RetrySettings
from resources.llm.service import CallSettings, Endpoint, open_llm

KEYS = ("first-key-of-this-test-0123456789", "second-key-of-this-test-0123456789")
TRACES = (*KEYS, "x-goog-api-key", "authorization", "bearer")


@pytest.fixture(params=["gemini", "openai"])
def protocol(request: pytest.FixtureRequest, loopback: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A provider with two keys, used for the first time."""
    monkeypatch.setattr(service, "_limiters", {})
    monkeypatch.setenv("GEMINI_API_KEYS", " ".join(KEYS))
    monkeypatch.setenv("OPENAI_API_KEYS", ",".join(KEYS))
    yield request.param
    close_memos()


def ask(protocol: str, server: Any, memo: Path, number: int) -> list[LLMResponse | LLMFailure]:
    url = server.url if protocol == "gemini" else f"{server.url}/v1"
    endpoint = Endpoint(protocol, "m", url, Limits(4), RetrySettings(attempts=1, patience_s=0.0))
    requests = [
        LLMRequest("user", "m", (ChatMessage("user", f"question {i}"),), Sampling(), f"turn {i}") for i in range(number)
    ]
    return open_llm(endpoint, CallSettings(memo), lambda: None).complete_all(requests)  # type: ignore[arg-type]


def found_in(text: str) -> list[str]:
    return [trace for trace in TRACES if trace in text.lower()]


def test_no_key_is_in_the_rows(loopback: Any, protocol: str, tmp_path: Path) -> None:
    kinds = ("ok", "ok", "400", "429", "503", "safety", "malformed", "reset", "invalid-key")
    echo = f"the key {KEYS[0]} or {KEYS[1]} is wrong; Authorization: Bearer {KEYS[0]}"
    seen: set[str] = set()

    def plan(number: int, request: Any) -> Any:
        seen.add(request.key)
        kind = "ok" if number < 8 else kinds[number % len(kinds)]
        return loopback.Behaviour(kind, message=echo, retry_after_s=0.01)

    with loopback.Loopback(plan) as server:
        results = ask(protocol, server, tmp_path, 40)
    assert seen == set(KEYS)
    failures = [r for r in results if isinstance(r, LLMFailure)]
    assert 8 <= 40 - len(failures) < 40 and any("[key]" in f.message for f in failures)
    assert not [f for f in failures if any(key in repr(f) for key in KEYS)]
    close_memos()
    rows = []
    with duckdb.connect(str(tmp_path / "memo.duckdb"), read_only=True) as connection:
        for table in ("answers", "history", "uses"):
            rows += connection.execute(f"SELECT * FROM {table}").fetchall()
    for segment in (tmp_path / "archive").glob("*.parquet"):
        rows += pq.read_table(segment).to_pylist()
    assert len(rows) >= 2 * (40 - len(failures)) + 2 and found_in(repr(rows)) == []


def test_no_key_is_in_an_error(loopback: Any, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with loopback.Loopback() as server, pytest.raises(ActError) as caught:
        ask(protocol, server, tmp_path, 1)
    assert found_in("".join(traceback.format_exception(caught.value))) == []


@pytest.mark.parametrize("kind", ["401", "invalid-key", "400", "malformed", "html", "reset", "503"])
def test_no_key_is_in_a_providers_error_or_what_caused_it(loopback: Any, protocol: str, kind: str) -> None:
    async def main(base_url: str) -> ProviderError:
        made: Any = GeminiProvider if protocol == "gemini" else OpenAIProvider
        provider = made(KEYS[0], base_url=base_url)
        request = LLMRequest("user", "m", (ChatMessage("user", "question"),), Sampling(), "turn")
        with pytest.raises(ProviderError) as caught:
            await provider.complete(request)
        await provider.close()
        return caught.value

    with loopback.Loopback(loopback.always(kind)) as server:
        error = asyncio.run(main(server.url if protocol == "gemini" else f"{server.url}/v1"))
    text = "".join(traceback.format_exception(error))
    assert KEYS[0] not in text and KEYS[0] not in repr(error)
