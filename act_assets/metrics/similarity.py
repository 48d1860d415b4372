"""Cosine similarity of sentence embeddings (Risch et al. 2021; appendix D uses it for Abg-CoQA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Embedder(Protocol):
    """Turns texts into vectors. `identity` names model and weights; figures of another one are not comparable."""

    @property
    def identity(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d), float32, rows of length 1."""
        ...


def similarities(embedder: Embedder, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Per text the highest cosine similarity to one of its references, in [0, 1], in order.

    A blank text scores 0, and so does a text whose references are all blank. Negative cosines count as 0, for the
    score is a share of the gold meaning and averages beside others in [0, 1]; rounding errors beyond 1 count as 1.
    Six decimals: the vector of a text differs by about 1e-7 with the texts that share its batch.
    """
    wanted = [(t, [r for r in rs if r.strip()]) for t, rs in zip(texts, references, strict=True)]
    unique = list(dict.fromkeys(s for text, rs in wanted if text.strip() and rs for s in (text, *rs)))
    if not unique:
        return [0.0] * len(wanted)
    vectors = embedder.embed(unique)
    row = {text: i for i, text in enumerate(unique)}

    def score(text: str, rs: Sequence[str]) -> float:
        if not (text.strip() and rs):
            return 0.0
        best = float(np.max(vectors[[row[r] for r in rs]] @ vectors[row[text]]))
        return round(min(1.0, max(0.0, best)), 6)

    return [score(text, rs) for text, rs in wanted]
