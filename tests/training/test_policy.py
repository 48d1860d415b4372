"""The policy: what it is asked and what it said; loading and saving it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from act_assets.conversation import TurnState, Utterance
from act_assets.tasks.base import Task
from act_assets.training.chat_template import ChatFormat
from act_assets.training.generation import TransformersEngine
from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model, save_model
from act_assets.trajectory import Dialogue
from resources.errors import TrainingError

pytestmark = pytest.mark.integration


def _policy(model: Any, chat: ChatFormat, task: Task, **changes: int) -> ModelPolicy:
    settings = SamplingSettings(**({"max_length": 1280, "max_new_tokens": 12} | changes), temperature=1.0)
    engine = TransformersEngine(model, chat.end_id, chat.pad_id, batch_size=8)
    return ModelPolicy(engine, chat, PromptEncoder(task, chat, 320), settings)


def _dialogues(turns: list[TurnState], seed: int = 0) -> list[Dialogue]:
    return [Dialogue(t, (), seed + i) for i, t in enumerate(turns)]


def test_a_dialogue_continues_with_the_tokens_that_were_sampled(
    model: Any, chat: ChatFormat, pacific: Task, few_turns: list[TurnState]
) -> None:
    policy = _policy(model, chat, pacific)
    turn = few_turns[0]
    sampled = tuple(chat.response_ids("Which year?"))
    ids = policy.dialogue_ids(
        turn, [Utterance("assistant", "Which year?", "CLARIFY", sampled), Utterance("user", "2019", "")]
    )
    assert tuple(ids) == (*policy.prompts.ids(turn), *sampled, *chat.reply_ids("2019"))
    cut = Utterance("assistant", "Which", "CLARIFY", sampled[:1], truncated=True)
    assert policy.dialogue_ids(turn, [cut])[-1] == chat.end_id


def test_no_room_for_a_response_is_none_and_truncation_is_told(
    model: Any, chat: ChatFormat, pacific: Task, few_turns: list[TurnState]
) -> None:
    assert _policy(model, chat, pacific, max_length=12 + 10).respond(_dialogues(few_turns[:2])) == [None, None]
    utterances = _policy(model, chat, pacific, max_new_tokens=1).respond(_dialogues(few_turns[:4]))
    assert all(u is not None and u.truncated == (u.token_ids[-1] != chat.end_id) for u in utterances)


def test_the_engine_is_asked_once_and_only_about_dialogues_with_room(
    chat: ChatFormat, pacific: Task, few_turns: list[TurnState]
) -> None:
    asked: list[tuple[list[int], ...]] = []

    class Recorded:
        version = 0

        def sample(
            self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
        ) -> list[list[int]]:
            asked.append((list(map(len, prompts)), list(seeds), [max_new_tokens], [int(temperature * 10)]))
            return [[*chat.response_ids(str(seed))] for seed in seeds]

        def push(self, version: int) -> None: ...

        def close(self) -> None: ...

    prompts = PromptEncoder(pacific, chat, 320)
    lengths = [len(prompts.ids(turn)) for turn in few_turns]
    limit = sorted(lengths)[len(lengths) // 2]
    policy = ModelPolicy(Recorded(), chat, prompts, SamplingSettings(limit + 5, 5, 0.7))
    said = policy.respond(_dialogues(few_turns))
    fitting = [i for i, length in enumerate(lengths) if length <= limit]
    assert asked == [([lengths[i] for i in fitting], fitting, [5], [7])]
    assert [u and u.text for u in said] == [str(i) if i in fitting else None for i in range(len(few_turns))]


def test_any_folder_with_safetensors_can_be_the_policy(model: Any, chat: ChatFormat, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    size: dict[str, Any] = {
        "vocab_size": len(chat.tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for name, other in (
        ("llama", model),
        ("mistral", MistralForCausalLM(MistralConfig(**size, num_key_value_heads=1))),
        ("qwen2", Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=1))),
    ):
        save_model(other, chat.tokenizer, tmp_path / name)
        assert not list((tmp_path / name).glob("*.bin"))
        loaded, form = load_model(tmp_path / name)
        assert form.end_id == chat.end_id
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), loaded.state_dict().values(), strict=True)
        )


def test_a_policy_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="cannot be loaded"):
        load_model(tmp_path / "empty")


def test_weights_are_loaded_in_fp32_whatever_they_were_saved_in(model: Any, chat: ChatFormat, tmp_path: Path) -> None:
    """At learning rate 5e-7 updates vanish in bf16 weights."""
    import copy

    save_model(copy.deepcopy(model).to(torch.bfloat16), chat.tokenizer, tmp_path / "half")
    loaded, _ = load_model(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
