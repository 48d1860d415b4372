"""LoRA and the frozen reference: what is cast, what is trained, and that the reference is the initial policy."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from act_assets.profile import Lora, Optimisation, Profile
from act_assets.training.adapters import adapter_off, frozen, halve_linear, with_adapter
from act_assets.training.base_policy import build_model
from act_assets.training.chat_template import ChatFormat
from act_assets.training.logprobs import ReferenceScores, sequence_log_probs
from act_assets.training.optimizer import Updater
from act_assets.training.packing import Batch, TokenRow, rows_of
from resources.settings import Compute

pytestmark = pytest.mark.integration

ROW = TokenRow((5, 6, 7, 8, 9, 10), (0, 0, 0, 1, 1, 1))


def _scores(model: Any) -> list[float]:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return sequence_log_probs(model.eval(), Batch.of(rows_of([ROW], share=True), 0)).tolist()


def test_linear_weights_in_bf16_change_nothing_under_autocast(model: Any) -> None:
    before = _scores(model)
    halved = copy.deepcopy(model)
    halve_linear(halved)
    assert _scores(halved) == before
    kinds = {name: str(p.dtype) for name, p in halved.named_parameters()}
    assert kinds["model.embed_tokens.weight"] == "torch.float32", "tied to the head, and read as it is"
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "torch.bfloat16"
    assert kinds["model.norm.weight"] == "torch.float32"


def test_a_reference_is_frozen_and_scores_as_the_policy_does(model: Any) -> None:
    reference = frozen(copy.deepcopy(model), "cpu", mixed_precision=True)
    assert not any(p.requires_grad for p in reference.parameters())
    assert _scores(reference) == _scores(model)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_an_adapter_alone_is_trained_and_its_base_is_the_reference(model: Any, mixed_precision: bool) -> None:
    adapted = with_adapter(copy.deepcopy(model), Lora(r=4, alpha=8), 0, mixed_precision=mixed_precision)
    trained = {name: str(p.dtype) for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {"torch.float32"}
    updater = Updater(
        adapted,
        Optimisation(epochs=1, learning_rate=0.05, batch_size=1, warm_up_ratio=0.0),
        Compute(gradient_checkpointing=True),
        10,
        0,
        "a test",
        mixed_precision=mixed_precision,
    )

    def reference() -> float:
        scores = ReferenceScores(
            updater.policy, 0, "cpu", autocast=updater.autocast, as_reference=partial(adapter_off, updater)
        )
        return scores([[ROW]])[0]

    before = reference()
    batch = Batch.of(rows_of([ROW], share=True), 0)
    losses = []
    for _ in range(4):
        done = updater.step([6], lambda chosen: (-sequence_log_probs(updater.model, batch).sum(), {}))
        losses.append(done.loss)
    assert losses[-1] < losses[0] - 0.01, "the adapter learns, with gradient checkpointing as well"
    assert reference() == before, "and the reference stays"


def test_the_same_seed_gives_the_same_adapter(model: Any) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        adapted = with_adapter(copy.deepcopy(model), Lora(r=4, alpha=8), seed, mixed_precision=False)
        return [p.detach() for name, p in adapted.named_parameters() if "lora_A" in name]

    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(2), strict=True))


def test_a_four_bit_base_stays_and_its_adapter_learns(
    tiny_profile: Profile, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA is of the extra gpu")
    from act_assets.training.policy import load_model, save_model

    assert tiny_profile.policy.scratch is not None
    wide = tiny_profile.policy.scratch.model_copy(update={"hidden_size": 128})  # blocks of 64 are the smallest
    built = build_model(wide, len(tiny_tokenizer), 1280, ChatFormat(tiny_tokenizer), seed=1)
    save_model(built, tiny_tokenizer, tmp_path)
    base, _ = load_model(tmp_path, quantized=True)
    adapted = with_adapter(base, Lora(r=4, alpha=8, quantized=True), 0, mixed_precision=True)
    settings = Optimisation(epochs=1, learning_rate=0.05, batch_size=1, warm_up_ratio=0.0)
    updater = Updater(adapted, settings, Compute(), 10, 0, "a test", mixed_precision=True)
    assert updater.parameters > 0.9 * built.num_parameters(), "numbers, not the bytes that hold two of them"
    frozen_before = {n: p.detach().clone() for n, p in updater.policy.named_parameters() if not p.requires_grad}
    batch = Batch.of(rows_of([ROW], share=True), 0)
    losses = [
        updater.step([6], lambda chosen: (-sequence_log_probs(updater.model, batch).sum(), {})).loss for _ in range(5)
    ]
    assert losses[-1] < losses[0] - 0.01
    after = dict(updater.policy.named_parameters())
    assert all(torch.equal(p.flatten(), after[n].flatten()) for n, p in frozen_before.items())
