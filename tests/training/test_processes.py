"""The same trainings on two processes, under each strategy: the losses of one process."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act_assets.training.logging import TrainingPoint
from act_assets.training.optimizer import Updater
from resources import compute as launching
from resources.settings import Compute

pytestmark = pytest.mark.end_to_end

Alone = Callable[[str], tuple[list[Any], Path]]
Together = Callable[[str], Path]
SMALL = Path(__file__).resolve().parent / "small_training.py"
VARIANTS = {"ddp": ("act", "act-bf16-lora"), "fsdp": ("act", "act-bf16"), "zero2": ("act",), "zero3": ("act", "sft")}
RESUMED = ("zero2", "zero3")


def _cut_short(small: Any, folder: Path) -> None:
    """One process trains, until it is interrupted in its seventh update."""
    step = Updater.step

    def cut(self: Any, *arguments: Any) -> Any:
        if self.step_count == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Updater, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            small.train(small.VARIANTS["act"], folder)
    shutil.rmtree(folder / "out")


@pytest.fixture(scope="module")
def together(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """The folder of a strategy's trainings, by two processes that are launched once."""

    @functools.cache
    def launched(strategy: str) -> Path:
        folder = tmp_path_factory.mktemp(strategy)
        for variant in VARIANTS[strategy]:
            (folder / variant).mkdir()
            small.write_base(folder / variant)
        if strategy in RESUMED:
            _cut_short(small, folder / "act")
        compute = Compute(launcher="accelerate", strategy=strategy, processes=2, save_every_steps=3)  # type: ignore[arg-type]
        job = folder / "job.json"
        job.write_text(json.dumps({"variants": VARIANTS[strategy], "compute": compute.model_dump()}))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(launching, "PROGRAM", (str(SMALL),))
            launching.launch(compute, job)
        return folder

    return launched


def _points(folder: Path, variant: str) -> list[TrainingPoint]:
    return [TrainingPoint(**p) for p in json.loads((folder / variant / "points.json").read_text())]


@pytest.mark.parametrize(
    ("strategy", "variant"), [("ddp", "act"), ("fsdp", "act"), ("zero2", "act"), ("zero3", "act"), ("zero3", "sft")]
)
def test_two_processes_have_the_losses_of_one(strategy: str, variant: str, together: Together, alone: Alone) -> None:
    folder, expected = together(strategy), alone(variant)[0]
    found = _points(folder, variant)
    assert [(p.step, p.split) for p in found] == [(p.step, p.split) for p in expected]
    assert [p.loss for p in found] == pytest.approx([p.loss for p in expected], rel=1e-3)
    train = [(p.gradient_norm, q.gradient_norm) for p, q in zip(found, expected, strict=True) if p.split == "train"]
    assert [a for a, _ in train] == pytest.approx([b for _, b in train], rel=1e-2)
    assert (folder / variant / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(("strategy", "variant"), [("ddp", "act-bf16-lora"), ("fsdp", "act-bf16")])
def test_in_mixed_precision_gradients_are_averaged_and_the_policy_begins_as_the_reference(
    strategy: str, variant: str, together: Together, alone: Alone
) -> None:
    found, expected = _points(together(strategy), variant), alone(variant)[0]
    assert found[0].reward_margin == expected[0].reward_margin == 0.0
    for a, b in zip(found[:4], expected[:4], strict=True):  # later rollouts may differ: bf16 breaks ties
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=0.1)


@pytest.mark.parametrize("strategy", RESUMED)
def test_a_training_begun_by_one_process_is_resumed_by_two(strategy: str, together: Together, alone: Alone) -> None:
    assert _points(together(strategy), "act")[:6] == alone("act")[0][:6], "updates before the cut are not made again"


@pytest.mark.parametrize("strategy", VARIANTS)
def test_processes_listen_on_the_loopback_interface_alone(strategy: str, together: Together) -> None:
    assert set(json.loads((together(strategy) / "listening.json").read_text())) <= {"127.0.0.1"}
