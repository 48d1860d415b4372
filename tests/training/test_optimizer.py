"""The update against TRL's DPOTrainer, and what one update may and may not depend on."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from act_assets.profile import Optimisation
from act_assets.training.act import Pair
from act_assets.training.chat_template import ChatFormat
from act_assets.training.logprobs import ReferenceScores, dpo_terms, sequence_log_probs, sizes, text_key
from act_assets.training.optimizer import Updater
from act_assets.training.packing import Batch, rows_of
from resources.errors import TrainingError
from resources.settings import Compute

pytestmark = pytest.mark.integration

REPO = Path(__file__).resolve().parents[2]
STEPS, BATCH = 20, 4
SETTINGS = Optimisation(epochs=5, learning_rate=1e-3, batch_size=BATCH, weight_decay=0.01)


def _ours(
    model: Any,
    chat: ChatFormat,
    pairs: list[Pair],
    *,
    share: bool = True,
    compute: Compute | None = None,
    steps: int = STEPS,
    settings: Optimisation = SETTINGS,
) -> tuple[list[float], Updater]:
    """The losses of some updates on fixed pairs, in order."""
    updater = Updater(copy.deepcopy(model), settings, compute or Compute(), STEPS, 0, "a test")
    reference = ReferenceScores(copy.deepcopy(model), chat.pad_id, updater.device, share=share)
    losses = []
    for step in range(steps):
        start = step * BATCH % len(pairs)
        groups = [pair.rows for pair in pairs[start : start + BATCH]]
        rows = [rows_of(group, share=share) for group in groups]

        def part(chosen: Any, rows: Any = rows, groups: Any = groups) -> Any:
            batch = Batch.of([row for i in chosen for row in rows[i]], chat.pad_id)
            scores = torch.tensor(reference([groups[i] for i in chosen]))
            return dpo_terms(sequence_log_probs(updater.model, batch), scores, 0.1)[0].sum() / BATCH, {}

        losses.append(updater.step(sizes(rows), part).loss)
    return losses, updater


def _trl(model: Any, chat: ChatFormat, pairs: list[Pair], folder: Path) -> list[float]:
    from transformers import TrainerCallback

    spec = importlib.util.spec_from_file_location("train_step", REPO / "bench" / "train_step.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    losses: list[float] = []

    class Note(TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    bench.trl_trainer(
        model,
        chat.tokenizer,
        pairs,
        folder,
        Note(),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=SETTINGS.learning_rate,
        weight_decay=SETTINGS.weight_decay,
        warmup_steps=SETTINGS.warm_up_ratio,
        max_grad_norm=SETTINGS.max_grad_norm,
    ).train()
    return losses


def test_the_losses_are_those_of_trls_dpo_trainer_at_every_step(
    model: Any, chat: ChatFormat, pairs: list[Pair], tmp_path: Path
) -> None:
    expected = _trl(model, chat, pairs, tmp_path)
    assert len(expected) == STEPS
    assert max(expected) - min(expected) > 0.05, "it learns"
    for share in (True, False):
        losses, _ = _ours(model, chat, pairs, share=share)
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-5


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("limit", [1, 700, None])
def test_the_size_of_a_pass_changes_no_loss(model: Any, chat: ChatFormat, pairs: list[Pair], limit: int | None) -> None:
    compute = Compute(micro_batch_tokens=limit, gradient_checkpointing=limit == 700)
    losses, _ = _ours(model, chat, pairs, compute=compute, steps=6)
    expected, _ = _ours(model, chat, pairs, steps=6)
    assert losses == pytest.approx(expected, abs=1e-6)


def test_a_state_put_back_gives_the_updates_that_followed_it(model: Any, chat: ChatFormat, pairs: list[Pair]) -> None:
    _, half = _ours(model, chat, pairs, steps=STEPS // 2)
    whole, done = _ours(model, chat, pairs)
    again = Updater(copy.deepcopy(model), SETTINGS, Compute(), STEPS, 0, "a test")
    again.restore(half.step_count, half.sharding.weights(), half.sharding.moments())
    assert again.step_count == STEPS // 2
    assert again.learning_rate(again.step_count) == half.learning_rate(half.step_count) > 0
    assert _same(half.sharding.weights(), again.sharding.weights())
    assert _same(half.sharding.moments(), again.sharding.moments())
    assert not _same(half.sharding.weights(), done.sharding.weights())
    assert len(whole) == STEPS


def test_a_loss_that_is_not_finite_changes_nothing(model: Any, chat: ChatFormat, pairs: list[Pair]) -> None:
    _, updater = _ours(model, chat, pairs, steps=2)
    before = updater.sharding.weights()
    rows = [rows_of(pair.rows, share=True) for pair in pairs[:2]]

    def broken(chosen: Any) -> Any:
        batch = Batch.of([row for i in chosen for row in rows[i]], chat.pad_id)
        return sequence_log_probs(updater.model, batch).sum() * math.nan, {}

    with pytest.raises(TrainingError, match=r"(?s)loss became nan at update 3.*lower the learning rate"):
        updater.step(sizes(rows), broken)
    assert _same(before, updater.sharding.weights())
    assert updater.step_count == 2


def test_a_text_is_scored_by_the_reference_once(model: Any, chat: ChatFormat, pairs: list[Pair]) -> None:
    reference = ReferenceScores(copy.deepcopy(model), chat.pad_id, "cpu")
    groups = [pair.rows for pair in pairs]
    first = reference(groups)
    tokens = reference.scored_tokens
    assert reference(groups) == first
    assert reference.scored_tokens == tokens
    changed = [(groups[0][0], groups[1][0])]
    del reference.known[text_key(groups[0][0])]
    assert len(reference(changed)) == 2
    assert tokens < reference.scored_tokens < tokens + 400, "only what was new"
    plain = ReferenceScores(copy.deepcopy(model), chat.pad_id, "cpu", share=False, limit=500)
    assert plain(groups) == pytest.approx(first, abs=1e-3)


def test_norms_and_biases_do_not_decay(model: Any, chat: ChatFormat) -> None:
    updater = Updater(copy.deepcopy(model), SETTINGS, Compute(), STEPS, 0, "a test")
    decaying, others = updater.optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {id(p): n for n, p in updater.policy.named_parameters()}
    assert {names[id(p)].rsplit(".", 2)[-2] for p in others["params"]} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }


def test_the_learning_rate_warms_up_and_decays_to_zero(model: Any) -> None:
    updater = Updater(copy.deepcopy(model), SETTINGS, Compute(), STEPS, 0, "a test")
    rates = [updater.learning_rate(s) for s in range(STEPS + 1)]
    assert rates[:3] == [0.0, 5e-4, 1e-3]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == 0.0
