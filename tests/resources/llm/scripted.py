"""What the tests of LLM calls share: a scripted provider, questions, and answers as a memo keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, LLMResult, ProviderError, Sampling
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, Asker, Record, new_answer, question_of

Step = str | Exception | Callable[[], Awaitable[str]]
URL = "https://x.example"
ASKER = Asker("pairs", "pacific|50", "run-1", "budget-1")


class Provider:
    """Does for each question what its `steps` say, one after the other, the last one for ever.

    A question without steps is answered with itself and the number of the call, and `refused ...` is
    refused. Notes what it is asked, and how much at once.
    """

    name = "scripted"
    reports = "model-1-001"  # as the model that answered
    base_url = "https://scripted.example"

    def __init__(self, latency_s: float = 0.0, rules: str | None = None, **steps: list[Step]) -> None:
        self.latency_s, self.rules, self.steps = latency_s, rules, steps
        self.asked: list[str] = []
        self.now = self.most = 0

    async def complete(self, request: LLMRequest) -> LLMResponse:
        question = request.messages[0].content
        steps = self.steps.get(question, [])
        step = steps[min(self.asked.count(question), len(steps) - 1)] if steps else None
        self.asked.append(question)
        text = f"{question}: {len(self.asked)}"
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.latency_s)
            if question.startswith("refused"):
                raise ProviderError("rejected", "no", retryable=False)
            if isinstance(step, Exception):
                raise step
            if step is not None:
                text = step if isinstance(step, str) else await step()
        finally:
            self.now -= 1
        return LLMResponse(text, self.reports, "stop", 3, 4, 0.5)

    def fingerprint(self, request: LLMRequest) -> str | None:
        return self.rules


def asking(*questions: str, **sampling: Any) -> list[LLMRequest]:
    return [
        LLMRequest("generator", "model-1", (ChatMessage("user", q),), Sampling(**sampling), f"example {i}")
        for i, q in enumerate(questions)
    ]


def texts(results: Sequence[LLMResult]) -> list[str]:
    """The answers, and the kinds of failures."""
    return [r.text if isinstance(r, LLMResponse) else r.kind for r in results]


def paid(
    asked: str = "What?",
    said: str = "This.",
    at: float = 1.0,
    cost: float | None = 0.5,
    role: str = "generator",
    model: str = "model-1",
    **changed: Any,
) -> Answer:
    """The answer to a question: 10 tokens in, 3 out."""
    request = LLMRequest(role, model, (ChatMessage("user", asked),), Sampling(), f"example {asked}")
    response = LLMResponse(said, f"{model}-001", "stop", 10, 3, 0.25)
    answer = new_answer("openai", URL, request, question_of("openai", URL, request), response, ASKER, cost)
    return replace(answer, created_at=at, **changed)


def folded(folder: Path, *records: Record) -> None:
    """Puts records into a memo's database, by way of a journal."""
    memo = Memo(folder)
    memo.append(records)
    memo.close()


def make_answer(key: str, created_at: float = 1.0, **changed: Any) -> Answer:
    """The answer of any key, given at a time (seconds since 1970)."""
    text = f"answer to {key} at {created_at}"
    given = {"id": f"{key} at {created_at}", "key": key, "question": "{}", "label": "example 1", "text": text}
    return paid(at=created_at, **{**given, **changed})
