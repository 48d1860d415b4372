"""How near to the ideal many slow LLM calls come, and what happens to them when the server refuses some.

    python bench/llm_concurrency.py                     # about four minutes

2,000 questions to a loopback server (a process of its own) that takes 300 ms for each answer, 64 at
a time: through `LLM` (memo, rate limits, retries) with both providers, and through a plain loop over
the OpenAI client, in one run. Then 10 % of the answers are 429 with a Retry-After of one second. Ends
with one line of JSON: every figure and its target.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.client import LLM, Memory
from resources.llm.gemini import GeminiProvider
from resources.llm.memo.memo import close_memos, memo_at
from resources.llm.openai_chat import OpenAIProvider
from resources.llm.retry import RetrySettings
from resources.llm.runtime import call_loop

LOOPBACK = Path(__file__).resolve().parent.parent / "tests" / "loopback.py"
LATENCY_S = 0.3
TARGETS = {
    "openai_over_ideal": ("<=", 1.3),
    "gemini_over_ideal": ("<=", 1.3),
    "lost_of_refused_run": ("<=", 0),
    "wrong_answers": ("<=", 0),
    "sent_during_retry_after": ("<=", 0),
}


@contextmanager
def server(*options: str) -> Iterator[str]:
    """A loopback server in a process of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, str(LOOPBACK), "--latency", str(LATENCY_S), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.stdin.close()
        process.wait(10)


def answers_by() -> Any:
    """The rule by which the server answers; tests/ is no package, and its folders must not be on the path."""
    spec = importlib.util.spec_from_file_location("loopback", LOOPBACK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback"] = module
    spec.loader.exec_module(module)
    return module.answer_to


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return dict(json.load(answer))


def questions(number: int) -> list[LLMRequest]:
    return [
        LLMRequest("user", "m", (ChatMessage("user", f"question {i} " + "word " * 300),), Sampling(), str(i))
        for i in range(number)
    ]


@dataclass
class Watched:
    """A provider, and every call that it began while its Retry-After was running."""

    inner: Any
    quiet_until: float = 0.0
    early: int = 0
    refused: int = 0
    name: str = field(init=False)
    base_url: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.base_url = self.inner.name, self.inner.base_url

    def fingerprint(self, request: LLMRequest) -> None:
        return None

    async def complete(self, request: LLMRequest) -> LLMResponse:
        self.early += time.monotonic() < self.quiet_until
        try:
            return await self.inner.complete(request)
        except ProviderError as error:
            if error.retry_after_s:
                self.refused += 1
                self.quiet_until = max(self.quiet_until, time.monotonic() + error.retry_after_s)
            raise


def timed(provider: Any, requests: list[LLMRequest], concurrency: int) -> tuple[float, int, int]:
    """Seconds, questions without an answer, answers that are not the right ones."""
    with tempfile.TemporaryDirectory(prefix="bench-calls-") as folder:
        memory = Memory(memo_at(Path(folder) / "memo"))
        llm = LLM(provider, max_concurrency=concurrency, memory=memory, retry=RetrySettings(patience_s=3600))
        started = time.perf_counter()
        results = llm.complete_all(requests)
        seconds = time.perf_counter() - started
        asyncio.run_coroutine_threadsafe(_closed(provider), call_loop()).result()
        close_memos()
    answer_to = answers_by()
    lost = sum(not isinstance(r, LLMResponse) for r in results)
    wrong = sum(
        isinstance(r, LLMResponse) and r.text != answer_to([(m.role, m.content) for m in q.messages])
        for r, q in zip(results, requests, strict=True)
    )
    return seconds, lost, wrong


async def _closed(provider: Any) -> None:
    await getattr(provider, "inner", provider).close()


def plain(url: str, requests: list[LLMRequest], concurrency: int) -> float:
    """What one writes without this: the client, a semaphore, gather; nothing is kept."""
    from openai import AsyncOpenAI

    async def every() -> None:
        gate = asyncio.Semaphore(concurrency)
        async with AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client:

            async def one(request: LLMRequest) -> None:
                async with gate:
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": request.messages[0].content}]
                    )

            await asyncio.gather(*(one(r) for r in requests))

    started = time.perf_counter()
    asyncio.run(every())
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=64)
    chosen = parser.parse_args()
    requests = questions(chosen.calls)
    ideal = math.ceil(chosen.calls / chosen.concurrency) * LATENCY_S
    figures: dict[str, Any] = {"calls": chosen.calls, "concurrency": chosen.concurrency, "ideal_s": round(ideal, 2)}
    wrong = 0
    print(f"{chosen.calls} calls of {LATENCY_S} s, {chosen.concurrency} at a time: ideal {ideal:.2f} s")
    with server() as url:
        for name, provider in (
            ("openai", OpenAIProvider("none", base_url=f"{url}/v1")),
            ("gemini", GeminiProvider("any-key-will-do", base_url=url)),
        ):
            seconds, lost, mistaken = timed(provider, requests, chosen.concurrency)
            wrong += lost + mistaken
            figures[f"{name}_s"] = round(seconds, 2)
            figures[f"{name}_over_ideal"] = round(seconds / ideal, 3)
            print(f"  LLM with the {name} provider: {seconds:.2f} s, {seconds / ideal:.2f} x the ideal", flush=True)
        seconds = plain(url, requests, chosen.concurrency)
        figures["plain_s"] = round(seconds, 2)
        figures["plain_over_ideal"] = round(seconds / ideal, 3)
        print(f"  a plain loop over the OpenAI client: {seconds:.2f} s, {seconds / ideal:.2f} x the ideal")
        assert stats(url)["requests"] == 3 * chosen.calls
    with server("--rate-429", "0.1", "--retry-after", "1", "--seed", "7") as url:
        watched = Watched(OpenAIProvider("none", base_url=f"{url}/v1"))
        seconds, lost, mistaken = timed(watched, requests, chosen.concurrency)
        seen = stats(url)
    figures |= {
        "refused_run_s": round(seconds, 2),
        "refused": watched.refused,
        "lost_of_refused_run": lost,
        "sent_during_retry_after": watched.early,
        "on_their_way_when_refused": seen["early"],
        "wrong_answers": wrong + mistaken,
    }
    print(
        f"  with 10 % of 429 (Retry-After 1 s): {seconds:.1f} s, {watched.refused} refused, {lost} lost, "
        f"{watched.early} sent during a Retry-After"
    )
    verdicts = {}
    for name, (sign, target) in TARGETS.items():
        verdicts[name] = {"figure": figures[name], "target": f"{sign} {target}", "met": figures[name] <= target}
    print(json.dumps({"bench": "llm_concurrency", "targets": verdicts, "figures": figures}))


if __name__ == "__main__":
    main()
