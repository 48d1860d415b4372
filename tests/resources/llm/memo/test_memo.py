"""A look-up finds every answer that is on disk, wherever it is at that moment, and the newest of several."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from resources.llm.memo import journal as tails_module
from resources.llm.memo import memo as memo_module
from resources.llm.memo.journal import journals
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, Stored, key_of

MakeAnswer = Callable[..., Answer]


@pytest.fixture(scope="session")
def answer_to(make_answer: MakeAnswer) -> MakeAnswer:
    """Makes the answer to a question."""

    def make(question: str, created_at: float = 1.0, **changed: Any) -> Answer:
        text = f"answer to {question} at {created_at}"
        return make_answer(key_of(question), created_at, **{"text": text, **changed})

    return make


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


def test_answers_are_found_where_ever_they_are(ours: Memo, theirs: Memo, answer_to: MakeAnswer) -> None:
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
def test_the_newest_answer_is_found_wherever_it_is(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer, order: tuple[float, ...]
) -> None:
    folded, journaled, own = order
    ours.database.fold([answer_to("a", folded)], [])
    theirs.append([answer_to("a", journaled)])
    ours.append([answer_to("a", own)])
    ours.opened([A], -1)
    for _ in range(2):
        for memo in (ours, theirs):
            assert texts(memo, "a") == {"a": "answer to a at 3.0"}
            assert texts(memo, "a", not_before=3.0) == {"a": "answer to a at 3.0"}
            assert texts(memo, "a", not_before=3.01) == {}
        late = ours.answered(A, 3.0)
        assert late and late.text == "answer to a at 3.0"
        assert ours.answered(A, 3.01) is None
        theirs.close()
        ours.close()


@pytest.mark.parametrize("when", ["before the database is asked", "after", "while the journals are listed"])
def test_a_journal_folded_in_the_middle_of_a_look_up_is_found(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer, monkeypatch: pytest.MonkeyPatch, when: str
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
    monkeypatch.setattr(tails_module.os, "listdir", listing)
    assert texts(ours, "a", "old").keys() == {"a", "old"}
    assert not journals(ours.journal_folder)


# --- questions that are open while others answer them ----------------------------------------------------------


def test_a_journal_of_its_own_that_ends_in_the_middle_of_a_look_up_is_found(
    ours: Memo, answer_to: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.append([answer_to("a")])
    look_up = ours.database.look_up

    def looking(keys: Sequence[str]) -> dict[str, Stored]:
        found = look_up(keys)
        ours._seal()  # as another thread does whose answer fills the journal; it is folded later
        return found

    monkeypatch.setattr(ours.database, "look_up", looking)
    assert texts(ours, "a").keys() == {"a"}


def test_an_open_question_that_another_process_has_answered_is_found(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer
) -> None:
    found = ours.look_up([A, B])
    ours.opened([A, B], found.generation)
    assert ours.answered(A) is None and ours.answered(B) is None
    theirs.append([answer_to("a")])
    assert ours.answered(A) and ours.answered(B) is None
    theirs.close()  # into the database; the journal is gone
    assert not journals(ours.journal_folder)
    assert ours.answered(A) and ours.answered(B) is None


def test_an_answer_folded_between_the_look_up_and_its_announcement_is_found(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer
) -> None:
    found = ours.look_up([A])
    theirs.append([answer_to("a")])
    theirs.close()
    ours.opened([A], found.generation)
    assert ours.answered(A)


def test_an_answer_folded_before_a_second_batch_announces_itself_is_found(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer
) -> None:
    first, second = ours.look_up([A]), ours.look_up([B])
    ours.opened([A], first.generation)
    theirs.append([answer_to("b")])
    theirs.close()
    assert ours.answered(A) is None  # looks at the new generation, for the questions that are open so far
    ours.opened([B], second.generation)
    assert ours.answered(B)


def test_a_question_that_two_batches_have_open_stays_open_until_both_are_done(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer
) -> None:
    found = ours.look_up([A, B])
    ours.opened([A, B], found.generation)
    ours.opened([A], found.generation)
    ours.closed([A, B])
    theirs.append([answer_to("a")])
    theirs.close()
    assert ours.answered(A)
    ours.closed([A])
    assert ours._open == {} and ours._late == {}


def test_an_answer_of_an_earlier_batch_is_not_taken_for_a_later_one(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer
) -> None:
    for generation in (1.0, 2.0):  # the same question, asked again after it was answered
        found = ours.look_up([A], not_before=generation)
        assert not found.answers
        ours.opened([A], found.generation)
        assert ours.answered(A, generation) is None
        theirs.append([answer_to("a", generation)])
        theirs._seal()
        theirs.fold()
        late = ours.answered(A, generation)
        assert late and late.created_at == generation
        ours.closed([A])


def test_the_database_is_opened_only_when_it_has_changed(
    ours: Memo, theirs: Memo, answer_to: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.database.fold([answer_to("old")], [])
    asked: list[list[str]] = []
    look_up = ours.database.look_up
    found = ours.look_up([A, B])
    monkeypatch.setattr(ours.database, "look_up", lambda keys: asked.append(sorted(keys)) or look_up(keys))
    ours.opened([A, B], found.generation)
    for _ in range(20):
        assert ours.answered(A) is None and ours.answered(B) is None
    assert asked == []
    theirs.append([answer_to("a")])
    theirs.close()
    for _ in range(20):
        assert ours.answered(A) and ours.answered(B) is None
    assert asked == [sorted([A, B])]


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
    ours: Memo, theirs: Memo, answer_to: MakeAnswer, monkeypatch: pytest.MonkeyPatch
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
            assert ours.answered(key) or not known

    ours.opened(open_keys, ours.look_up(open_keys).generation)
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
