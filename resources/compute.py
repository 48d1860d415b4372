"""Where training runs: child processes on this machine, ended as a whole with the run that asked for them.

`local` is one process; `accelerate` starts `processes` of them under one of the configurations in `launchers/`. Every
process carries a mark in its environment, so that all of a launch are found again whatever groups they have formed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from resources.artifacts import process_is_alive
from resources.devices import visible_devices
from resources.errors import TrainingError
from resources.settings import Compute

GRACE_S = 10.0
TICK_S = 1.0
PATIENCE = timedelta(hours=12)  # of processes that wait for each other
LAUNCHED = "ACT_LAUNCHED"  # the pid of the process that launched a training, reports its errors and outlives it
MEETING = "ACT_MEETING_PORT"  # where the ranks of a launch meet, on 127.0.0.1
MARK = "ACT_LAUNCH_MARK"  # the same in all processes of one launch, and in no other
LAUNCHERS = Path(__file__).resolve().parent / "launchers"
PROJECT = LAUNCHERS.parent.parent
PROGRAM = ("-m", "act_assets.pipeline.train")
ONE_PROCESS = ("base_policy",)  # small work, or none: several processes would write the same files


def training_command(compute: Compute, job: Path, port: int) -> list[str]:
    """The command of one training job. `port`, on 127.0.0.1, is where several processes meet.

    The precision is not given here: the training program states it, for DeepSpeed in a way that keeps fp32 weights.
    """
    if compute.launcher == "local":
        return [sys.executable, *PROGRAM, str(job)]
    deepspeed = LAUNCHERS / f"{compute.strategy}.json"
    return [
        sys.executable,
        *("-m", "accelerate.commands.launch"),
        *("--config_file", str(LAUNCHERS / f"{compute.strategy}.yaml")),
        *(("--deepspeed_config_file", str(deepspeed)) if deepspeed.is_file() else ()),
        *("--num_processes", str(compute.processes)),
        *("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) // compute.processes))),
        *("--mixed_precision", "no"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
        *("--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file"),  # a file: its TCP store listens on every address
        *PROGRAM,
        str(job),
    ]


def launch(
    compute: Compute,
    job: Path,
    environment: Mapping[str, str] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> None:
    """Runs a training job to its end; `on_tick` is called about once a second meanwhile, in the waiting thread.

    Raises TrainingError with the job's own message where it failed: that of the process that failed first, from
    `error.txt` or `error-rank-N.txt` beside the job.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):  # the program says what is wrong with the job
        if job.is_file() and json.loads(job.read_text(encoding="utf-8"))["stage"] in ONE_PROCESS:
            compute = Compute()
    for stale in _error_files(job):
        stale.unlink()
    port = free_port()
    own = {**launch_environment(compute, port), **(environment or {}), LAUNCHED: str(os.getpid())}
    several = compute.launcher == "accelerate" and not os.environ.get("ACT_DEBUG")
    log = job.parent / "launcher.txt" if several else None  # what the launcher and its ranks say to people
    code = run_process_group(training_command(compute, job, port), own, on_tick, log)
    if code == 0:
        return
    if messages := _error_files(job):
        raise TrainingError(messages[0].read_text(encoding="utf-8"))
    how = f"was ended by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    said = last_lines(log)
    raise TrainingError(
        f"the training process {how}" + (f"; its last words:\n{said}" if said else ""),
        where=str(job),
        todo="run again: finished artifacts are used again. If memory ran out, lower compute.micro_batch_tokens in the "
        "profile",
    )


def launch_environment(compute: Compute, port: int) -> dict[str, str]:
    """What the processes of a launch find in their environment, beside what they inherit.

    Several processes use GPUs where there is one for each of them, and otherwise the CPU; they speak to each other on
    the loopback interface alone.
    """
    if compute.launcher == "local":
        # The first GPU alone: a job of one process uses one, and libraries would spread over all they see.
        first = {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_VISIBLE_DEVICES": "0"}
        # An installed DeepSpeed complains where it finds no GPU, unless it is told.
        return first if visible_devices() else {**first, "DS_ACCELERATOR": "cpu"}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    found = {
        MEETING: str(port),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # it, too, would listen on every address
    }
    if len(visible_devices()) < compute.processes:
        found |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return found


def last_lines(log: Path | None, lines: int = 12) -> str:
    if log is None or not log.is_file():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _error_files(job: Path) -> list[Path]:
    """What the processes of a job left as their errors, the first to fail first: the others fail because of it."""
    return sorted(job.parent.glob("error*.txt"), key=lambda p: (p.stat().st_mtime_ns, p.name))


def run_process_group(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_tick: Callable[[], None] | None = None,
    log: Path | None = None,
) -> int:
    """Runs a command in a new process group and returns its exit code; its output goes to `log` where one is given.

    Whatever ends the wait (the command's end, an interrupt of the run, an error, also one of `on_tick`) ends everything
    the command has started: SIGTERM, then SIGKILL.
    """
    mark = uuid.uuid4().hex
    marked = {**os.environ, **environment, MARK: mark}
    with contextlib.nullcontext() if log is None else log.open("wb") as output:
        process = subprocess.Popen(
            command, env=marked, cwd=PROJECT, start_new_session=True, stdout=output, stderr=output
        )
    try:
        while True:
            try:
                return process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                if on_tick is not None:
                    on_tick()
    finally:
        try:
            end_group(process)
        finally:
            end_marked(mark)


def end_group(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """Ends a process that leads a group, and all of the group: SIGTERM, then SIGKILL."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            return
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            continue


def end_marked(mark: str) -> None:
    """SIGKILL to every process of a launch but this one; the ranks of a launcher lead groups of their own.

    Where there is no /proc, only process groups end.
    """
    wanted = f"{MARK}={mark}".encode()
    for _ in range(5):  # one that was just forked may be missed once
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            # Others' environments cannot be read; a process that only waits to be collected has none.
            with contextlib.suppress(OSError):
                if process.name != str(os.getpid()) and wanted in (process / "environ").read_bytes().split(b"\0"):
                    found = True
                    os.kill(int(process.name), signal.SIGKILL)
        if not found:
            return
        time.sleep(0.01)


def end_with_launcher(check_every_s: float = 0.5) -> None:
    """Called by a training process: ends all processes of its launch once the process that launched it is gone.

    That is the process named by LAUNCHED, or, between them, this one's parent (the agent of several ranks). Does
    nothing in a process that was started by hand.
    """
    if LAUNCHED not in os.environ:
        return
    launcher, parent, mark = int(os.environ[LAUNCHED]), os.getppid(), os.environ.get(MARK)

    def watch() -> None:
        while os.getppid() == parent and process_is_alive(launcher):
            time.sleep(check_every_s)
        if mark is not None:
            end_marked(mark)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-launcher").start()


def join_processes() -> None:
    """Called by a training process before it makes an Accelerator: joins the ranks of its launch on 127.0.0.1.

    torch's own rendezvous would listen on every interface of the machine. Without a GPU, accelerate knows only DDP:
    here it is told of the ranks first, so that DeepSpeed and FSDP2 (gloo) run on a CPU, too. Nothing happens in a
    single process.
    """
    if MEETING not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    import torch
    import torch.distributed as dist

    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", MEETING))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    listener = socket.create_server(("127.0.0.1", port)).detach() if rank == 0 else None
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, master_listen_fd=listener)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait while the first one writes and verifies a state, or while one waits for a slow endpoint.
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
    )
    if not on_gpu:
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        state = PartialState(cpu=True)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.distributed_type = DistributedType.MULTI_GPU  # of which it makes FSDP; the device stays the CPU
