"""The child processes that run SQL for execution_match.py: started on first use, reused, replaced when lost."""

from __future__ import annotations

import atexit
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resources.errors import ActError

WORKERS = 2
"""Processes at most: OURS. Each may hold a few hundred MB of results."""
GRACE_S = 2.0
"""What a worker may take beyond a query's time before it is killed: OURS, for one long step and the comparison."""
START_S = 60.0
"""What the start of a worker may take: OURS, 0.1 s on an idle machine."""

# Neither variables nor packages of the surroundings: the worker needs the standard library only.
_COMMAND = (sys.executable, "-I", "-S", str(Path(__file__).with_name("sql_worker.py")))
# Where some builds of Python find their libraries. Nothing else of the environment, such as keys, is passed on.
_ENVIRONMENT = ("LD_LIBRARY_PATH",)


class WorkerLostError(Exception):
    """The worker was too late and was killed, or died; the next request starts a new one."""

    def __init__(self, *, late: bool) -> None:
        super().__init__("late" if late else "dead")
        self.late = late


class SqlWorker:
    """One child process. Used by one thread at a time: `lent_worker` sees to that.

    After any failure, KeyboardInterrupt included, the process is ended: a reply that nobody read must not be
    taken for the next one's.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""
        self.gold_runs = 0
        """Gold queries that were run, not remembered, by all processes this worker has had."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def gold(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return the line about its gold query. Raises WorkerLostError.

        A worker that is found dead is replaced and asked once more: it may have been killed while idle.
        """
        was_running = self._process is not None
        try:
            reply = self._asked(request)
        except WorkerLostError as lost:
            if lost.late or not was_running:
                raise
            reply = self._asked(request)
        self.gold_runs += reply["ran"]
        return reply

    def receive(self, wait_s: float) -> dict[str, Any]:
        """The next line, as JSON. Raises WorkerLostError."""
        assert self._channel is not None
        try:
            deadline = time.monotonic() + wait_s
            while b"\n" not in self._received:
                self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
                more = self._channel.recv(1 << 16)
                if not more:
                    raise ConnectionResetError
                self._received += more
            line, _, self._received = self._received.partition(b"\n")
            reply: dict[str, Any] = json.loads(line)
        except BaseException as error:
            self.end()
            if isinstance(error, OSError):
                raise WorkerLostError(late=isinstance(error, TimeoutError)) from None
            raise
        if reply.get("spent"):
            self.end()
        return reply

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._channel:
            self._channel.close()
        if self._process:
            self._process.kill()
            self._process.wait()
            if self._process.stderr:
                self._process.stderr.close()
        self._process = self._channel = None
        self._received = b""

    def forget(self) -> None:
        """Drop the process in a forked child, which must not speak through its parent's channel."""
        if self._channel:
            self._channel.close()
        if self._process:
            self._process.returncode = 0  # it is the parent's to wait for
        self._process = self._channel = None

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._start()
        assert self._channel is not None
        wait_s = request["timeout_s"] + GRACE_S
        try:
            self._channel.settimeout(wait_s)
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self.end()
            raise WorkerLostError(late=False) from None
        except BaseException:
            self.end()
            raise
        return self.receive(wait_s)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = ours
        thread = "main" if threading.current_thread() is threading.main_thread() else "other"
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*_COMMAND, str(os.getpid()), thread],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,
                )
            self.receive(START_S)
        except WorkerLostError as lost:
            raise ActError(
                f"The process that runs SQL did not start{f' within {START_S:g} s' if lost.late else ''}.",
                where=str(_COMMAND[-1]),
                todo=f"see what it says: {' '.join(_COMMAND)} $$ main",
            ) from None
        except BaseException:
            self.end()
            raise


class _Pool:
    """The workers of this process: the one that was used last is lent first, so that one thread uses only one."""

    def __init__(self) -> None:
        self.workers = [SqlWorker() for _ in range(WORKERS)]
        self.free: queue.LifoQueue[SqlWorker] = queue.LifoQueue()
        for worker in reversed(self.workers):
            self.free.put(worker)


_pool = _Pool()


@contextmanager
def lent_worker() -> Iterator[SqlWorker]:
    """A worker for this thread alone; waits until one is free."""
    pool = _pool
    worker = pool.free.get()
    try:
        yield worker
    finally:
        pool.free.put(worker)


def end_workers() -> None:
    """End all processes; the next query starts new ones."""
    for worker in _pool.workers:
        worker.end()


def _start_afresh() -> None:
    global _pool
    for worker in _pool.workers:
        worker.forget()
    _pool = _Pool()


atexit.register(end_workers)
os.register_at_fork(after_in_child=_start_afresh)
