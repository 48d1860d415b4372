"""Training processes: what went wrong is said, and nothing of them outlives whoever waits for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from act_assets.errors import TrainingError
from resources import compute
from resources.llm.service import CallSettings

# A group leader that starts a grandchild; the grandchild shrugs off SIGTERM. Both write their pid when they are up.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, str(folder), "grandchild"])
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"{len(sys.argv)}.pid.part").write_text(str(os.getpid()))
(folder / f"{len(sys.argv)}.pid.part").rename(folder / f"{len(sys.argv)}.pid")
time.sleep(60)
"""


def eventually(holds: Callable[[], object], within_s: float = 20.0) -> bool:
    """Whether something comes to hold in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(folder: Path) -> list[int]:
    """The pids of those of FAMILY that are up."""
    return [int(p.read_text()) for p in folder.glob("*.pid")]


class Interrupted(Exception):
    pass


def test_an_interrupted_wait_ends_the_child_and_its_grandchild(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    def when_both_are_up() -> None:
        eventually(lambda: len(family(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGUSR1)

    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    before = signal.signal(signal.SIGUSR1, interrupt)
    watcher = threading.Thread(target=when_both_are_up)
    watcher.start()
    try:
        with pytest.raises(Interrupted):
            compute.run_process_group([sys.executable, str(script), str(tmp_path)], {})
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(family(tmp_path)) == 2
    assert eventually(lambda: not any(map(alive, family(tmp_path))), within_s=5)


def test_what_a_child_leaves_running_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    leaves = "while not (folder / '3.pid').exists(): time.sleep(0.01)\nsys.exit(4)"
    script.write_text(FAMILY.replace("time.sleep(60)", f"if len(sys.argv) == 3: time.sleep(60)\n{leaves}"))
    assert compute.run_process_group([sys.executable, str(script), str(tmp_path)], {}) == 4
    assert eventually(lambda: not alive(int((tmp_path / "3.pid").read_text())), within_s=5)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "job.json"


def training_is(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Puts a Python program in the place of the training program; its argument is the job."""
    monkeypatch.setattr(compute, "training_command", lambda job: [sys.executable, "-c", code, str(job)])


def test_a_job_that_ends_well_raises_nothing(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    training_is(monkeypatch, "")
    compute.launch_locally(job)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_killed_job_is_an_error_that_names_the_signal(monkeypatch: pytest.MonkeyPatch, job: Path, name: str) -> None:
    training_is(monkeypatch, f"import os, signal; os.kill(os.getpid(), signal.{name})")
    with pytest.raises(TrainingError, match=name) as caught:
        compute.launch_locally(job)
    assert caught.value.where == str(job)
    assert "run again" in caught.value.todo


def test_a_job_that_says_nothing_is_an_error_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    training_is(monkeypatch, "raise SystemExit(7)")
    with pytest.raises(TrainingError, match="ended with exit code 7"):
        compute.launch_locally(job)


def test_a_job_runs_with_the_environment_given_in_a_group_of_its_own(
    monkeypatch: pytest.MonkeyPatch, job: Path
) -> None:
    job.parent.mkdir()
    say = "{**os.environ, 'leads': str(os.getpgrp() == os.getpid())}"
    training_is(monkeypatch, f"import json, os, sys; json.dump({say}, open(sys.argv[1], 'w'))")
    monkeypatch.setenv("INHERITED", "yes")
    compute.launch_locally(job, {"GIVEN": "too"})
    seen = json.loads(job.read_text())
    assert (seen["INHERITED"], seen["GIVEN"], seen["leads"]) == ("yes", "too", "True")
    assert seen[compute.LAUNCHED] == str(os.getpid())


def test_the_training_programs_own_message_is_passed_on(
    tmp_path: Path, job: Path, capfd: pytest.CaptureFixture
) -> None:
    """The real program, whose job names inputs that are not there."""
    from act_assets.pipeline import STAGES
    from act_assets.profile import load_profile

    job.parent.mkdir()
    missing = tmp_path / "missing"
    job.write_text(
        json.dumps(
            {
                "stage": "act_checkpoint",
                "task": "pacific",
                "train_size": 50,
                "seed": 0,
                "profile": load_profile("laptop").model_dump(mode="json"),
                "inputs": {name: str(missing) for name in STAGES["act_checkpoint"].inputs},
                "prompts_dir": "",
                "calls": CallSettings(tmp_path / "memo").to_json(),
                "folder": str(tmp_path),
            }
        )
    )
    with pytest.raises(TrainingError, match=r"cannot read \w+\.parquet") as caught:
        compute.launch_locally(job)
    assert f"where: {missing}" in str(caught.value)
    assert "to do: delete the artifact's folder" in str(caught.value)
    assert "exit code" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "who launched it reports the error, once"


FAMILY_THAT_ENDS_WITH_ITS_PARENT = f"""
import os, sys
from act_assets.training.__main__ import end_with_parent
if len(sys.argv) == 2:
    end_with_parent(os.getppid(), 0.05)
{FAMILY}"""
RUN = "import sys; from resources.compute import run_process_group; run_process_group(sys.argv[1:], {})"
LAUNCH = "import pathlib, sys; from resources.compute import launch_locally; launch_locally(pathlib.Path(sys.argv[1]))"


def test_a_whole_process_group_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY_THAT_ENDS_WITH_ITS_PARENT)
    parent = subprocess.Popen([sys.executable, "-c", RUN, sys.executable, str(script), str(tmp_path)])
    try:
        assert eventually(lambda: len(family(tmp_path)) == 2)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not any(map(alive, family(tmp_path))), within_s=5)


def test_a_training_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The real program, kept busy by a job file that is a pipe with nothing in it yet."""
    pipe = tmp_path / "job.json"
    os.mkfifo(pipe)
    parent = subprocess.Popen([sys.executable, "-c", LAUNCH, str(pipe)])

    def reads_the_job() -> bool:
        try:
            os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # stays open: the reader waits on
        except OSError:
            return False
        return True

    try:
        assert eventually(reads_the_job, within_s=60)
        (training,) = psutil.Process(parent.pid).children()
        assert os.getpgid(training.pid) == training.pid
        time.sleep(0.2)
        assert alive(training.pid)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not alive(training.pid), within_s=5)
