"""A vLLM server as a child process on 127.0.0.1, ended with whoever started it.

    server = VllmServer.start(serve_command(...), logs / "vllm.txt")      # returns when /health answers
    server.post("/v1/completions", {...})
    server.close()

Between the server and its owner stands a guard (this module as a program): it leads a process group, and ends the
whole group when its standard input closes, which it does however the owner dies.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.compute import end_group, free_port, last_lines
from resources.errors import TrainingError

HOST = "127.0.0.1"
START_LIMIT_S = 1200.0  # reading 7B weights from a slow disk and compiling take minutes
ANSWER_LIMIT_S = 900.0  # of one request, the wait for its turn included
GRACE_S = 10.0
CHECK_EVERY_S = 0.25
RESUME = "run again: training resumes from the last saved state"
# vLLM reports its use to its makers unless told not to.
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass
class VllmServer:
    """Where a server answers; `process` is its guard, None in processes that only ask."""

    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        limit_s: float = START_LIMIT_S,
    ) -> VllmServer:
        """Runs `command` with --host and --port added, and waits for it. Raises TrainingError, naming the log."""
        port = free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, *command, "--host", HOST, "--port", str(port)],
                env={**os.environ, **QUIET, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = cls(port, log, process)
        try:
            until = time.monotonic() + limit_s
            while True:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if server._ask("GET", "/health", None, 5.0)[0] == 200:
                        return server
                if (ended := server._ended()) is not None:
                    raise server._failed(
                        f"{ended} before it was ready",
                        "if memory ran out, change engine.memory_share or engine.devices in the profile",
                    )
                if time.monotonic() > until:
                    raise server._failed(f"was not ready after {limit_s:.0f} s")
                time.sleep(CHECK_EVERY_S)
        except BaseException:
            server.close()
            raise

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The server's answer: JSON where it is JSON, else text. Raises TrainingError where it has none or refuses."""
        try:
            status, content = self._ask("POST", path, json.dumps(body).encode(), ANSWER_LIMIT_S)
        except (OSError, http.client.HTTPException) as error:
            ended = self._ended(patience_s=2.0)
            raise self._failed(ended or f"does not answer {path} ({type(error).__name__}: {error})") from error
        text = content.decode("utf-8", "replace")
        if status != 200:
            raise self._failed(f"answered {path} with status {status}: {text[:500]}", quoting=False)
        try:
            return json.loads(text)
        except ValueError:
            return text

    def _ask(self, method: str, path: str, body: bytes | None, limit_s: float) -> tuple[int, bytes]:
        """One request on a connection of its own: proxies and idle connections have no part in it."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=limit_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _ended(self, patience_s: float = 0.0) -> str | None:
        """How the server ended; None while it runs. A connection may break a little before its process is gone."""
        if self.process is None:
            return None
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None
        return (
            f"was ended by signal {signal.Signals(code - 128).name}" if code > 128 else f"ended with exit code {code}"
        )

    def _failed(self, how: str, todo: str = RESUME, *, quoting: bool = True) -> TrainingError:
        said = last_lines(self.log) if quoting else ""
        what = f"the vLLM server {how}" + (f"; its last words:\n{said}" if said else "")
        return TrainingError(what, where=str(self.log), todo=f"read the log; {todo}")

    def close(self) -> None:
        """Ends the server and all that it started: SIGTERM, then SIGKILL. Safe to call again."""
        if self.process is None:
            return
        process, self.process = self.process, None
        end_group(process, GRACE_S)
        if process.stdin is not None:
            process.stdin.close()


def _guard(command: Sequence[str]) -> int:
    """Runs the server; ends this process group when the owner is gone. Returns a shell's exit code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server gets it too, and may end in its own time
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while sys.stdin.buffer.read(1024):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(_guard(sys.argv[1:]))  # the watching thread holds standard input, which a usual end would wait for
