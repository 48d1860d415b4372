"""A database that is damaged in any way is set aside and made anew from the archive, and nothing is lost."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted import make_answer

from resources.llm.memo import database as database_module
from resources.llm.memo.database import Database, is_damage
from resources.llm.memo.journal import journals
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Use

pytestmark = pytest.mark.integration

TABLES = ("answers", "history", "uses")
KEYS = [f"key {i}" for i in range(300)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memo folder with answers, history and uses in two segments of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    database = Database(folder)
    rng = random.Random(0)
    for number in range(2):
        answers = [make_answer(key, float(number), text=rng.randbytes(500).hex()) for key in KEYS[number * 100 :]]
        database.fold(answers, [Use(id=f"use {number} {i}", role=rng.randbytes(40).hex()) for i in range(100)])
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "memo")], check=True)
    return tmp_path / "memo"


def rows(database: Database) -> dict[str, list[tuple[str, str]]]:
    """Everything that it holds: for each table the ids and the rows as text."""
    query = " UNION ALL ".join(f"SELECT '{table}', id, {table}::VARCHAR FROM {table}" for table in TABLES)
    found = sorted(database.query(query))
    return {table: [row[1:] for row in found if row[0] == table] for table in TABLES}


def overwritten_header(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"not DuckDB at all" * 100)


def second_half_cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty_file(path: Path) -> None:
    os.truncate(path, 0)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def a_text_file(path: Path) -> None:
    path.write_text("moved to the other disk\n")


def without_a_version(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE schema_version")


def with_an_empty_version(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM schema_version")


def without_a_table(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE answers")


def another_database(path: Path) -> None:
    path.unlink()
    duckdb.connect(str(path)).close()


def a_log_that_does_not_match(path: Path) -> None:
    """A write-ahead log as a killed process leaves it, then damaged."""
    program = f"""import duckdb, os; c = duckdb.connect({str(path)!r})
