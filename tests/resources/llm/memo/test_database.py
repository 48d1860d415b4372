"""Folding adds each row once, the newest answer of a key is its answer, and nobody else may read or disturb it."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import make_answer

from resources.errors import ActError
from resources.llm.memo import database as database_module
from resources.llm.memo import segments as segments_module
from resources.llm.memo.database import Busy, Database
from resources.llm.memo.journal import Journal, journals, to_line
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Use
from resources.llm.memo.schema import ANSWERS, migrate, to_arrow
from resources.llm.memo.segments import Archive

pytestmark = pytest.mark.integration


def ids(database: Database, table: str) -> list[str]:
    return [row[0] for row in database.query(f"SELECT id FROM {table} ORDER BY id")]


def test_a_row_folded_twice_is_there_once(tmp_path: Path) -> None:
    database = Database(tmp_path)
    assert database.look_up(["a"]) == {} and database.query("SELECT 1") == []  # there is none yet
    answers, uses = [make_answer("a", 1.0), make_answer("a", 2.0), make_answer("b", 3.0)], [Use(id="u1"), Use(id="u2")]
    for _ in range(3):
        database.fold([*answers, *answers], [*uses, *uses])
        database.fold(answers, uses)
    assert ids(database, "answers") == ["a at 2.0", "b at 3.0"]
    assert ids(database, "history") == ["a at 1.0"]
    assert ids(database, "uses") == ["u1", "u2"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=10),
    st.lists(st.integers(0, 99), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_newest_answer_wins_whatever_the_order_of_folding(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, int]],
    cuts: list[int],
    rng: random.Random,
) -> None:
    # Equal times too: then the greater id wins, so that every order comes to the same.
    answers = [make_answer(key, float(when), id=f"{i:02d}") for i, (key, when) in enumerate(rows)]
    insert = Database(tmp_path_factory.getbasetemp() / "unused").insert
    with duckdb.connect(":memory:") as connection:
        migrate(connection, "memory")
        for _ in range(2):  # the second time nothing is new
            rng.shuffle(answers)
            places = sorted({0, *(c % len(answers) for c in cuts), len(answers)})
            for start, end in itertools.pairwise(places):
                insert(connection, answers=to_arrow(answers[max(0, start - 1) : end], ANSWERS))
        current = dict(connection.execute("SELECT key, id FROM answers").fetchall())
        assert connection.execute("SELECT count(*) FROM answers").fetchall() == [(len(current),)]
        history = connection.execute("SELECT id FROM history ORDER BY id").fetchall()
    newest = {key: max((a.created_at, a.id) for a in answers if a.key == key)[1] for key, _ in rows}
    assert current == newest
    assert [h[0] for h in history] == sorted(a.id for a in answers if a.id not in newest.values())


def test_an_answer_is_found_as_it_was_given(tmp_path: Path) -> None:
    database = Database(tmp_path)
    odd = [
        make_answer(
            "a", 1732108801.123456, text="NUL \0 in the middle, 😀, e\u0301\r\n\u2028 'quotes' \\", cost_usd=None
        ),
        make_answer("b", 1732108802.654321, text=" ", prompt_tokens=2**60, latency_s=1e-6, cost_usd=1e-9),
        *(make_answer(f"more {i}") for i in range(5000)),
    ]
    database.fold(odd, [])
    found = database.look_up(["b", "absent", "a", "a", *(f"more {i}" for i in range(5000))])
    assert len(found) == 5002
    for answer in odd:
        assert found[answer.key].created_at == pytest.approx(answer.created_at, abs=1e-6)
        assert found[answer.key]._replace(created_at=answer.created_at) == answer.stored()


@pytest.mark.parametrize("when", ["before the rows are archived", "before they are in", "after", "while deleting"])
def test_a_fold_that_is_cut_off_is_done_again_and_adds_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any, **named: Any) -> None:
        raise Killed

    memo = Memo(tmp_path)
    memo.database.fold([make_answer("a", 2.0)], [])
    for number in range(2):
        journal = Journal(memo.journal_folder)
        lines = [make_answer("a", 1.0 + 2 * number), make_answer(f"b{number}"), Use(id=f"u{number}")]
        journal.append([to_line(record) for record in lines])
        journal.seal()
    target, name = {
        "before the rows are archived": (Archive, "add"),
        "before they are in": (Database, "insert"),
        "after": (Database, "changed"),
        "while deleting": (Path, "unlink"),
    }[when]
    with monkeypatch.context() as dying:
        dying.setattr(target, name, killed)
        with pytest.raises(Killed):
            memo.fold()
    assert len(journals(memo.journal_folder)) == 2
    after = Memo(tmp_path)  # folds what is left
    assert ids(after.database, "answers") == ["a at 3.0", "b0 at 1.0", "b1 at 1.0"]
    assert ids(after.database, "history") == ["a at 1.0", "a at 2.0"]
    assert ids(after.database, "uses") == ["u0", "u1"]
    assert journals(memo.journal_folder) == []


def test_others_are_told_of_every_change(tmp_path: Path) -> None:
    ours, theirs = Database(tmp_path), Database(tmp_path)
    assert theirs.generation() == 0
    seen = [theirs.generation()]
    for number in range(3):
        ours.fold([make_answer(f"{number}")], [])
        seen.append(theirs.generation())
    assert seen == sorted(set(seen))
    ours.fold([], [])
    assert theirs.generation() == seen[-1]


def test_many_small_segments_become_one_that_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segments_module, "MANY_SEGMENTS", 4)
    database = Database(tmp_path)
    for number in range(3):
        database.fold([make_answer(f"{number}")], [Use(id=f"u{number}")])
    damaged = database.archive.segments("answers")[1]
    damaged.write_bytes(b"PAR1 no more")
    assert len(database.archive.segments("answers")) == len(database.archive.segments("uses")) == 3
    with caplog.at_level(logging.WARNING):
        database.fold([make_answer("3")], [Use(id="u3")])
    assert damaged.name in caplog.text
    assert len(database.archive.segments("answers")) == 2 and damaged in database.archive.segments("answers")
    assert len(database.archive.segments("uses")) == 1
    database.path.unlink()
    assert ids(Database(tmp_path), "answers") == ["0 at 1.0", "2 at 1.0", "3 at 1.0"]
    assert ids(Database(tmp_path), "uses") == ["u0", "u1", "u2", "u3"]


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        memo = Memo(tmp_path / "deep" / "memo")
        memo.append([make_answer("a"), Use()])
        memo.close()
        Memo(tmp_path / "deep" / "memo").append([make_answer("b")])
        memo.database.path.write_bytes(b"damaged")
        assert list(Database(memo.folder).look_up(["a"])) == ["a"]
        every = [memo.folder, *memo.folder.rglob("*")]
        modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in every}
        assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
        assert {"journal", "archive", "memo.duckdb", "memo.lock", "flights.lock", "generation"} <= {
            p.name for p in every
        }
        assert any("damaged" in p.name for p in every)
    finally:
        os.umask(before)


# --- others at work --------------------------------------------------------------------------------------------


@contextmanager
def shell(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program that has the database open, as a DuckDB shell would."""
    program = f"import duckdb; c = duckdb.connect({str(path)!r}); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)
    try:
        assert process.stdout and process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_program_that_has_the_database_open_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOCK_WAIT_S", 0.15)
    memo = Memo(tmp_path)
    memo.database.fold([make_answer("a")], [])
    with shell(memo.database.path) as process:
        for attempt in (
            lambda: memo.database.look_up(["a"]),
            lambda: Database(tmp_path).look_up(["a"]),
            lambda: memo.database.fold([make_answer("b")], []),
        ):
            with pytest.raises(ActError, match="another program has the memo's database open") as caught:
                attempt()
            assert str(memo.database.path) in str(caught.value) and str(process.pid) in str(caught.value)
        memo.append([make_answer("c")])
        memo.close()  # cannot fold now
        assert len(journals(memo.journal_folder)) == 1
        monkeypatch.setattr(database_module, "LOCK_WAIT_S", 20.0)
        process.communicate("\n")  # the other program ends while we wait
        assert set(Memo(tmp_path).look_up(["a", "b", "c"]).answers) == {"a", "c"}
    assert not list(tmp_path.glob("*damaged*"))


def test_whoever_does_not_want_to_wait_is_told_that_another_process_is_writing(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with (tmp_path / "memo.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            database.fold([make_answer("a")], [], wait=False)
        assert database.archive.segments("answers") == []
    database.fold([make_answer("a")], [], wait=False)
    assert ids(database, "answers") == ["a at 1.0"]


def test_a_wrong_query_is_the_askers_mistake(tmp_path: Path) -> None:
    database = Database(tmp_path)
    database.fold([make_answer("a")], [])
    with pytest.raises(duckdb.CatalogException, match="nowhere"):
        database.query("SELECT * FROM nowhere")
    with pytest.raises(duckdb.Error):
        database.query("DELETE FROM answers")
    assert not list(tmp_path.glob("*.damaged-*")) and len(database.look_up(["a"])) == 1


def test_a_database_without_permissions_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(tmp_path).fold([make_answer("a")], [])
    monkeypatch.setattr(os, "access", lambda path, how: False)  # root may read everything
    with pytest.raises(ActError, match="may not be read") as caught:
        Database(tmp_path).look_up(["a"])
    assert str(tmp_path) in str(caught.value) and not list(tmp_path.glob("*.damaged-*"))
