"""The journals of other processes are seen as they grow, and let go when they are folded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.llm.memo import journal as tails_module
from resources.llm.memo.journal import OtherJournals, to_line
from resources.llm.memo.records import Answer, Use, key_of

MakeAnswer = Callable[..., Answer]
A, B, C, D, E = map(key_of, "abcde")


def written(path: Path, *records: Answer | Use) -> bytes:
    content = b"".join(map(to_line, records))
    path.write_bytes(content)
    return content


def found(tails: OtherJournals, *keys: str) -> list[str]:
    tails.refresh("own.jsonl")
    return [key for key in keys if tails.get(key)]


def test_lines_are_seen_when_they_are_whole(tmp_path: Path, make_answer: MakeAnswer) -> None:
    tails, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    lines = [to_line(make_answer(A)), to_line(Use(role=f'"key":"{C}"')), to_line(make_answer(B, text=f'"key":"{C}"'))]
    for at in range(0, sum(map(len, lines)) + 1, 7):
        path.write_bytes(b"".join(lines)[:at])
        assert (A in found(tails, A, B, C)) == (at >= len(lines[0]))
        assert C not in found(tails, C)
    path.write_bytes(b"".join(lines))
    assert found(tails, A, B, C) == [A, B]
    stored = tails.get(B)
    assert stored and stored.text == f'"key":"{C}"'


def test_only_journals_of_others_count_and_the_newest_answer_of_them_all(
    tmp_path: Path, make_answer: MakeAnswer
) -> None:
    tails = OtherJournals(tmp_path)
    for number, name in enumerate(["1.jsonl", "2.jsonl", "3.jsonl", "own.jsonl", "4.jsonl.damaged", "5.new"]):
        when = [2.0, 3.0, 1.0][number % 3] + 10 * (number // 3)
        written(tmp_path / name, make_answer(A, when), make_answer(B, when - 0.5), make_answer(B, when))
    tails.refresh("own.jsonl")
    for key in (A, B):
        stored = tails.get(key)
        assert stored and stored.created_at == 3.0


def test_a_damaged_line_hides_no_other(tmp_path: Path, make_answer: MakeAnswer) -> None:
    tails, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    content = written(path, make_answer(A), make_answer(B), make_answer(C))
    middle = len(to_line(make_answer(A))) + 30
    path.write_bytes(content[:middle] + b"~" + content[middle + 1 :])
    assert found(tails, A, B, C) == [A, C]
    with path.open("ab") as stream:
        stream.write(b"more of that\n" + to_line(make_answer(D)))
    assert found(tails, A, B, C, D) == [A, C, D]


def test_a_journal_that_was_cut_back_and_written_over_is_read_again(tmp_path: Path, make_answer: MakeAnswer) -> None:
    # Its process had a full disk in the middle of a write.
    tails, path = OtherJournals(tmp_path), tmp_path / "other.jsonl"
    content = written(path, make_answer(A), make_answer(B, text="long " * 50))
    assert found(tails, A, B) == [A, B]
    path.write_bytes(content[: len(to_line(make_answer(A)))])
    assert found(tails, A, B) == [A]
    written(path, make_answer(A), make_answer(B, text="long " * 50))
    assert found(tails, A, B) == [A, B]
    written(path, make_answer(A), make_answer(C), make_answer(D), make_answer(E))
    assert found(tails, A, B, C, D, E) == [A, C, D, E]
    os.truncate(path, 0)
    assert tails.get(C) is None  # not even before it looks again
    assert found(tails, A, C) == []


def test_folded_journals_are_let_go(tmp_path: Path, make_answer: MakeAnswer) -> None:
    tails = OtherJournals(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        written(path, make_answer(A, float(number)))
        assert found(tails, A) == [A]
        path.unlink()
        stored = tails.get(A)
        assert stored and stored.created_at == number  # for a look-up that is under way
        assert found(tails, A) == []
    assert len(os.listdir("/dev/fd")) == before
    written(tmp_path / "last.jsonl", make_answer(A))
    assert found(tails, A) == [A]
    tails.close()
    assert len(os.listdir("/dev/fd")) == before and tails.get(A) is None


class Clock:
    """Stands for the module `time`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def test_the_folder_is_listed_again_as_long_as_its_time_stamp_may_be_too_coarse(
    tmp_path: Path, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
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

    monkeypatch.setattr(tails_module, "time", clock)
    monkeypatch.setattr(tails_module.os, "listdir", slowly)
    tails = OtherJournals(tmp_path)
    new_journal(A)
    for now, key in ((stamp + 0.01, B), (stamp + 0.09, C)):
        clock.now = now
        tails.refresh(None)
        new_journal(key)
    clock.now = stamp + 1.0
    tails.refresh(None)
    assert found(tails, A, B, C) == [A, B, C]
    many = len(listings)
    for _ in range(10):
        tails.refresh(None)
    assert len(listings) == many
    written(tmp_path / "later.jsonl", make_answer(D))  # with a time stamp of its own
    assert found(tails, D) == [D]