c.execute("INSERT INTO answers SELECT * REPLACE (id || 'x' AS id, key || 'x' AS key) FROM answers"); os._exit(9)"""
    subprocess.run([sys.executable, "-c", program], check=False)
    log = path.with_name(path.name + ".wal")
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 0xFF
    log.write_bytes(content)


DAMAGES = [
    overwritten_header,
    second_half_cut_off,
    empty_file,
    zeros,
    a_text_file,
    without_a_version,
    with_an_empty_version,
    without_a_table,
    another_database,
    a_log_that_does_not_match,
]
CASES = [
    *((damage, at) for damage in DAMAGES for at in ("the next process", "the next fold")),
    *(
        (damage, "the next look-up")
        for damage in (overwritten_header, second_half_cut_off, empty_file, without_a_table)
    ),
]


@pytest.mark.parametrize(("damage", "at"), CASES)
def test_damage_is_found_and_nothing_is_lost(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], at: str
) -> None:
    database = Database(folder)
    before, generation = rows(database), database.generation()
    damage(database.path)
    remains = {p.name: p.read_bytes() for p in folder.glob("memo.duckdb*")}
    with caplog.at_level(logging.WARNING):
        if at == "the next fold":
            database.fold([make_answer("new")], [])
        else:
            database = Database(folder) if at == "the next process" else database
            assert len(database.look_up([*KEYS, "new"])) == 300
    after = rows(database)
    assert after["history"] == before["history"] and after["uses"] == before["uses"]
    assert [row for row in after["answers"] if row[0] != "new at 1.0"] == before["answers"]
    assert len(after["answers"]) == 300 + (at == "the next fold")
    assert database.generation() > generation  # other processes look again
    # What was damaged is kept as it was.
    aside = {p.name.partition(".damaged-")[0]: p.read_bytes() for p in folder.glob("*.damaged-*")}
    assert aside.keys() == remains.keys()
    assert all(aside[name] == remains[name] for name in remains)
    assert "is damaged" in caplog.text and "rebuilt from the archive" in caplog.text
    assert any(p.name in caplog.text for p in folder.glob("memo.duckdb.damaged-*"))
    assert not list(folder.glob("rebuilding*"))


def test_a_damaged_block_anywhere_is_found_when_it_is_read(folder: Path) -> None:
    database = Database(folder)
    before, content = rows(database), database.path.read_bytes()
    block, rng, found = 2**18, random.Random(1), 0
    for start in range(3 * 4096, len(content), block):
        damaged = bytearray(content)
        at = rng.randrange(start, min(start + block, len(content)) - 50)
        damaged[at : at + 50] = rng.randbytes(50)
        database.path.write_bytes(damaged)
        assert rows(database) == before
        aside = list(folder.glob("*.damaged-*"))
        found += bool(aside)
        for path in aside:
            path.unlink()
    assert found > 2


def test_a_fold_into_damaged_blocks_keeps_the_new_rows_and_the_old(folder: Path) -> None:
    database = Database(folder)
    before, content = rows(database), bytearray(database.path.read_bytes())
    for at in range(3 * 4096 + 100, len(content), 2**18):
        content[at : at + 50] = b"x" * 50
    database.path.write_bytes(content)
    memo = Memo(folder)
    memo.append([make_answer("new"), make_answer(KEYS[0], 9.0), Use(id="new")])
    memo.close()
    assert journals(memo.journal_folder) == []
    after = rows(Database(folder))
    assert [len(after[table]) - len(before[table]) for table in TABLES] == [1, 1, 1]
    assert {row[0] for row in after["answers"]} >= {"new at 1.0", f"{KEYS[0]} at 9.0"}


@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 100, random.Random(2).randbytes(5000)], ids=["empty", "zeros", "random"]
)
def test_garbage_in_the_place_of_a_write_ahead_log_costs_nothing(folder: Path, garbage: bytes) -> None:
    before = rows(Database(folder))
    (folder / "memo.duckdb.wal").write_bytes(garbage)
    database = Database(folder)
    assert rows(database) == before
    database.fold([make_answer("new")], [])
    assert len(Database(folder).look_up([*KEYS, "new"])) == 301


def test_what_a_killed_process_has_committed_is_there(folder: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from resources.llm.memo.database import Database
database = Database(Path({str(folder)!r}))
with database.writing() as connection:
    connection.execute("UPDATE answers SET text = 'changed'")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL and (folder / "memo.duckdb.wal").exists()
    assert {found.text for found in Database(folder).look_up(KEYS).values()} == {"changed"}
    assert not list(folder.glob("*.damaged-*"))


@pytest.mark.parametrize("log_left", [False, True])
def test_a_database_that_is_gone_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture, log_left: bool) -> None:
    database = Database(folder)
    before = rows(database)
    if log_left:  # of the database that is gone
        a_log_that_does_not_match(database.path)
    database.path.unlink()
    with caplog.at_level(logging.WARNING):
        assert rows(database) == before
    assert "the memo's database is gone" in caplog.text
    database.path.unlink()
    Memo(folder).append([make_answer("new")])
    Memo(folder).fold()
    database.fold([make_answer("newer")], [])
    assert len(Database(folder).look_up([*KEYS, "new", "newer"])) == 301


def test_a_damaged_segment_is_reported_and_the_others_are_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(folder)
    segments = database.archive.segments("answers")
    for number, spoil in enumerate(
        (
            lambda p: p.write_bytes(b"no Parquet"),
            lambda p: os.truncate(p, p.stat().st_size // 2),
            lambda p: p.write_bytes(b""),
            lambda p: pq.write_table(pa.table({"other": [1]}), p),
        )
    ):
        content = segments[0].read_bytes()
        spoil(segments[0])
        database.path.unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            after = rows(database)
        assert [m for m in caplog.messages if segments[0].name in m], number
        assert len(after["answers"]) == 200 and len(after["history"]) == 0 and len(after["uses"]) == 200
        segments[0].write_bytes(content)


def test_a_rebuild_that_fails_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(folder)
    before = rows(database)
    overwritten_header(database.path)
    damaged = database.path.read_bytes()

    def full(*given: Any, **tables: Any) -> None:
        raise duckdb.IOException(f"Could not write file: {os.strerror(errno.ENOSPC)}")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Database, "insert", full)
        with pytest.raises(duckdb.IOException):
            Database(folder).look_up(KEYS)
    assert {p.name for p in folder.glob("*duckdb*")} == {"memo.duckdb"} and database.path.read_bytes() == damaged
    assert rows(Database(folder)) == before


def test_a_full_disk_and_the_like_are_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (folder / "memo.duckdb").read_bytes()
    for number in (errno.ENOSPC, errno.EMFILE, errno.EACCES):
        error = duckdb.IOException(f"IO Error: Cannot write to file: {os.strerror(number)}")
        assert not is_damage(error)

        def fails(path: Path, read_only: bool, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(database_module, "connect", fails)
            with pytest.raises(duckdb.IOException):
                Database(folder).look_up(KEYS)
            with pytest.raises(duckdb.IOException):
                Database(folder).fold([make_answer("new")], [])
    assert (folder / "memo.duckdb").read_bytes() == content and not list(folder.glob("*.damaged-*"))
