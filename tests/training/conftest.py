"""What the tests of training start from: a tiny policy, in memory and saved, and pairs as texts and as tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import PreferencePair, TurnState
from act_assets.preference import build_pairs
from act_assets.profile import LLMRole, Profile
from act_assets.roles import EmbeddedProvider, Generator
from act_assets.tasks.base import Task
from act_assets.training.act import Pair, initial_pair
from act_assets.training.base_policy import build_model
from act_assets.training.chat_template import ChatFormat
from act_assets.training.policy import PromptEncoder, save_model
from resources.llm.client import LLM

sys.path.insert(0, str(Path(__file__).resolve().parent))  # processes that tests start import small_training.py


@pytest.fixture(scope="session")
def chat(tiny_tokenizer: Any) -> ChatFormat:
    return ChatFormat(tiny_tokenizer)


@pytest.fixture(scope="module")
def model(tiny_profile: Profile, tiny_tokenizer: Any) -> Any:
    assert tiny_profile.policy.scratch is not None
    return build_model(tiny_profile.policy.scratch, len(tiny_tokenizer), 1280, ChatFormat(tiny_tokenizer), seed=1)


@pytest.fixture(scope="module")
def saved(model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy in a folder."""
    folder = tmp_path_factory.mktemp("policy")
    save_model(model, tiny_tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def preference_pairs(pacific: Task, few_turns: list[TurnState]) -> list[PreferencePair]:
    settings = LLMRole(provider="embedded", model="embedded-rules-1")
    return build_pairs(pacific, few_turns, Generator(LLM(EmbeddedProvider()), settings, pacific, ()), 0)[0]


@pytest.fixture(scope="session")
def pairs(
    pacific: Task, few_turns: list[TurnState], preference_pairs: list[PreferencePair], tiny_tokenizer: Any
) -> list[Pair]:
    prompts = PromptEncoder(pacific, ChatFormat(tiny_tokenizer), 320)
    turns = {t.turn_id: t for t in few_turns}
    return [initial_pair(turns[p.turn_id], p, prompts, 1280) for p in preference_pairs]


@pytest.fixture(scope="session")
def alone(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[Any], Path]]:
    """The points and the files of a small training in this process, by variant; each trained once."""
    found: dict[str, tuple[list[Any], Path]] = {}

    def trained(variant: str) -> tuple[list[Any], Path]:
        if variant not in found:
            folder = tmp_path_factory.mktemp(variant)
            found[variant] = (small.train(small.VARIANTS[variant], folder)[1], folder / "out")
        return found[variant]

    return trained
