"""What a GPU that ran out of memory is told: which setting to change, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from act_assets.profile import Profile
from act_assets.training.preflight import out_of_memory_advice
from resources.errors import TrainingError


@contextmanager
def out_of_memory_advised(profile: Profile, where: str, during: Literal["rollouts", "update"]) -> Iterator[None]:
    """Raises TrainingError with advice in the place of torch's OutOfMemoryError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        what = "while the policy was sampled" if during == "rollouts" else "in an update"
        advice = out_of_memory_advice(profile, str(error), during=during)
        raise TrainingError(
            f"the GPU ran out of memory {what}: {str(error).splitlines()[0]}",
            where=where,
            todo=f"{advice}; run again: after a change of compute or rollout_batch_size it goes on from its last state",
        ) from error
