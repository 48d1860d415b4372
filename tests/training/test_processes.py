"""The same training on two processes, under each strategy: the losses of one process."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from act_assets.profile import Compute
from resources import compute as launching

SMALL = Path(__file__).resolve().parent / "small_training.py"


def _small() -> Any:
    spec = importlib.util.spec_from_file_location("small_training", SMALL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_training"] = module
    spec.loader.exec_module(module)
    return module


small = _small()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The losses of one process."""
    losses = {}
    for name in ("act", "sft"):
        folder = tmp_path_factory.mktemp(name)
        _, points = small.train(small.VARIANTS[name], folder)
        losses[name] = [[p.step, p.split, p.loss] for p in points]
    return losses


@pytest.mark.end_to_end
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
@pytest.mark.parametrize("stage", ["act", "sft"])
def test_two_processes_have_the_losses_of_one(
    stage: str, strategy: str, alone: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "PROGRAM", (str(SMALL),))
    compute = Compute(launcher="accelerate", strategy=strategy, processes=2, save_every_steps=3)  # type: ignore[arg-type]
    small.write_base(tmp_path)
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"variant": stage, "folder": str(tmp_path), "compute": compute.model_dump()}))
    launching.launch(compute, job)
    found = json.loads((tmp_path / "losses.json").read_text())
    assert [point[:2] for point in found] == [point[:2] for point in alone[stage]]
    assert [point[2] for point in found] == pytest.approx([point[2] for point in alone[stage]], rel=1e-3)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.end_to_end
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_a_training_begun_by_one_process_goes_on_with_two(
    strategy: str, alone: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from act_assets.training.update import Updater

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
    monkeypatch.setattr(launching, "PROGRAM", (str(SMALL),))
    compute = Compute(launcher="accelerate", strategy=strategy, processes=2)  # type: ignore[arg-type]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"variant": "act", "folder": str(tmp_path), "compute": compute.model_dump()}))
    launching.launch(compute, job)
    found = json.loads((tmp_path / "losses.json").read_text())
    assert [point[2] for point in found] == pytest.approx([point[2] for point in alone["act"]], rel=1e-3)
    assert found[:6] == alone["act"][:6], "the updates before the cut are not made again"
