"""A GPU that runs out of memory says which setting to change."""

from __future__ import annotations

import pytest
import torch

from act_assets.profile import load_profile
from act_assets.training.memory import out_of_memory_advised
from resources.errors import TrainingError

SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.00 GiB is "
    "free. Including non-PyTorch memory, this process has 78.15 GiB memory in use. Of the allocated memory 70.00 GiB "
    "is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated."
)


@pytest.mark.parametrize(
    ("during", "setting"), [("rollouts", "rollout_batch_size to 32"), ("update", "compute.micro_batch_tokens to")]
)
def test_the_advice_names_the_setting_of_what_was_going_on(during: str, setting: str) -> None:
    def run() -> None:
        with out_of_memory_advised(load_profile("paper"), "task pacific", during):  # type: ignore[arg-type]
            raise torch.OutOfMemoryError(SAID)

    with pytest.raises(TrainingError) as raised:
        run()
    message = str(raised.value)
    assert setting in message
    assert "where: task pacific" in message
    assert "goes on from its last state" in message


def test_other_errors_stay_what_they_are() -> None:
    def run() -> None:
        with out_of_memory_advised(load_profile("paper"), "task pacific", "update"):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run()
