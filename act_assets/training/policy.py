"""A language model as a conversation policy: loading, responding, and saving.

Any Hugging Face causal language model with a chat template will do; `generation.py` samples it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_assets.conversation import TurnState, Utterance
from act_assets.profile import Policy
from act_assets.tasks.base import Task, fit_prompt
from act_assets.training.chat_template import ChatFormat
from act_assets.training.generation import RolloutEngine, TransformersEngine
from act_assets.trajectory import Dialogue
from resources.errors import TrainingError

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"


def load_model(path: str | Path, revision: str | None = None, *, quantized: bool = False) -> tuple[Any, ChatFormat]:
    """Model and chat format from a folder or a Hugging Face id; safetensors only, no remote code, weights in fp32.

    `quantized`: linear weights in 4 bits (NF4, for QLoRA), on the GPU where there is one. Raises TrainingError where
    the model is not there or cannot be used.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available, logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    if quantized:
        if not is_bitsandbytes_available():
            raise TrainingError(
                "policy.lora.quantized needs bitsandbytes, which is not installed",
                todo="pip install 'act-assets[gpu]', or set policy.lora.quantized: false",
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        with _whole_weights():
            model = AutoModelForCausalLM.from_pretrained(
                path, revision=revision, use_safetensors=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the policy {path} cannot be loaded: {error}",
            todo="set policy.model to a folder or a Hugging Face id with safetensors weights, and check the network",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, ChatFormat(tokenizer)


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Under ZeRO-3 transformers would spread every model it loads, the reference too; the policy is spread later."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        yield
        return
    from transformers.integrations import deepspeed as integration

    kept = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = kept


def save_model(model: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Weights (safetensors), configuration and tokenizer; `weights` by name stand in for the model's own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, safe_serialization=True, **({} if weights is None else {"state_dict": dict(weights)}))
    tokenizer.save_pretrained(folder)
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file():
        # The same bytes from the same training: peft writes a set in any order, where the base lay, and a page of it.
        config = json.loads(adapter.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": "", "target_modules": sorted(config["target_modules"])}
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").unlink(missing_ok=True)


def pick_device() -> torch.device:
    """The GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a policy responds; temperature 0 is greedy."""

    max_length: int
    max_new_tokens: int
    temperature: float


class PromptEncoder:
    """Prompts as token ids, shortened by the task, rendered once per turn."""

    def __init__(self, task: Task, chat: ChatFormat, max_prompt_tokens: int) -> None:
        self.task, self.chat, self.max_prompt_tokens = task, chat, max_prompt_tokens
        self._ids: dict[str, tuple[int, ...]] = {}

    def ids(self, turn: TurnState) -> tuple[int, ...]:
        if turn.turn_id not in self._ids:
            messages = fit_prompt(self.task, turn, lambda m: len(self.chat.prompt_ids(m)), self.max_prompt_tokens)
            self._ids[turn.turn_id] = tuple(self.chat.prompt_ids(messages))
        return self._ids[turn.turn_id]


class ModelPolicy:
    """pi_theta. Implements `trajectory.ConversationPolicy`."""

    def __init__(
        self, engine: RolloutEngine, chat: ChatFormat, prompts: PromptEncoder, settings: SamplingSettings
    ) -> None:
        self.engine, self.chat, self.prompts, self.settings = engine, chat, prompts, settings

    def dialogue_ids(self, turn: TurnState, utterances: Sequence[Utterance]) -> list[int]:
        """Prompt and trajectory so far, up to where the policy responds."""
        ids = list(self.prompts.ids(turn))
        for utterance in utterances:
            if utterance.speaker == "assistant":
                ids += utterance.token_ids
                if not utterance.token_ids or utterance.token_ids[-1] != self.chat.end_id:
                    ids.append(self.chat.end_id)
            else:
                ids += self.chat.reply_ids(utterance.text)
        return ids

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        """All dialogues at once; one without room for `max_new_tokens` gets None."""
        rows = [self.dialogue_ids(d.turn, d.utterances) for d in dialogues]
        room = self.settings.max_length - self.settings.max_new_tokens
        asked = [i for i, row in enumerate(rows) if len(row) <= room]
        sampled = self.engine.sample(
            [rows[i] for i in asked],
            [dialogues[i].seed for i in asked],
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
        )
        result: list[Utterance | None] = [None] * len(rows)
        for i, ids in zip(asked, sampled, strict=True):
            truncated = not ids or ids[-1] != self.chat.end_id
            result[i] = Utterance("assistant", self.chat.text(ids), "", tuple(ids), truncated)
        return result


def load_policy(folder: Path, task: Task, settings: Policy, *, batch_size: int, temperature: float) -> ModelPolicy:
    """A checkpoint's model as the policy that an evaluation or a chat asks, on the GPU where there is one."""
    model, chat = load_model(folder)
    return ModelPolicy(
        TransformersEngine(model.to(pick_device()), chat.end_id, chat.pad_id, batch_size=batch_size),
        chat,
        PromptEncoder(task, chat, settings.max_prompt_tokens),
        SamplingSettings(settings.max_length, settings.max_new_tokens, temperature),
    )
