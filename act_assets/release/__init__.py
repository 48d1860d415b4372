"""What leaves the project: exports in others' formats, and checkpoints with a model card."""

from __future__ import annotations

from resources.errors import ActError

# The methods whose checkpoints leave the project, and what a card says that they were trained by.
METHODS = {
    "sft": "supervised fine-tuning on the gold responses",
    "act": "Action-Based Contrastive Self-Training, after supervised fine-tuning",
}


def check_method(method: str) -> None:
    """Raises ActError for a method that leaves no checkpoint."""
    if method not in METHODS:
        raise ActError(f"unknown method {method!r}", todo=f"choose {' or '.join(METHODS)}")
