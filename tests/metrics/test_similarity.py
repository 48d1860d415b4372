"""Cosine similarity: the arithmetic with vectors made by hand, the meaning with the real weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from act_assets.metrics.similarity import similarities
from resources.embedder import default_embedder

pytestmark = pytest.mark.integration


class ByHand:
    """Vectors from a table; notes what it was asked."""

    identity = "by hand"

    def __init__(self, **vectors: tuple[float, float]) -> None:
        self.vectors = vectors
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([self.vectors[t] for t in texts], dtype=np.float32)


EMBEDDER = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8), "opposite": (-1.0, 0.0), "long": (1.0000001, 0.0)}


def test_the_best_reference_counts_and_the_order_is_kept():
    embedder = ByHand(**EMBEDDER)
    assert similarities(embedder, ["c", "a", "c"], [["a", "b"], ["b"], ["a"]]) == [0.8, 0.0, 0.6]
    assert similarities(embedder, ["opposite", "long"], [["a"], ["long"]]) == [0.0, 1.0], "between 0 and 1"


def test_every_text_is_embedded_once_in_one_call():
    embedder = ByHand(**EMBEDDER)
    similarities(embedder, ["a", "a", "b"], [["a", "b"], ["c"], ["a"]])
    (asked,) = embedder.asked
    assert sorted(asked) == ["a", "b", "c"]


@pytest.mark.parametrize(("text", "references"), [("", ["a"]), (" \n", ["a"]), ("a", []), ("a", [" "])])
def test_nothing_is_like_nothing(text: str, references: list[str]):
    embedder = ByHand(**EMBEDDER)
    assert similarities(embedder, [text], [references]) == [0.0]
    assert embedder.asked == []


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError):
        similarities(ByHand(**EMBEDDER), ["a"], [])


def test_real_weights_tell_the_same_from_another():
    texts = ["The dense brush-wood.", "An apple was eaten by the boy.", "The weather in Paris is mild."]
    golds = [["The dense brush-wood."], ["The boy ate an apple."], ["He repaired the engine of his tractor."]]
    same, paraphrase, unrelated = similarities(default_embedder(), texts, golds)
    assert same == 1.0
    assert 0.7 < paraphrase < 1.0
    assert unrelated < 0.3


def test_a_further_reference_never_lowers_a_score():
    embedder = default_embedder()
    alone = similarities(embedder, ["a rope"], [["the brush-wood"]])
    more = similarities(embedder, ["a rope"], [["the brush-wood", "ropes"]])
    assert more > alone
    assert similarities(embedder, ["a rope"], [["ropes", "the brush-wood"]]) == more
