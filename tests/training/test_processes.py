"""The same training on two processes, under each strategy: the losses of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act_assets.training.logging import TrainingPoint
from resources import compute as launching
from resources.settings import Compute

Alone = Callable[[str], tuple[list[Any], Path]]
SMALL = Path(__file__).resolve().parent / "small_training.py"


def _together(
    small: Any, variant: str, strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[TrainingPoint]:
    """The points of two processes, which listen on the loopback interface alone."""
    monkeypatch.setattr(launching, "PROGRAM", (str(SMALL),))
    compute = Compute(launcher="accelerate", strategy=strategy, processes=2, **changes)  # type: ignore[arg-type]
    small.write_base(folder)
    job = folder / "job.json"
    job.write_text(json.dumps({"variant": variant, "folder": str(folder), "compute": compute.model_dump()}))
    launching.launch(compute, job)
    seen = json.loads((folder / "seen.json").read_text())
    assert set(seen["listening"]) <= {"127.0.0.1"}
    return [TrainingPoint(**p) for p in seen["points"]]


def _are_of_one_training(found: list[TrainingPoint], expected: list[TrainingPoint]) -> None:
    assert [(p.step, p.split) for p in found] == [(p.step, p.split) for p in expected]
    assert [p.loss for p in found] == pytest.approx([p.loss for p in expected], rel=1e-3)
    train = [(p.gradient_norm, q.gradient_norm) for p, q in zip(found, expected, strict=True) if p.split == "train"]
    assert [a for a, _ in train] == pytest.approx([b for _, b in train], rel=1e-2)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("variant", "strategy"),
    [("act", "ddp"), ("act", "fsdp"), ("sft", "zero3")],
)
def test_two_processes_have_the_losses_of_one(
    small: Any,
    variant: str,
    strategy: str,
    alone: Alone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, expected = _together(small, variant, strategy, tmp_path, monkeypatch, save_every_steps=3), alone(variant)[0]
    _are_of_one_training(found, expected)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.end_to_end
@pytest.mark.parametrize(("variant", "strategy"), [("act-bf16-lora", "ddp"), ("act-bf16", "fsdp")])
def test_in_mixed_precision_gradients_are_averaged_and_the_policy_begins_as_the_reference(
    small: Any,
    variant: str,
    strategy: str,
    alone: Alone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, expected = _together(small, variant, strategy, tmp_path, monkeypatch), alone(variant)[0]
    assert found[0].reward_margin == expected[0].reward_margin == 0.0
    for a, b in zip(found[:4], expected[:4], strict=True):  # later rollouts may differ: bf16 breaks ties
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=0.1)


@pytest.mark.end_to_end
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_training_begun_by_one_process_resumes_with_two_and_has_its_losses(
    small: Any,
    strategy: str,
    alone: Alone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from act_assets.training.optimizer import Updater

    step = Updater.step

    def cut_short(self: Any, *arguments: Any) -> Any:
        if self.step_count == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Updater, "step", cut_short)
        with pytest.raises(KeyboardInterrupt):
            small.train(small.VARIANTS["act"], tmp_path)
    shutil.rmtree(tmp_path / "out")
    found, expected = _together(small, "act", strategy, tmp_path, monkeypatch, save_every_steps=3), alone("act")[0]
    _are_of_one_training(found, expected)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert found[:6] == expected[:6], "the updates before the cut are not made again"
