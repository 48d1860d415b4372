"""An answer that was kept is on disk, ends up in the database, and is counted once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import make_answer

from resources.errors import ActError
from resources.llm.memo import memo as memo_module
from resources.llm.memo.journal import journals, read_journal, to_line
from resources.llm.memo.memo import Memo, close_memos, memo_at
from resources.llm.memo.records import Use

pytestmark = pytest.mark.integration


@pytest.fixture
def memo(tmp_path: Path) -> Memo:
    return Memo(tmp_path)


class Disk:
    """Stands for fdatasync: counts, and lets go on only when `free` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.free = threading.Event()
        self.free.set()
        self.full = False
        monkeypatch.setattr(os, "fdatasync", self, raising=False)

    def __call__(self, descriptor: int) -> None:
        self.syncs += 1
        assert self.free.wait(10)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_keep_returns_when_the_answer_is_in_the_file_and_synced(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    async def main() -> None:
        for number in range(3):
            disk.free.clear()
            answer = make_answer(f"{number}")
            keeping = asyncio.create_task(memo.keep(answer))
            while disk.syncs == number:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert not keeping.done()  # written perhaps, but not on disk
            disk.free.set()
            await keeping
            [path] = journals(memo.journal_folder)
            assert path.read_bytes().endswith(to_line(answer))
            assert disk.syncs == number + 1

    asyncio.run(main())


def test_answers_that_come_in_together_share_a_sync(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    async def main() -> None:
        disk.free.clear()
        first = asyncio.create_task(memo.keep(make_answer("first")))
        while not disk.syncs:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(memo.keep(make_answer(f"{i}"))) for i in range(200)]
        noted = asyncio.create_task(memo.keep(Use(id="noted")))
        await asyncio.sleep(0.01)
        disk.free.set()
        await asyncio.gather(first, *others, noted)

    asyncio.run(main())
    assert disk.syncs == 2
    [path] = journals(memo.journal_folder)
    records, _, damage = read_journal(path)
    assert len(records) == 202 and not damage


def test_a_full_disk_is_told_to_everybody_who_waits_and_the_next_answer_is_kept(
    memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    async def main() -> None:
        await memo.keep(make_answer("before"))
        disk.full = True
        failed = await asyncio.gather(*(memo.keep(make_answer(f"{i}")) for i in range(5)), return_exceptions=True)
        assert all(isinstance(error, ActError) and "No space left" in str(error) for error in failed)
        assert all(memo.unfolded(f"{i}") is None for i in range(5))  # nobody is told what is not on disk
        disk.full = False
        await memo.keep(make_answer("after"))

    asyncio.run(main())
    [path] = journals(memo.journal_folder)
    assert path.read_bytes() == to_line(make_answer("before")) + to_line(make_answer("after"))


def test_whoever_stops_waiting_loses_nothing(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    async def main() -> None:
        disk.free.clear()
        tasks = [asyncio.create_task(memo.keep(make_answer(f"{i}"))) for i in range(4)]
        await asyncio.sleep(0.01)
        for task in tasks[:2]:
            task.cancel()
        disk.free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task.cancelled() for task in tasks] == [True, True, False, False]
        await memo.keep(make_answer("later"))

    asyncio.run(main())
    [path] = journals(memo.journal_folder)
    assert {record.key for record in read_journal(path)[0]} == {"0", "1", "2", "3", "later"}


# --- folding ---------------------------------------------------------------------------------------------------


def test_a_full_journal_is_folded_while_the_next_one_is_written(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo_module, "FOLD_RECORDS", 10)
    memo.append([make_answer(f"{i}") for i in range(9)])
    assert memo.database.look_up(["0"]) == {}
    memo.append([make_answer("9"), make_answer("10")])
    memo.append([make_answer("11")])
    deadline = time.monotonic() + 20
    while len(memo.database.look_up([f"{i}" for i in range(11)])) < 11:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert memo.database.look_up(["11"]) == {}
    memo.close()
    assert len(memo.database.look_up([f"{i}" for i in range(12)])) == 12 and not journals(memo.journal_folder)


def test_a_journal_that_others_fold_as_soon_as_it_is_ended_is_no_trouble(
    memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "FOLD_RECORDS", 1)
    other, seal = Memo(memo.folder), memo._journal.seal

    def sealed() -> None:
        seal()
        other.fold()

    monkeypatch.setattr(memo._journal, "seal", sealed)
    for number in range(3):
        memo.append([make_answer(f"{number}")])
    assert not journals(memo.journal_folder)
    assert len(memo.database.look_up(["0", "1", "2"])) == 3


def test_a_torn_journal_is_reported_and_a_damaged_one_is_kept_too(memo: Memo, caplog: pytest.LogCaptureFixture) -> None:
    lines = [to_line(make_answer(key)) for key in "abcd"]
    (memo.journal_folder / "1.jsonl").write_bytes(lines[0] + lines[1][:-1])
    (memo.journal_folder / "2.jsonl").write_bytes(lines[2] + b"damaged\n" + lines[3])
    memo.fold()
    assert f"1.jsonl, byte {len(lines[0])}: a torn last line" in caplog.text
    assert f"2.jsonl, byte {len(lines[2])}: a damaged line" in caplog.text
    assert [p.name for p in memo.journal_folder.iterdir()] == ["2.jsonl.damaged"]
    assert set(memo.database.look_up(list("abcd"))) == {"a", "c", "d"}


PROGRAM = """
import os, sys
from pathlib import Path
from resources.llm.memo.journal import from_line
from resources.llm.memo.memo import memo_at
folder, line = Path(sys.argv[1]), sys.stdin.buffer.readline()
memo_at(folder).append([from_line(line)])
{end}
"""


@pytest.mark.parametrize(
    ("end", "code", "folded"),
    [
        ("pass", 0, True),
        ("sys.exit(3)", 3, True),
        ("raise RuntimeError", 1, True),
        ("os._exit(4)", 4, False),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, False),
    ],
)
def test_a_process_folds_at_its_end_and_a_killed_one_is_folded_by_the_next(
    tmp_path: Path, end: str, code: int, folded: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end=end), str(tmp_path)]
    ended = subprocess.run(command, input=to_line(make_answer("a")), capture_output=True, check=False)
    assert ended.returncode == code
    assert len(journals(tmp_path / "journal")) == (0 if folded else 1)
    assert Memo(tmp_path).database.look_up(["a"]).keys() == {"a"} and not journals(tmp_path / "journal")


