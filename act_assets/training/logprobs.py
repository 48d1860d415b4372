"""Log-probabilities of sequences, and the DPO loss on them (equation 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from act_assets.training.packing import Batch, PackedRow, TokenRow, rows_of, share_out

if TYPE_CHECKING:
    import torch


def token_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """log pi(token | what is before it) of each token that carries loss, [t], fp32."""
    import torch

    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.columns,
        use_cache=False,
    ).logits
    flat = logits.reshape(-1, logits.shape[-1]).float()
    normaliser = torch.logsumexp(flat, -1)
    return flat[batch.sources, batch.targets] - normaliser[batch.sources]


def sequence_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """log pi(sequence) over the tokens that carry loss, [sequences], fp32."""
    per_token = token_log_probs(model, batch)
    return per_token.new_zeros(batch.sequences).index_add(0, batch.owners, per_token)


def dpo_terms(log_probs: torch.Tensor, reference: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1: each pair's loss and its margin, the difference of the rewards beta log(pi / pi_ref).

    `log_probs`, `reference`: [2 x pairs], winner and loser of each pair side by side.
    """
    import torch

    rewards = beta * (log_probs - reference).view(-1, 2)
    margin = rewards[:, 0] - rewards[:, 1]
    return -torch.nn.functional.logsigmoid(margin), margin


class ReferenceScores:
    """log pi_ref of sequences; each text is scored once and kept by the hash of its content.

    `model` is the frozen reference, or the policy itself within `as_reference` (LoRA: the adapter off).
    """

    def __init__(
        self,
        model: Any,
        pad_id: int,
        device: Any,
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        as_reference: Callable[[], AbstractContextManager[Any]] = nullcontext,
        limit: int | None = None,
        share: bool = True,
    ) -> None:
        self.model, self.pad_id, self.device, self.limit, self.share = model, pad_id, device, limit, share
        self.autocast, self.as_reference = autocast, as_reference
        self.known: dict[str, float] = {}
        self.scored_tokens = 0

    def __call__(self, groups: Sequence[Sequence[TokenRow]]) -> list[float]:
        """The scores of all sequences, group by group; a group's new sequences share what they have in common."""
        import torch

        keys = [[text_key(row) for row in group] for group in groups]
        fresh: dict[str, TokenRow] = {}
        wanted: list[list[TokenRow]] = []
        for group, names in zip(groups, keys, strict=True):
            new = {k: row for k, row in zip(names, group, strict=True) if k not in self.known and k not in fresh}
            fresh |= new
            if new:
                wanted.append(list(new.values()))
        rows = [rows_of(group, share=self.share) for group in wanted]
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast(), self.as_reference():
                for chosen in share_out(sizes(rows), 1, self.limit)[0]:
                    batch = Batch.of([row for i in chosen for row in rows[i]], self.pad_id, self.device)
                    scores = sequence_log_probs(self.model, batch).tolist()
                    named = [text_key(s) for i in chosen for row in rows[i] for s in row.sequences]
                    self.known.update(zip(named, scores, strict=True))
                    self.scored_tokens += batch.tokens
        finally:
            self.model.train(training)
        return [self.known[k] for names in keys for k in names]


def sizes(rows: Sequence[Sequence[PackedRow]]) -> list[int]:
    """Tokens of each group, its rows padded to the longest."""
    return [len(group) * max(len(row.token_ids) for row in group) for group in rows]


def text_key(row: TokenRow) -> str:
    """The hash of a sequence and of where it carries loss."""
    import numpy as np

    digest = hashlib.sha256(np.asarray(row.token_ids, dtype=np.int32).tobytes())
    digest.update(b"|" + bytes(row.loss_mask))
    return digest.hexdigest()[:32]
