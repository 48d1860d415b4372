"""LoRA: the adapter that ACT trains, the base that stays, and the reference that it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from act_assets.profile import Lora
from act_assets.training.optimizer import Updater
from act_assets.training.policy import load_model, save_model


def with_adapter(model: Any, lora: Lora, seed: int, *, mixed_precision: bool) -> Any:
    """The model frozen, with a fresh adapter on every linear layer but the head; the adapter's weights are fp32."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    torch.manual_seed(seed % 2**63)
    if lora.quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    elif mixed_precision:
        halve_linear(model)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def halve_linear(model: Any) -> None:
    """Weights of linear layers to bf16, in place. Under bf16 autocast nothing else changes: it casts just these."""
    import torch

    embedded = id(model.get_input_embeddings().weight)
    for module in model.modules():
        # A head that is tied to the embedding stays: the embedding is not cast.
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 and id(module.weight) != embedded:
            module.to(torch.bfloat16)


@contextmanager
def adapter_off(updater: Updater) -> Iterator[None]:
    """A context in which the policy that is trained is its base, whole on every process."""
    with updater.sharding.whole(), updater.policy.disable_adapter():
        yield


def frozen(model: Any, device: Any, *, mixed_precision: bool) -> Any:
    """A reference model: no gradients, eval mode; with mixed precision its linear weights in bf16, half the room."""
    model.requires_grad_(False)
    if mixed_precision:
        halve_linear(model)
    return model.eval().to(device)


def merged(base: Any, adapter: Path) -> Any:
    """A base model with a saved adapter merged into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter).merge_and_unload()


def publish(kept: Path, base: tuple[str, str | None], model: Path, *, adapted: bool) -> None:
    """The kept model where the artifact has it; an adapter merged with its base (path or id, commit)."""
    if adapted:
        whole, chat = load_model(*base)
        save_model(merged(whole, kept), chat.tokenizer, model)
    else:
        shutil.copytree(kept, model)
