"""Sequences that begin alike in one row: what they share is computed once, and none attends to another.

    row = grow([winner, loser])                     # prompt, winner, loser: the prompt once
    batch = Batch.of([row, ...], pad_id)            # tensors, and where each token's log-probability comes from

A row is a tree of tokens. A token attends to those on its own path from the root, and its position is its depth on
that path, so that its log-probability, and every gradient, is that of its sequence on its own. In the plain form each
sequence is a row, a tree without branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A sequence and, per token, whether it carries loss; the first cannot: nothing is before it."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.loss_mask[:1] == (1,) or len(self.loss_mask) != len(self.token_ids):
            raise ValueError("a loss mask is as long as its sequence, and 0 at the first token")


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A tree of tokens. `paths` holds, for each sequence, the places of its tokens in the row; `branches` the places
    [start, end) that each further sequence added and the places before them on its path."""

    token_ids: np.ndarray[Any, np.dtype[np.int64]]
    positions: np.ndarray[Any, np.dtype[np.int64]]
    sequences: tuple[TokenRow, ...]
    paths: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    branches: tuple[tuple[int, int, np.ndarray[Any, np.dtype[np.int64]]], ...]

    def attention(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which place (row) attends to which (column)."""
        allowed = np.zeros((len(self.token_ids), len(self.token_ids)), dtype=np.bool_)
        for start, end, before in self.branches:
            allowed[start:end, before] = True
            allowed[start:end, start:end] = np.tri(end - start, dtype=np.bool_)
        return allowed


def grow(sequences: Sequence[TokenRow]) -> PackedRow:
    """Sequences as one tree; each branches off where it first differs from all before it."""
    texts = [np.asarray(s.token_ids, dtype=np.int64) for s in sequences]
    paths: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    branches: list[tuple[int, int, np.ndarray[Any, np.dtype[np.int64]]]] = []
    parts: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    positions: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    size = 0
    for i, text in enumerate(texts):
        shared, nearest = max(((_common(texts[j], text), -j) for j in range(i)), default=(0, 0))
        before = paths[-nearest][:shared] if i else np.empty(0, dtype=np.int64)
        end = size + len(text) - shared
        if end > size:
            branches.append((size, end, before))
            parts.append(text[shared:])
            positions.append(np.arange(shared, len(text)))
        paths.append(np.concatenate([before, np.arange(size, end)]))
        size = end
    return PackedRow(np.concatenate(parts), np.concatenate(positions), tuple(sequences), tuple(paths), tuple(branches))


def _common(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    """The length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def rows_of(group: Sequence[TokenRow], *, share: bool) -> list[PackedRow]:
    """A group of sequences as one shared row, or as plain rows."""
    return [grow(group)] if share else [grow([sequence]) for sequence in group]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, padded on the left.

    `input_ids`, `position_ids`: [rows, width]; `attention_mask`: [rows, width], or [rows, 1, width, width] where a row
    branches; `columns` [k]: the places whose logits are needed; then, for each token that carries loss [t], the
    place of its logits in the flattened [rows x k], its id, and the number of its sequence in the order of the rows.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    columns: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    sequences: int
    tokens: int  # without padding

    @classmethod
    def of(cls, rows: Sequence[PackedRow], pad_id: int, device: Any = None) -> Batch:
        import torch

        width = max(len(row.token_ids) for row in rows)
        ids = np.full((len(rows), width), pad_id, dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        plain = all(len(row.branches) == 1 for row in rows)
        mask = np.zeros((len(rows), width) if plain else (len(rows), 1, width, width), dtype=np.bool_)
        where, columns, targets, owners, number = [], [], [], [], 0
        for r, row in enumerate(rows):
            start = width - len(row.token_ids)
            ids[r, start:], positions[r, start:] = row.token_ids, row.positions
            if plain:
                mask[r, start:] = True
            else:
                mask[r, 0, start:, start:] = row.attention()
                mask[r, 0, range(start), range(start)] = True  # padding sees itself: an empty row would be NaN
            for sequence, path in zip(row.sequences, row.paths, strict=True):
                loss = np.flatnonzero(np.asarray(sequence.loss_mask))
                where.append(np.full(len(loss), r))
                columns.append(path[loss - 1] + start)
                targets.append(np.asarray(sequence.token_ids, dtype=np.int64)[loss])
                owners.append(np.full(len(loss), number))
                number += 1
        kept, place = np.unique(np.concatenate(columns), return_inverse=True)
        sources = np.concatenate(where) * len(kept) + place
        tensor = partial(torch.as_tensor, device=device)
        return cls(
            tensor(ids),
            tensor(mask),
            tensor(positions),
            tensor(kept),
            tensor(sources),
            tensor(np.concatenate(targets)),
            tensor(np.concatenate(owners)),
            number,
            sum(len(row.token_ids) for row in rows),
        )


def share_out(sizes: Sequence[int], processes: int, limit: int | None) -> list[list[list[int]]]:
    """Examples dealt out to processes, and each share cut into passes: [process][pass][example].

    `sizes` are the tokens of each example. A pass holds at most `limit` of them, padding included, unless a single
    example is longer. Examples of similar length go together; every process makes the same number of passes, some
    of them empty, for collective operations need it.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    shares: list[list[list[int]]] = []
    for process in range(processes):
        passes: list[list[int]] = []
        for i in order[process::processes]:
            if passes and (limit is None or sizes[passes[-1][0]] * (len(passes[-1]) + 1) <= limit):
                passes[-1].append(i)
            else:
                passes.append([i])
        shares.append(passes)
    most = max(map(len, shares))
    return [passes + [[]] * (most - len(passes)) for passes in shares]
