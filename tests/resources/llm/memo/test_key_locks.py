"""A question is asked by one process at a time, and whoever waits is told when it may go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scripted import Provider, asking, texts

from resources.llm.client import LLM, Memory
from resources.llm.memo import key_locks as key_locks_module
from resources.llm.memo.key_locks import KeyLocks
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import key_of, question_of

pytestmark = pytest.mark.integration

A, B, C = map(key_of, "abc")

# Another process: for each line `acquire KEY` or `release KEY` does so, and prints what came of it.
OTHER = """
import sys
from pathlib import Path
from resources.llm.memo.key_locks import KeyLocks
locks = KeyLocks(Path(sys.argv[1]))
for line in sys.stdin:
    what, key = line.split()
    print(getattr(locks, what)(key), flush=True)
"""


class Other:
    """Another process that asks questions."""

    def __init__(self, path: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", OTHER, str(path)], text=True, **pipes)

    def __call__(self, what: str, key: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{what} {key}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    process = Other(tmp_path / "flights.lock")
    yield process
    process.kill()


def test_a_question_is_asked_by_one_process_at_a_time(tmp_path: Path, other: Other) -> None:
    locks = KeyLocks(tmp_path / "flights.lock")
    assert locks.acquire(A) and other("acquire", B) == "True"
    assert other("acquire", A) == "False" and not locks.acquire(B) and locks.acquire(C)
    locks.release(A)
    assert other("acquire", A) == "True" and not locks.acquire(A)
    other("release", B)
    assert locks.acquire(B) and other("acquire", C) == "False"
    # The locks are of the file, not of what is in it.
    assert (tmp_path / "flights.lock").stat().st_size == 0


def test_a_killed_process_blocks_nobody(tmp_path: Path, other: Other) -> None:
    locks = KeyLocks(tmp_path / "flights.lock")
    assert other("acquire", A) == "True" and not locks.acquire(A)
    other.kill()
    assert locks.acquire(A)


def test_a_file_system_without_locks_is_an_error_and_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = KeyLocks(tmp_path / "flights.lock")

    def lockf(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(key_locks_module.fcntl, "lockf", lockf)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        locks.acquire(A)


@pytest.mark.parametrize("how", ["released", "killed"])
def test_whoever_waits_for_another_process_asks_when_that_one_is_done(memo: Memo, how: str) -> None:
    process, provider = Other(memo.folder / "flights.lock"), Provider()
    [key] = [key_of(question_of(provider.name, provider.base_url, request)) for request in asking("a")]
    assert process("acquire", key) == "True"
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(LLM(provider, memory=Memory(memo)).complete_all, asking("a", "b"))
        time.sleep(0.3)
        assert provider.asked == ["b"] and not waiting.done()
        if how == "killed":
            process.kill()
        else:
            process("release", key)
        assert texts(waiting.result(20)) == ["a: 2", "b: 1"]
    assert how == "killed" or process("acquire", key) == "True", "asking has left no lock"
    process.kill()
