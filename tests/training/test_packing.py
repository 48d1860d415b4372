"""Sequences that begin alike in one row: the same log-probabilities and gradients as each on its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act_assets.training.act import Pair
from act_assets.training.logprobs import dpo_terms, sequence_log_probs
from act_assets.training.packing import Batch, TokenRow, grow, rows_of, share_out

pytestmark = pytest.mark.integration

SIZE = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1280,
}


def _model(architecture: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**SIZE)
    return getattr(transformers, f"{architecture}ForCausalLM")(config)


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2"])
def test_shared_prompts_give_the_gradients_of_the_plain_form(architecture: str, pairs: list[Pair]) -> None:
    gradients, losses, tokens = [], [], []
    for share in (True, False):
        model = _model(architecture)
        batch = Batch.of([row for pair in pairs for row in rows_of(pair.rows, share=share)], 0)
        scores = sequence_log_probs(model, batch)
        loss = dpo_terms(scores, scores.detach() * 0.98 - 1, 0.1)[0].mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        losses.append(float(loss))
        tokens.append(batch.tokens)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, plain in gradients[1].items():
        assert float((gradients[0][name] - plain).norm()) <= 1e-4 * float(plain.norm()), name
        assert float(plain.norm()) > 0 or "k_proj.bias" in name
    assert tokens[0] < 0.65 * tokens[1], "the prompts are most of it"


def test_a_score_is_the_sum_of_what_the_model_says_of_each_token(pairs: list[Pair]) -> None:
    model = _model("Llama").eval()
    batch = Batch.of([row for pair in pairs[:4] for row in rows_of(pair.rows, share=True)], 0)
    with torch.no_grad():
        scores = sequence_log_probs(model, batch).tolist()
        for score, row in zip(scores, [row for pair in pairs[:4] for row in pair.rows], strict=True):
            said = model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
            counted = [i for i, carries in enumerate(row.loss_mask) if carries]
            assert score == pytest.approx(sum(float(said[i - 1, row.token_ids[i]]) for i in counted), abs=1e-3)


def _row(ids: Sequence[int]) -> TokenRow:
    return TokenRow(tuple(ids), (0, *(1,) * (len(ids) - 1)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=5))
def test_each_token_attends_to_its_own_sequence_and_nothing_else(texts: list[list[int]]) -> None:
    row = grow([_row(t) for t in texts])
    allowed = row.attention()
    for text, path in zip(texts, row.paths, strict=True):
        assert row.token_ids[path].tolist() == text
        assert row.positions[path].tolist() == list(range(len(text)))
        for depth, place in enumerate(path):
            assert allowed[place].nonzero()[0].tolist() == sorted(path[: depth + 1].tolist())
    longest_alone = sum(len(t) for t in {tuple(t) for t in texts})
    assert max(map(len, texts)) <= len(row.token_ids) <= longest_alone


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 200))
)
def test_every_example_is_dealt_out_once_in_as_many_passes_everywhere(
    sizes: list[int], processes: int, limit: int | None
) -> None:
    shares = share_out(sizes, processes, limit)
    assert sorted(i for share in shares for chosen in share for i in chosen) == list(range(len(sizes)))
    assert len({len(share) for share in shares}) == 1
    for chosen in (p for share in shares for p in share if len(p) > 1 and limit is not None):
        assert max(sizes[i] for i in chosen) * len(chosen) <= limit  # type: ignore[operator]
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_how_an_update_is_cut_into_passes_does_not_change_the_scores(pairs: list[Pair]) -> None:
    model = _model("Llama").eval()
    rng = random.Random(0)
    rows = [row for pair in pairs for row in rows_of(pair.rows, share=True)]
    with torch.no_grad():
        together = sequence_log_probs(model, Batch.of(rows, 0)).tolist()
        alone = [s for row in rows for s in sequence_log_probs(model, Batch.of([row], 0)).tolist()]
        order = rng.sample(range(len(rows)), len(rows))
        shuffled = sequence_log_probs(model, Batch.of([rows[i] for i in order], 0)).view(-1, 2).tolist()
    assert together == pytest.approx(alone, rel=1e-5)
    assert [s for k in range(len(rows)) for s in shuffled[order.index(k)]] == pytest.approx(together, rel=1e-5)


def test_a_first_token_cannot_carry_loss() -> None:
    with pytest.raises(ValueError, match="0 at the first token"):
        TokenRow((1, 2), (1, 1))
