"""Training processes: what went wrong is said, and nothing of them outlives whoever waits for them."""

from __future__ import annotations

import itertools
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

from resources import compute
from resources.artifacts import process_is_alive
from resources.devices import Device
from resources.errors import TrainingError
from resources.llm.service import CallSettings
from resources.settings import Compute

pytestmark = pytest.mark.integration

ALONE = Compute()

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
    assert eventually(lambda: not any(map(process_is_alive, family(tmp_path))), within_s=5)


def test_what_a_child_leaves_running_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    leaves = "while not (folder / '3.pid').exists(): time.sleep(0.01)\nsys.exit(4)"
    script.write_text(FAMILY.replace("time.sleep(60)", f"if len(sys.argv) == 3: time.sleep(60)\n{leaves}"))
    assert compute.run_process_group([sys.executable, str(script), str(tmp_path)], {}) == 4
    assert eventually(lambda: not process_is_alive(int((tmp_path / "3.pid").read_text())), within_s=5)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "job.json"


def training_is(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Puts a Python program in the place of the training program; its argument is the job."""
    monkeypatch.setattr(compute, "training_command", lambda compute, job, port: [sys.executable, "-c", code, str(job)])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit(7)", "exit code 7"),
    ],
)
def test_a_job_that_ends_without_a_word_is_an_error_that_says_how(
    monkeypatch: pytest.MonkeyPatch, job: Path, code: str, said: str
) -> None:
    training_is(monkeypatch, code)
    with pytest.raises(TrainingError, match=said) as caught:
        compute.launch(ALONE, job)
    assert caught.value.where == str(job)
    assert "run again" in caught.value.todo


def test_a_job_runs_with_the_environment_given_in_a_group_of_its_own(
    monkeypatch: pytest.MonkeyPatch, job: Path
) -> None:
    job.parent.mkdir()
    say = "{**os.environ, 'leads': str(os.getpgrp() == os.getpid())}"
    training_is(monkeypatch, f"import json, os, sys; json.dump({say}, open(sys.argv[1], 'w'))")
    monkeypatch.setenv("INHERITED", "yes")
    compute.launch(ALONE, job, {"GIVEN": "too"})
    seen = json.loads(job.read_text())
    assert (seen["INHERITED"], seen["GIVEN"], seen["leads"]) == ("yes", "too", "True")
    assert seen[compute.LAUNCHED] == str(os.getpid())


def test_the_training_programs_own_message_is_passed_on(
    tmp_path: Path, job: Path, capfd: pytest.CaptureFixture
) -> None:
    """The real program, whose job names inputs that are not there."""
    from act_assets.pipeline.graph import STAGES
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
                "store": [str(tmp_path), "a run"],
                "inputs": {name: str(missing) for name in STAGES["act_checkpoint"].inputs},
                "prompts_dir": "",
                "calls": CallSettings(tmp_path / "memo").to_json(),
                "folder": str(tmp_path),
                "work": str(tmp_path / "work"),
            }
        )
    )
    with pytest.raises(TrainingError, match="damaged manifest") as caught:
        compute.launch(ALONE, job)
    assert f"where: {missing}" in str(caught.value)
    assert "to do: delete this folder" in str(caught.value)
    assert "exit code" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "who launched it reports the error, once"


FAMILY_THAT_ENDS_WITH_ITS_PARENT = f"""
import os, sys
from resources.compute import LAUNCHED, end_with_launcher
if len(sys.argv) == 2:
    os.environ[LAUNCHED] = str(os.getppid())
    end_with_launcher(0.05)
{FAMILY}"""
RUN = "import sys; from resources.compute import run_process_group; run_process_group(sys.argv[1:], {})"
LAUNCH = """
import json, pathlib, sys
from resources.settings import Compute
from resources import compute
if len(sys.argv) > 3:
    compute.PROGRAM = (sys.argv[3],)
compute.launch(Compute(**json.loads(sys.argv[2])), pathlib.Path(sys.argv[1]))
"""


def test_a_whole_process_group_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY_THAT_ENDS_WITH_ITS_PARENT)
    parent = subprocess.Popen([sys.executable, "-c", RUN, sys.executable, str(script), str(tmp_path)])
    try:
        assert eventually(lambda: len(family(tmp_path)) == 2)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not any(map(process_is_alive, family(tmp_path))), within_s=5)


def test_a_training_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The real program, kept busy by a job file that is a pipe with nothing in it yet."""
    pipe = tmp_path / "job.json"
    os.mkfifo(pipe)
    parent = subprocess.Popen([sys.executable, "-c", LAUNCH, str(pipe), "{}"])

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
        assert process_is_alive(training.pid)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not process_is_alive(training.pid), within_s=5)


def test_the_waiting_thread_ticks_while_the_job_runs_and_an_error_of_it_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, job: Path
) -> None:
    ticks: list[str] = []

    def tick() -> None:
        ticks.append(threading.current_thread().name)
        if len(ticks) > 2 and job.is_file() and job.read_text():
            raise Interrupted

    monkeypatch.setattr(compute, "TICK_S", 0.05)
    job.parent.mkdir()
    training_is(monkeypatch, "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)")
    with pytest.raises(Interrupted):
        compute.launch(ALONE, job, on_tick=tick)
    assert set(ticks) == {threading.current_thread().name}
    assert not process_is_alive(int(job.read_text()))


