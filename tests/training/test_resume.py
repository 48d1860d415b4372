"""A training that is killed resumes where it was: the same losses, the same rollouts, the same weights."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from act_assets.training.act import SelfTraining
from act_assets.training.checkpoint import StateStore
from resources.errors import RoleError, TrainingError

pytestmark = pytest.mark.integration

Alone = Callable[[str], tuple[list[Any], Path]]
PROCESSES = get_context("forkserver")  # killed ones begin with the libraries loaded
PROCESSES.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "accelerate", "datasets"])


def _content(folder: Path) -> dict[str, str]:
    """The hash of everything that a training leaves, its logs apart."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "logs" not in p.relative_to(folder).parts]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _killed(small: Any, variant: str, folder: Path, after: int) -> None:
    process = PROCESSES.Process(target=small.train_until_killed, args=(variant, folder, after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    shutil.rmtree(folder / "out")  # as the artifact store does with what was half built


@pytest.mark.parametrize("variant", ["sft", "sft-lora", "act", "act-ahead", "act-lora"])
def test_a_killed_training_resumes_to_the_same_losses_and_weights(
    small: Any, alone: Alone, variant: str, tmp_path: Path
) -> None:
    expected, out = alone(variant)
    first = random.Random(variant).randrange(3, expected[-1].step - 2)
    _killed(small, variant, tmp_path, first)
    saved = StateStore(next((tmp_path / "work").rglob("states")), 2, "").latest()
    assert saved is not None
    assert 0 < saved.step <= first
    if variant == "act":
        _killed(small, variant, tmp_path, first - saved.step + 1)
    _, points = small.train(small.VARIANTS[variant], tmp_path)
    assert points == expected
    assert _content(tmp_path / "out") == _content(out)
    assert any(name.endswith("model.safetensors") for name in _content(out))


def test_a_finished_learning_rate_is_not_tried_again(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from act_assets.training.supervised import Supervised

    tried: list[float] = []
    run = Supervised.run

    def counting(self: Any, *arguments: Any, **options: Any) -> None:
        tried.append(self.updater.peak)
        if len(tried) == 2:
            raise TrainingError("the machine went away")
        run(self, *arguments, **options)

    monkeypatch.setattr(Supervised, "run", counting)
    with pytest.raises(TrainingError):
        small.train(small.VARIANTS["sft"], tmp_path)
    shutil.rmtree(tmp_path / "out")
    facts, _ = small.train(small.VARIANTS["sft"], tmp_path)
    assert tried == [5e-3, 1e-3, 1e-3]
    assert [rate for rate, _ in facts["tried_learning_rates"]] == [5e-3, 1e-3]


def test_a_state_that_is_not_whole_is_passed_over_and_named(
    small: Any, alone: Alone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = alone("act")
    _killed(small, "act", tmp_path, 7)
    newest = sorted((tmp_path / "work" / "states").glob("step-*"))[-1]
    content = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    _, points = small.train(small.VARIANTS["act"], tmp_path)
    assert f"not whole: {newest.name}" in capsys.readouterr().err
    assert points == expected


def _vanish_at_the_fourth_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated user has no answer for one group, and is there again afterwards."""
    call, calls = SelfTraining.__call__, [0]

    def vanishing(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise RoleError("replies of the simulated user: 8 of 8 failed", todo="run again")
        return call(self, *arguments)

    monkeypatch.setattr(SelfTraining, "__call__", vanishing)


@pytest.mark.parametrize(("variant", "resumed_at"), [("act", 3), ("act-ahead", None)])
def test_a_vanished_endpoint_costs_no_exactness_and_without_a_lag_no_update(
    small: Any,
    alone: Alone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    resumed_at: int | None,
) -> None:
    expected, _ = alone(variant)
    _vanish_at_the_fourth_group(monkeypatch)
    with pytest.raises(RoleError):
        small.train(small.VARIANTS[variant], tmp_path)
    saved = StateStore(tmp_path / "work" / "states", 2, "").latest()
    if resumed_at is not None:
        assert saved is not None
        assert saved.step == resumed_at, "nothing that was trained is lost"
    shutil.rmtree(tmp_path / "out")
    _, points = small.train(small.VARIANTS[variant], tmp_path)
    assert points == expected


def test_a_disk_that_is_full_when_a_model_is_kept_is_said(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from act_assets.training import supervised

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "save_model", full)
        with pytest.raises(TrainingError, match=r"(?s)could not write what it keeps.*free space"):
            small.train(small.VARIANTS["sft"], tmp_path)
    shutil.rmtree(tmp_path / "out")
    facts, _ = small.train(small.VARIANTS["sft"], tmp_path)
    assert facts["steps"] == 10
