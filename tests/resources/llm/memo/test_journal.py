"""A journal loses nothing that was acknowledged, and gives out nothing that was not written whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted import make_answer

from resources.errors import ActError
from resources.llm.memo import journal as journal_module
from resources.llm.memo.journal import Journal, OtherJournals, finished, journals, read_journal, to_line
from resources.llm.memo.records import Answer, Use, key_of

A, B, C, D, E = map(key_of, "abcde")
RECORDS = [Use(id=f"use-{i}", noted_at=float(i), role="generator", hits=i) for i in range(4)]
LINES = [to_line(record) for record in RECORDS]

# Appends the records named on the command line one after the other, says so after each, and waits for a line before
# the next; "full" before a number lets files grow by no more than 50 bytes meanwhile.
WRITER = """
import resource, sys
from pathlib import Path
from resources.errors import ActError
from resources.llm.memo.journal import Journal, to_line
from resources.llm.memo.records import Answer, Use, key_of
journal = Journal(Path(sys.argv[1]))
for asked in sys.argv[2:]:
    limit = journal.size + 50 if asked.startswith("full") else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    number = int(asked.removeprefix("full"))
    try:
        journal.append([to_line(Use(id=f"use-{number}", noted_at=float(number), role="generator", hits=number))])
        print("written", flush=True)
    except ActError as error:
        print(repr(str(error)), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def writer(folder: Path, *numbers: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a journal."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), *numbers], text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_last_line_torn_at_any_byte_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    whole = LINES[0] + LINES[1]
    for cut in range(len(LINES[2])):
        path.write_bytes(whole + LINES[2][:cut])
        records, offset, damage = read_journal(path)
        assert records == RECORDS[:2] and offset == len(whole)
        assert [(d.torn, d.offset, d.file) for d in damage] == [(True, len(whole), "torn.jsonl")] * bool(cut)
        # Once the rest of it is there, it is read from where the reader stopped.
        path.write_bytes(whole + LINES[2] + LINES[3])
        assert read_journal(path, offset) == (RECORDS[2:], len(whole + LINES[2] + LINES[3]), [])


def test_a_damaged_line_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jsonl"
    for at in range(len(LINES[1])):
        middle = bytearray(LINES[1])
        middle[at] ^= 1
        path.write_bytes(LINES[0] + bytes(middle) + LINES[2] + LINES[3])
        records, offset, damage = read_journal(path)
        # Without the line end between them, the next line is lost too.
        kept = [RECORDS[0], *(RECORDS[2:] if at < len(LINES[1]) - 1 else RECORDS[3:])]
        assert records == kept and offset == path.stat().st_size
        assert damage and not any(d.torn for d in damage) and damage[0].offset == len(LINES[0])
        assert "a damaged line" in str(damage[0]) and "damaged.jsonl" in str(damage[0])


@pytest.mark.parametrize("text", [b"[]", b"null", b"7", b'"text"', b"{}", b"{", b"", b'{"kind":[]}', b"\xff"])
def test_a_line_with_a_right_checksum_that_is_no_record_is_damage(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(LINES[0] + b"%08x %s\n" % (zlib.crc32(text), text) + LINES[1])
    records, _, damage = read_journal(path)
    assert records == RECORDS[:2] and [d.torn for d in damage] == [False]


def test_what_append_was_given_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []

    def fdatasync(descriptor: int) -> None:
        [path] = tmp_path.iterdir()
        synced.append(path.read_bytes())

    monkeypatch.setattr(os, "fdatasync", fdatasync, raising=False)
    journal = Journal(tmp_path)
    journal.append([])
    assert journals(tmp_path) == []
    journal.append(LINES[:1])
    journal.append(LINES[1:3])
    assert synced == [LINES[0], b"".join(LINES[:3])]
    [path] = tmp_path.iterdir()
    assert path == journal.path and path.read_bytes() == synced[-1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (journal.records, journal.size) == (3, len(synced[-1]))


def test_after_its_end_a_journal_is_followed_by_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(LINES[:1])
    first = journal.path
    journal.seal()
    assert (journal.records, journal.size) == (0, 0)
    journal.append(LINES[1:2])
    assert journal.path != first and sorted(journals(tmp_path)) == sorted(filter(None, (first, journal.path)))
    with finished(journals(tmp_path)) as free:
        assert free == [first]


def test_the_journal_of_a_live_process_is_read_but_not_taken_and_after_a_kill_it_is_taken(tmp_path: Path) -> None:
    with writer(tmp_path, "0", "1") as process:
        for count in (1, 2):
            assert said(process) == "written"
            [path] = journals(tmp_path)
            assert read_journal(path)[0] == RECORDS[:count]
            with finished([path]) as free:
                assert free == []
            if count == 1:
                go_on(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with finished([path]) as free:
            assert free == [path]
            with finished([path]) as twice:  # held until the end of the block
                assert twice == []
        assert read_journal(path)[0] == RECORDS[:2]


def test_a_journal_that_another_process_deletes_meanwhile_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, deleted, replaced = (tmp_path / f"{name}.jsonl" for name in ("kept", "deleted", "replaced"))
    for path in (kept, deleted, replaced):
        path.write_bytes(LINES[0])

    def flock(descriptor: int, how: int) -> None:
        for path in (deleted, replaced):  # between its opening and its lock
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                path.unlink()
                if path == replaced:
                    path.write_bytes(LINES[1])
        return fcntl_flock(descriptor, how)

    fcntl_flock = fcntl.flock
    monkeypatch.setattr(journal_module.fcntl, "flock", flock)
    with finished([kept, deleted, replaced, tmp_path / "never there.jsonl"]) as free:
        assert free == [kept]


def test_a_full_disk_is_an_error_and_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with writer(tmp_path, "0", "full1", "full2", "3") as process:
        assert said(process) == "written"
        [path] = journals(tmp_path)
        for _ in range(2):
            go_on(process)
            message = said(process)
            assert "1 answers could not be written" in message and os.strerror(errno.EFBIG) in message
            assert str(path) in message and "to do" in message
            assert path.read_bytes() == LINES[0]
        go_on(process)
        assert said(process) == "written"
        assert path.read_bytes() == LINES[0] + LINES[3]
        assert read_journal(path) == ([RECORDS[0], RECORDS[3]], len(LINES[0] + LINES[3]), [])


def test_a_journal_that_cannot_be_made_takes_nothing_and_the_next_record_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)

    def rename(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "rename", rename)
        with pytest.raises(ActError, match="No space left"):
            journal.append(LINES[:1])
    assert journals(tmp_path) == []
    journal.append(LINES[1:2])
    [path] = journals(tmp_path)
    assert read_journal(path)[0] == RECORDS[1:2]


def test_a_folder_that_may_not_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ActError, match="No such file") as caught:
        Journal(missing).append(LINES[:1])
    assert str(missing) in str(caught.value)


def test_the_format_is_a_checksum_a_space_and_json() -> None:
    checksum, _, text = LINES[0].partition(b" ")
    assert int(checksum, 16) == zlib.crc32(text.rstrip(b"\n")) and len(checksum) == 8
    assert json.loads(text)["id"] == "use-0"


# --- the journals of other processes ------------------------------------------------------------------------------


def written(path: Path, *records: Answer | Use) -> bytes:
    content = b"".join(map(to_line, records))
    path.write_bytes(content)
    return content


def found(others: OtherJournals, *keys: str) -> list[str]:
    others.refresh(others.folder / "own.jsonl")
    return [key for key in keys if others.get(key)]


def test_lines_are_seen_when_they_are_whole(tmp_path: Path) -> None:
    others, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    lines = [to_line(make_answer(A)), to_line(Use(role=f'"key":"{C}"')), to_line(make_answer(B, text=f'"key":"{C}"'))]
    for at in range(0, sum(map(len, lines)) + 1, 7):
        path.write_bytes(b"".join(lines)[:at])
        assert (A in found(others, A, B, C)) == (at >= len(lines[0]))
        assert C not in found(others, C)
    path.write_bytes(b"".join(lines))
    assert found(others, A, B, C) == [A, B]
    stored = others.get(B)
    assert stored and stored.text == f'"key":"{C}"'


def test_only_journals_of_others_count_and_the_newest_answer_of_them_all(tmp_path: Path) -> None:
    others = OtherJournals(tmp_path)
    for number, name in enumerate(["1.jsonl", "2.jsonl", "3.jsonl", "own.jsonl", "4.jsonl.damaged", "5.new"]):
        when = [2.0, 3.0, 1.0][number % 3] + 10 * (number // 3)
        written(tmp_path / name, make_answer(A, when), make_answer(B, when - 0.5), make_answer(B, when))
    others.refresh(tmp_path / "own.jsonl")
    for key in (A, B):
        stored = others.get(key)
        assert stored and stored.created_at == 3.0


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    others, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    content = written(path, make_answer(A), make_answer(B), make_answer(C))
    middle = len(to_line(make_answer(A))) + 30
    path.write_bytes(content[:middle] + b"~" + content[middle + 1 :])
    assert found(others, A, B, C) == [A, C]
    with path.open("ab") as stream:
        stream.write(b"more of that\n" + to_line(make_answer(D)))
    assert found(others, A, B, C, D) == [A, C, D]


def test_a_journal_that_was_cut_back_and_written_over_is_read_again(tmp_path: Path) -> None:
    # Its process had a full disk in the middle of a write.
    others, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    content = written(path, make_answer(A), make_answer(B, text="long " * 50))
    assert found(others, A, B) == [A, B]
    path.write_bytes(content[: len(to_line(make_answer(A)))])
    assert found(others, A, B) == [A]
    written(path, make_answer(A), make_answer(B, text="long " * 50))
    assert found(others, A, B) == [A, B]
    written(path, make_answer(A), make_answer(C), make_answer(D), make_answer(E))
    assert found(others, A, B, C, D, E) == [A, C, D, E]
    os.truncate(path, 0)
    assert others.get(C) is None  # not even before it looks again
    assert found(others, A, C) == []


def test_folded_journals_are_let_go(tmp_path: Path) -> None:
    others = OtherJournals(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        written(path, make_answer(A, float(number)))
        assert found(others, A) == [A]
        path.unlink()
        stored = others.get(A)
        assert stored and stored.created_at == number  # for a look-up that is under way
        assert found(others, A) == []
    assert len(os.listdir("/dev/fd")) == before
    written(tmp_path / "last.jsonl", make_answer(A))
    assert found(others, A) == [A]


class Clock:
    """Stands for the module `time`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def test_the_folder_is_listed_again_as_long_as_its_time_stamp_may_be_too_coarse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp, clock, listed, listings = 1_700_000_000.0, Clock(0.0), os.listdir, []

    def slowly(folder: Path) -> list[str]:
        listings.append(folder)
        names = listed(folder)
        clock.now += 5.0
        return names

    def new_journal(key: str) -> None:
        """Within one tick of the file system's clock."""
        written(tmp_path / f"{key}.jsonl", make_answer(key))
        os.utime(tmp_path, (stamp, stamp))

    monkeypatch.setattr(journal_module, "time", clock)
    monkeypatch.setattr(journal_module.os, "listdir", slowly)
    others = OtherJournals(tmp_path)
    new_journal(A)
    for now, key in ((stamp + 0.01, B), (stamp + 0.09, C)):
        clock.now = now
        others.refresh(None)
        new_journal(key)
    clock.now = stamp + 1.0
    others.refresh(None)
    assert found(others, A, B, C) == [A, B, C]
    many = len(listings)
    for _ in range(10):
        others.refresh(None)
    assert len(listings) == many
    written(tmp_path / "later.jsonl", make_answer(D))  # with a time stamp of its own
    assert found(others, D) == [D]
