"""A question is asked by one process at a time, and whoever waits is told when it may go on."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.llm.memo import key_locks as flights_module
from resources.llm.memo.key_locks import KeyLocks
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import key_of

A, B, C = map(key_of, "abc")

# Another process: for each line `begin KEY` or `end KEY` does so, and prints what came of it.
OTHER = """
import sys
from pathlib import Path
from resources.llm.memo.key_locks import KeyLocks
flights = KeyLocks(Path(sys.argv[1]))
for line in sys.stdin:
    what, key = line.split()
    print(getattr(flights, what)(key), flush=True)
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
    flights = KeyLocks(tmp_path / "flights.lock")
    assert flights.acquire(A) and other("begin", B) == "True"
    assert other("begin", A) == "False" and not flights.acquire(B) and flights.acquire(C)
    flights.release(A)
    assert other("begin", A) == "True" and not flights.acquire(A)
    other("end", B)
    assert flights.acquire(B) and other("begin", C) == "False"
    # The locks are of the file, not of what is in it.
    assert (tmp_path / "flights.lock").stat().st_size == 0


def test_a_killed_process_blocks_nobody(tmp_path: Path, other: Other) -> None:
    flights = KeyLocks(tmp_path / "flights.lock")
    assert other("begin", A) == "True" and not flights.acquire(A)
    other.kill()
    assert flights.acquire(A)


def test_a_file_system_without_locks_is_an_error_and_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flights = KeyLocks(tmp_path / "flights.lock")

    def lockf(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(flights_module.fcntl, "lockf", lockf)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        flights.acquire(A)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


@pytest.mark.parametrize("how", ["answered", "killed"])
def test_whoever_waits_goes_on_when_the_other_process_is_done(tmp_path: Path, other: Other, how: str) -> None:
    memo = Memo(tmp_path)
    assert [other("begin", key) for key in (A, B)] == ["True", "True"]

    async def main() -> None:
        waiting = [asyncio.create_task(memo.changed(key)) for key in (A, A, B)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        if how == "killed":
            other.kill()
        else:
            other("end", A)
            await asyncio.wait(waiting[:2])
            assert other("begin", A) == "True"  # waiting has left no lock
            other("end", A)
            await asyncio.sleep(0.1)
            assert not waiting[2].done()
            other("end", B)
        await asyncio.gather(*waiting)
        await memo.changed(A)  # nobody asks it: at once
        assert not memo._waiting

    run(main)


def test_whoever_gave_up_waiting_does_not_end_the_lock_of_this_process(tmp_path: Path, other: Other) -> None:
    memo = Memo(tmp_path)
    assert [other("begin", key) for key in (A, B)] == ["True", "True"]

    async def main() -> None:
        given_up = [asyncio.create_task(memo.changed(A)) for _ in range(2)]
        waiting = asyncio.create_task(memo.changed(B))  # keeps this process looking
        await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        other("end", A)
        assert memo.key_locks.acquire(A)  # another batch asks it
        await asyncio.sleep(0.4)
        assert other("begin", A) == "False"
        other("end", B)
        await waiting

    run(main)
