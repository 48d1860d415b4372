"""A training that is killed resumes where it was: the same losses, the same rollouts, the same weights."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from act_assets.training.act import SelfTraining
from act_assets.training.checkpoint import StateStore
from resources.errors import RoleError, TrainingError

SMALL = Path(__file__).resolve().parent / "small_training.py"


def _content(folder: Path) -> dict[str, str]:
    """The hash of everything that a training leaves, its logs apart."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "logs" not in p.relative_to(folder).parts]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _killed(variant: str, folder: Path, after: int) -> None:
    command = [sys.executable, str(SMALL), variant, str(folder), str(after)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    shutil.rmtree(folder / "out")  # as the artifact store does with what was half built


@pytest.mark.parametrize("variant", ["sft", "sft-lora", "act", "act-ahead", "act-lora"])
def test_a_killed_training_resumes_to_the_same_losses_and_weights(small: Any, variant: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    _, expected = small.train(small.VARIANTS[variant], tmp_path / "whole")
    updates = expected[-1].step
    first = random.Random(variant).randrange(3, updates - 2)
    _killed(variant, tmp_path / "killed", first)
    saved = StateStore(next((tmp_path / "killed" / "work").rglob("states")), 2, "").latest()
    assert saved is not None
    assert 0 < saved.step <= first
    if variant == "act":
        _killed(variant, tmp_path / "killed", first - saved.step + 1)
    _, points = small.train(small.VARIANTS[variant], tmp_path / "killed")
    assert points == expected
    assert _content(tmp_path / "killed" / "out") == _content(tmp_path / "whole" / "out")
    assert any(name.endswith("model.safetensors") for name in _content(tmp_path / "whole" / "out"))


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
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    _, expected = small.train(small.VARIANTS["act"], tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    _killed("act", tmp_path / "killed", 7)
    states = tmp_path / "killed" / "work" / "states"
    newest = sorted(states.glob("step-*"))[-1]
    content = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    _, points = small.train(small.VARIANTS["act"], tmp_path / "killed")
    said = capsys.readouterr().err
    assert f"not whole: {newest.name}" in said
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


def test_a_vanished_endpoint_ends_with_a_state_to_resume_from(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    _, expected = small.train(small.VARIANTS["act"], tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    _vanish_at_the_fourth_group(monkeypatch)
    with pytest.raises(RoleError, match="simulated user"):
        small.train(small.VARIANTS["act"], tmp_path / "cut")
    saved = StateStore(tmp_path / "cut" / "work" / "states", 2, "").latest()
    assert saved is not None
    assert saved.step == 3, "nothing that was trained is lost"
    shutil.rmtree(tmp_path / "cut" / "out")
    _, points = small.train(small.VARIANTS["act"], tmp_path / "cut")
    assert points == expected


def test_with_a_lag_a_vanished_endpoint_costs_updates_and_not_exactness(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    _, expected = small.train(small.VARIANTS["act-ahead"], tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    _vanish_at_the_fourth_group(monkeypatch)
    with pytest.raises(RoleError):
        small.train(small.VARIANTS["act-ahead"], tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "out")
    _, points = small.train(small.VARIANTS["act-ahead"], tmp_path / "cut")
    assert points == expected


def test_a_disk_that_is_full_when_a_model_is_kept_is_said(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from act_assets.training import supervised

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "save_model", full)
        with pytest.raises(TrainingError, match=r"(?s)could not write what it keeps.*free space"):
            small.train(small.VARIANTS["sft"], tmp_path)
    shutil.rmtree(tmp_path / "out")
    facts, _ = small.train(small.VARIANTS["sft"], tmp_path)
    assert facts["steps"] == 10