def test_the_message_of_the_rank_that_failed_first_is_passed_on(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    job.parent.mkdir()
    (job.parent / "error.txt").write_text("left by an earlier attempt")
    training_is(
        monkeypatch,
        "import pathlib, sys, time; logs = pathlib.Path(sys.argv[1]).parent\n"
        "assert not (logs / 'error.txt').exists()\n"
        "(logs / 'error-rank-1.txt').write_text('out of memory'); time.sleep(0.05)\n"
        "(logs / 'error.txt').write_text('connection closed by peer'); sys.exit(1)",
    )
    with pytest.raises(TrainingError, match=r"^out of memory$"):
        compute.launch(ALONE, job)


def test_one_process_sees_one_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(compute, "visible_devices", lambda: [])
    assert compute.launch_environment(ALONE, 1) == {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cpu"}
    monkeypatch.setattr(compute, "visible_devices", lambda: [object()] * 2)
    assert compute.launch_environment(ALONE, 1) == {"CUDA_VISIBLE_DEVICES": "0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert compute.launch_environment(ALONE, 1) == {}


@pytest.mark.parametrize(("gpus", "on_cpu"), [(0, True), (1, True), (2, False), (8, False)])
def test_several_processes_use_gpus_where_each_has_one(
    monkeypatch: pytest.MonkeyPatch, gpus: int, on_cpu: bool
) -> None:
    monkeypatch.setattr(compute, "visible_devices", lambda: [Device("A100", 80 * 10**9)] * gpus)
    environment = compute.launch_environment(several("zero2"), 1)
    assert (environment.get("CUDA_VISIBLE_DEVICES") == "") == on_cpu
    assert ("DS_ACCELERATOR" in environment) == on_cpu
    assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_strategy_has_its_shipped_configuration(strategy: str) -> None:
    command = compute.training_command(several(strategy), Path("job.json"), 12345)
    named = dict(itertools.pairwise(command))
    assert Path(named["--config_file"]).name == f"{strategy}.yaml"
    assert Path(named["--config_file"]).is_file()
    assert ("--deepspeed_config_file" in named) == strategy.startswith("zero")
    assert (named["--num_processes"], named["--main_process_port"]) == ("2", "12345")
    assert command[-3:] == ["-m", "act_assets.pipeline.train", "job.json"]


def test_what_the_base_policy_takes_is_done_by_one_process(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    job.parent.mkdir()
    job.write_text(json.dumps({"stage": "base_policy"}))
    asked: list[Compute] = []
    monkeypatch.setattr(compute, "training_command", lambda c, job, port: asked.append(c) or ["true"])
    compute.launch(several("zero3"), job)
    job.write_text(json.dumps({"stage": "sft_checkpoint"}))
    compute.launch(several("zero3"), job)
    assert [c.processes for c in asked] == [1, 2]


def several(strategy: str) -> Compute:
    return Compute(launcher="accelerate", strategy=strategy, processes=2)  # type: ignore[arg-type]


def ranks_are(code: str, monkeypatch: pytest.MonkeyPatch, job: Path) -> Path:
    """Puts a program in the place of the training program of several processes."""
    job.parent.mkdir(exist_ok=True)
    script = job.parent / "ranks.py"
    script.write_text(code)
    monkeypatch.setattr(compute, "PROGRAM", (str(script),))
    monkeypatch.setenv("PYTHONPATH", str(compute.PROJECT))
    return script


WAITING = """
import os, pathlib, sys, time
from resources.compute import end_with_launcher
end_with_launcher(0.05)
folder, rank = pathlib.Path(sys.argv[1]).parent, os.environ["RANK"]
print("rank", rank)
for name, pid in ((rank, os.getpid()), ("agent", os.getppid())):
    (folder / f"{name}.part{rank}").write_text(str(pid))
    (folder / f"{name}.part{rank}").rename(folder / f"{name}.pid")
while not all((folder / f"{r}.pid").exists() for r in "01"): time.sleep(0.01)
FAILS
time.sleep(60)
"""


def test_all_ranks_end_when_one_fails_and_its_message_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, job: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = "if rank == '1': (folder / 'error-rank-1.txt').write_text('rank 1 is full'); sys.exit(1)"
    ranks_are(WAITING.replace("FAILS", fails), monkeypatch, job)
    with pytest.raises(TrainingError, match=r"^rank 1 is full$"):
        compute.launch(several("ddp"), job)
    assert len(family(job.parent)) == 3
    assert not any(map(process_is_alive, family(job.parent)))
    assert capfd.readouterr().out == "", "what ranks print goes to launcher.txt"
    assert "rank 1" in (job.parent / "launcher.txt").read_text()


def test_all_ranks_end_when_the_launching_process_is_killed(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    """The ranks lead process groups of their own, so that nobody ends them by the launcher's."""
    script = ranks_are(WAITING.replace("FAILS", ""), monkeypatch, job)
    how = several("ddp").model_dump_json()
    parent = subprocess.Popen([sys.executable, "-c", LAUNCH, str(job), how, str(script)])
    try:
        assert eventually(lambda: len(family(job.parent)) == 3, within_s=60)
        assert len({os.getpgid(pid) for pid in family(job.parent)}) == 3
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not any(map(process_is_alive, family(job.parent))), within_s=5)
