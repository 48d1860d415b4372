"""Answers as a memo keeps them, without anybody having been asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resources.llm.memo.records import Answer

MakeAnswer = Callable[..., Answer]


def _answer(key: str, created_at: float = 1.0, **changed: Any) -> Answer:
    given: dict[str, Any] = {
        "id": f"{key} at {created_at}",
        "key": key,
        "question": "{}",
        "provider": "gemini",
        "base_url": "https://x.example",
        "model": "model-1",
        "sample_index": 0,
        "role": "generator",
        "label": "example 1",
        "asset": "pairs",
        "partition": "pacific/50",
        "run": "run-1",
        "budget": "budget-1",
        "text": f"answer to {key} at {created_at}",
        "finish_reason": "stop",
        "reported_model": "model-1-001",
        "prompt_tokens": 3,
        "output_tokens": 4,
        "latency_s": 0.25,
        "cost_usd": 0.5,
        "created_at": created_at,
    }
    return Answer(**{**given, **changed})


@pytest.fixture(scope="session")
def make_answer() -> MakeAnswer:
    """Makes the answer of a key, given at a time (seconds since 1970)."""
    return _answer
