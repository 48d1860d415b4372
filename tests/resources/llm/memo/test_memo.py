"""A look-up finds every answer that is on disk, wherever it is at that moment, and the newest of several."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted import make_answer

from resources.llm.memo import journal as journal_module
from resources.llm.memo import memo as memo_module
from resources.llm.memo.journal import journals
from resources.llm.memo.memo import Memo, Watch
from resources.llm.memo.records import Answer, Stored, key_of

pytestmark = pytest.mark.integration


def answer_to(question: str, created_at: float = 1.0) -> Answer:
    return make_answer(key_of(question), created_at, text=f"answer to {question} at {created_at}")


@pytest.fixture
def ours(tmp_path: Path) -> Memo:
    return Memo(tmp_path)


@pytest.fixture
def theirs(tmp_path: Path) -> Memo:
    """The memo as another process uses it: what these two share are files and locks on them."""
    return Memo(tmp_path)


A, B = key_of("a"), key_of("b")


def texts(memo: Memo, *questions: str, not_before: float = 0.0) -> dict[str, str]:
    """The answers that a look-up finds, by question."""
    answers = memo.look_up([key_of(q) for q in questions], not_before).answers
    return {q: answers[key_of(q)].text for q in questions if key_of(q) in answers}


def test_answers_are_found_where_ever_they_are(ours: Memo, theirs: Memo) -> None:
    assert texts(ours, "a") == {}
    ours.append([answer_to("own")])
    theirs.append([answer_to("live")])
    finished = Memo(ours.folder)
    finished.append([answer_to("folded")])
    finished.close()
    assert len(journals(ours.journal_folder)) == 2
    expected = {key: f"answer to {key} at 1.0" for key in ("own", "live", "folded")}
    for memo in (ours, theirs, Memo(ours.folder)):
        assert texts(memo, "own", "live", "folded", "absent", "own") == expected
    theirs.append([answer_to("later")])
    assert texts(ours, "later") == {"later": "answer to later at 1.0"}
    theirs.close()
    assert texts(ours, "live", "later").keys() == {"live", "later"}
    ours.close()
    assert texts(Memo(ours.folder), "own", "live", "folded", "later").keys() == {"own", "live", "folded", "later"}


@pytest.mark.parametrize("order", [(1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (2.0, 3.0, 1.0)])
def test_the_newest_answer_is_found_wherever_it_is(ours: Memo, theirs: Memo, order: tuple[float, ...]) -> None:
    folded, journaled, own = order
    ours.database.fold([answer_to("a", folded)], [])
    theirs.append([answer_to("a", journaled)])
    ours.append([answer_to("a", own)])
    for _ in range(2):
        for memo in (ours, theirs):
            assert texts(memo, "a") == {"a": "answer to a at 3.0"}
            assert texts(memo, "a", not_before=3.0) == {"a": "answer to a at 3.0"}
            assert texts(memo, "a", not_before=3.01) == {}
        assert Watch(ours, [A], 3.0).found[A].text == "answer to a at 3.0"
        assert Watch(ours, [A], 3.01).found == {}
        theirs.close()
        ours.close()


@pytest.mark.parametrize("when", ["before the database is asked", "after", "while the journals are listed"])
def test_a_journal_folded_in_the_middle_of_a_look_up_is_found(
    ours: Memo, theirs: Memo, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    ours.database.fold([answer_to("old")], [])
    theirs.append([answer_to("a")])
    look_up, listed = ours.database.look_up, os.listdir

    def looking(keys: Sequence[str]) -> dict[str, Stored]:
        if when == "before the database is asked":
            theirs.close()
        found = look_up(keys)
        if when == "after":
            theirs.close()
        return found

    def listing(folder: Path) -> list[str]:
        names = listed(folder)
        if when == "while the journals are listed":
            theirs.close()
        return names

    monkeypatch.setattr(ours.database, "look_up", looking)
    monkeypatch.setattr(journal_module.os, "listdir", listing)
    assert texts(ours, "a", "old").keys() == {"a", "old"}
    assert not journals(ours.journal_folder)


def test_a_journal_of_its_own_that_ends_in_the_middle_of_a_look_up_is_found(
    ours: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.append([answer_to("a")])
    look_up = ours.database.look_up

    def looking(keys: Sequence[str]) -> dict[str, Stored]:
        found = look_up(keys)
        ours._seal()  # as another thread does whose answer fills the journal; it is folded later
        return found

    monkeypatch.setattr(ours.database, "look_up", looking)
    assert texts(ours, "a").keys() == {"a"}


# --- questions that others answer meanwhile --------------------------------------------------------------------


def test_what_another_process_is_answered_meanwhile_is_found(ours: Memo, theirs: Memo) -> None:
    watch = Watch(ours, [A, B])
    assert watch.found == {} and watch.answered(A) is None and watch.answered(B) is None
    theirs.append([answer_to("a")])
    assert watch.answered(A) and watch.answered(B) is None
    theirs.close()  # into the database; the journal is gone
    assert not journals(ours.journal_folder)
    assert watch.stale() and watch.answered(A) and watch.answered(B) is None
    ours.append([answer_to("b")])
    ours.close()
    assert watch.answered(A) and watch.answered(B)


def test_an_older_answer_is_not_taken_for_one_that_is_asked_for_again(ours: Memo, theirs: Memo) -> None:
    for since in (1.0, 2.0):
        watch = Watch(ours, [A], since)
        assert not watch.found and watch.answered(A) is None
        theirs.append([answer_to("a", since)])
        theirs._seal()
        theirs.fold()
        late = watch.answered(A)
        assert late and late.created_at == since


def test_the_database_is_opened_only_when_it_has_changed(
    ours: Memo, theirs: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.database.fold([answer_to("old")], [])
    asked: list[list[str]] = []
    look_up = ours.database.look_up
    watch = Watch(ours, [A, B, key_of("old")])
    monkeypatch.setattr(ours.database, "look_up", lambda keys: asked.append(sorted(keys)) or look_up(keys))
    for _ in range(20):
        assert watch.answered(A) is None and watch.answered(B) is None
    assert asked == []
    theirs.append([answer_to("a")])
    theirs.close()
    for _ in range(20):
        assert watch.answered(A) and watch.answered(B) is None
    assert asked == [sorted([A, B])], "once, for all that were not found"


@contextmanager
def at_work(*jobs: Callable[[], object]) -> Iterator[threading.Event]:
    """Threads that do their jobs again and again until the end of the block; their errors are raised there."""
    over, errors = threading.Event(), []

    def repeat(job: Callable[[], object]) -> None:
        try:
            while not over.wait(0.002):
                job()
        except BaseException as error:
            errors.append(error)
            over.set()

    threads = [threading.Thread(target=repeat, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield over
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_no_answer_is_missed_while_journals_are_folded(
    ours: Memo, theirs: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "FOLD_RECORDS", 16)
    written: list[str] = []  # keys whose answers are on disk
    open_keys = [key_of(f"{i}") for i in range(2000)]
    rng = random.Random(0)

    def look_up(memo: Memo) -> Callable[[], None]:
        def job() -> None:
            there = list(written)
            assert set(there) <= memo.look_up(there).answers.keys()

        return job

    def answered() -> None:
        for key in rng.sample(open_keys, 5):
            known = key in written
            assert watch.answered(key) or not known

    watch = Watch(ours, open_keys)
    with at_work(look_up(ours), look_up(theirs), answered) as over:
        for start in range(0, 240, 4):
            for memo in (ours, theirs):
                answers = [answer_to(f"{start + i + 1000 * (memo is ours)}") for i in range(4)]
                memo.append(answers)
                written.extend(answer.key for answer in answers)
            if over.wait(0.005):
                break
    assert len(written) == 480
    for memo in (ours, theirs):
        memo.close()
    assert not journals(ours.journal_folder) and ours._own == {}
    assert ours.database.query("SELECT count(*), count(DISTINCT key) FROM answers") == [(480, 480)]
    assert ours.database.query("SELECT count(*) FROM history") == [(0,)]
    assert len(ours.database.archive.segments("answers")) > 2  # folded meanwhile