def test_a_process_has_one_memo_of_a_folder_until_it_closes_it(tmp_path: Path) -> None:
    first = memo_at(tmp_path / "new" / "memo")
    assert memo_at(tmp_path / "other") is not first
    assert memo_at(tmp_path / "other" / ".." / "new" / "memo") is first
    first.append([make_answer("a")])
    close_memos()
    assert not journals(first.journal_folder) and first.database.look_up(["a"])
    second = memo_at(tmp_path / "new" / "memo")
    assert second is not first
    close_memos()


# --- what was spent --------------------------------------------------------------------------------------------


def test_what_was_paid_under_a_budget_is_counted_wherever_it_is(memo: Memo) -> None:
    other = Memo(memo.folder)
    assert memo.spent("budget-1") == (0.0, 0)
    failed = Use(budget="budget-1", failures=1, lost_calls=2, lost_prompt_tokens=3, lost_usd=0.25)
    memo.database.fold([make_answer("a", 1.0), make_answer("a", 2.0)], [failed])  # one of them is history
    other.append([make_answer("b", cost_usd=None), Use(budget="budget-1", hits=5, saved_usd=9.0)])
    memo.append([make_answer("c"), make_answer("d", budget="budget-2"), Use(budget="budget-1", failures=2)])
    for _ in range(2):
        assert memo.spent("budget-1") == other.spent("budget-1") == (1.75, 6)
        assert memo.spent("budget-2") == (0.5, 1) and memo.spent("") == (0.0, 0)
        memo.close()
        other.close()


@pytest.mark.parametrize("cut_off", [True, False])
def test_what_was_paid_is_counted_once_while_it_is_folded(
    memo: Memo, monkeypatch: pytest.MonkeyPatch, cut_off: bool
) -> None:
    memo.database.fold([make_answer("old")], [])
    writer = Memo(memo.folder)
    writer.append([make_answer(f"{i}") for i in range(3)])
    writer._seal()
    if cut_off:  # in the database and in the journal

        def killed() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(writer.database, "changed", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.fold()
        assert len(journals(memo.journal_folder)) == 1
    else:  # by another process, after the database was asked and before the journals are read
        query = memo.database.query

        def asked(*given: Any) -> Sequence[Any]:
            rows = query(*given)
            writer.fold()
            return rows

        monkeypatch.setattr(memo.database, "query", asked)
    assert memo.spent("budget-1") == (2.0, 4)
