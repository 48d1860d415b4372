"""Queries that attack: each gives a reason within its time, changes nothing, and the next pair still matches."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from act_assets.metrics import execution_match as module
from act_assets.metrics import sql_process
from act_assets.metrics.execution_match import execution_match, execution_matches, runs
from act_assets.metrics.sql_process import end_workers
from resources.errors import DataError

pytestmark = pytest.mark.integration

REPO = Path(__file__).resolve().parents[2]
TIMEOUT_S = 0.3
GRACE_S = 0.3
SLACK_S = 6.0  # for a machine that is busy with other things
MB = 1_000_000

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
CROSS = "t AS a, t AS b, t AS c, t AS d, t AS e, t AS f"  # 50^6 rows
# One step of SQLite's virtual machine that takes minutes: no progress handler is called meanwhile.
ONE_LONG_STEP = "SELECT instr(hex(zeroblob(2000000)), hex(zeroblob(1000000)) || '1')"

# predicted (with {dir} for the folder of the database), a part of the reason
HOSTILE: dict[str, list[tuple[str, str]]] = {
    "endless": [
        (ENDLESS + "SELECT n FROM r", "more rows"),
        (ENDLESS + "SELECT count(*) FROM r", "takes longer"),
        (ENDLESS + "SELECT n FROM r ORDER BY n DESC", ""),
        ("WITH RECURSIVE r(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM r) SELECT count(*) FROM r", "too big"),
        (f"SELECT * FROM {CROSS}", "more rows"),
        (f"SELECT count(*) FROM {CROSS}", "takes longer"),
        (f"SELECT a.x FROM {CROSS} ORDER BY a.x + f.x", ""),
        (f"SELECT max(a.x || b.x || c.x || d.x || e.x || f.x) FROM {CROSS}", "takes longer"),
    ],
    "other databases": [
        ("ATTACH '{dir}/new.sqlite' AS other", "not allowed: ATTACH"),
        ("/* */ attach 'new.sqlite' AS other;", "not allowed: ATTACH"),
        ("DETACH main", "not allowed: DETACH"),
        ("VACUUM INTO '{dir}/new.sqlite'", "not allowed: VACUUM"),
        ("SELECT 1; ATTACH '{dir}/new.sqlite' AS other", "more than one statement"),
    ],
    "writes": [
        ("INSERT INTO t VALUES (1, 'b')", "not allowed: INSERT"),
        ("REPLACE INTO t VALUES (1, 'b')", "not allowed: REPLACE"),
        ("DELETE FROM t RETURNING x", "not allowed: DELETE"),
        ("WITH a AS (SELECT 1) DELETE FROM t", "not allowed: DELETE"),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT 1, 'b'", "not allowed: INSERT"),
        ("WITH a AS (SELECT 1) UPDATE t SET x = 2", "not allowed: UPDATE"),
        ("WITH a AS (SELECT 1) UPDATE sqlite_master SET sql = ''", "does not run"),
        ("DROP TABLE t", "not allowed: DROP"),
        ("CREATE TABLE u (a)", "not allowed: CREATE"),
        ("CREATE VIRTUAL TABLE f USING fts5(a)", "not allowed: CREATE"),
        ("CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", "does not run"),
        ("VACUUM", "not allowed: VACUUM"),
        ("BEGIN IMMEDIATE", "not allowed: BEGIN"),
        ("PRAGMA writable_schema = ON", "not allowed: PRAGMA"),
        ("SELECT * FROM pragma_user_version", "not allowed"),
        ("SELECT * FROM t; DROP TABLE t", "more than one statement"),
        ("SELECT * FROM t;\0DROP TABLE t", "NUL"),
        ("EXPLAIN DELETE FROM t", "not allowed: EXPLAIN"),
    ],
    "functions": [
        ("SELECT load_extension('{dir}/x.so')", "not allowed: load_extension"),
        ("SELECT readfile('/etc/passwd')", "does not run"),
        ("SELECT edit('x', 'touch {dir}/new')", "does not run"),
        ("SELECT fts3_tokenizer('simple', X'4141414141414141')", "does not run"),
    ],
    "text": [
        ("SELECT '" + "x" * (MB + 50_000) + "'", "longer than"),
        ("SELECT '" + "\u00e9" * 600_000 + "'", "longer than"),
        ("SELECT " + "1, " * 340_000 + "1", "does not run"),
        ("SELECT '" + "x" * (MB - 50) + "'", "rows"),
        ("SELECT 1 --" + "-" * MB, "rows"),
        ("SELECT 1 UNION ALL " * 50_000 + "SELECT 1", "does not run"),
        ("VALUES " + "(1), " * 200_000 + "(1)", ""),
        ("SELECT " + "1 + " * 250_000 + "1", "does not run"),
        ("SELECT " + "(" * 500_000 + "1" + ")" * 500_000, "does not run"),
        ("SELECT " + "(SELECT " * 120_000, "does not run"),
        ("'" * (MB + 1), "does not run"),
        ("/*" * 500_000, "syntax error"),
        ("-- \n" * 250_000, "empty"),
        (";" * MB, "empty"),
        ("YEAR( " * 160_000, "does not run"),
        ("year" + " " * 900_000 + "(x", "does not run"),
        ("\0", "NUL"),
        ("SELECT '\ud800'", "lone surrogate"),
    ],
    "cells": [
        ("SELECT CAST(X'FF' AS TEXT) FROM t", "values"),
        ('SELECT 1 AS "\u00e9\u202e" FROM t', "values"),
        ("SELECT json(CAST(X'FF' AS TEXT))", "does not run"),
    ],
    "memory": [
        ("SELECT randomblob(1000000000)", "too big"),
        ("SELECT hex(zeroblob(4000000))", "too big"),
        ("SELECT printf('%1000000000d', 1)", ""),
        ("SELECT replace(hex(zeroblob(2000000)), '0', 'aaaa')", "too big"),
        ("SELECT " + ", ".join(["zeroblob(4000000)"] * 1500) + " FROM t", "does not run"),
        ("SELECT " + ", ".join(["hex(randomblob(2000000))"] * 100) + " FROM t", "does not run"),
        (f"SELECT group_concat(hex(randomblob(1000))) FROM {CROSS}", "does not run"),
        (ENDLESS + "SELECT group_concat(n) FROM r", "does not run"),
        (f"SELECT count(*) FROM (SELECT hex(randomblob(5000)) AS h FROM {CROSS} ORDER BY h)", "does not run"),
        (f"SELECT count(DISTINCT h) FROM (SELECT hex(randomblob(5000)) AS h FROM {CROSS})", "does not run"),
    ],
    "patterns": [
        ("SELECT x FROM t WHERE s LIKE '" + "%a" * 1_000 + "b'", "pattern too complex"),
        ("SELECT x FROM t WHERE s GLOB '" + "*a" * 1_000 + "b'", "pattern too complex"),
        ("SELECT x FROM t WHERE hex(zeroblob(40000)) LIKE '" + "%0" * 400 + "1'", ""),
        ("SELECT x FROM t WHERE hex(zeroblob(40000)) GLOB '" + "*[0-9]" * 150 + "x'", ""),
        (ONE_LONG_STEP, "takes longer"),
    ],
}
CASES = [
    pytest.param(*pair, id=f"{group} {number}") for group, pairs in HOSTILE.items() for number, pair in enumerate(pairs)
]
GOLD = "SELECT x, s FROM t"


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", GRACE_S)
    monkeypatch.setattr(sql_process, "GRACE_S", GRACE_S)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("hostile") / "one.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x INTEGER, s TEXT)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, "a" * 40 + str(i)) for i in range(50)])
    connection.commit()
    connection.close()
    yield path
    end_workers()


def _found(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def _check_normal(database: Path) -> None:
    found = execution_match(database, "SELECT s, x FROM t ORDER BY x DESC", GOLD)
    assert found.match, found.reason


def worker_pids() -> list[int]:
    return [w.pid for w in sql_process._pool.workers if w.pid]


def _only_worker(database: Path) -> int:
    """The process id of a worker that has answered, the only one."""
    end_workers()
    _check_normal(database)
    (pid,) = worker_pids()
    return pid


@pytest.mark.parametrize(("predicted", "part"), CASES)
def test_hostile(database: Path, predicted: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    _check_normal(database)
    before = _found(database.parent)
    started = time.monotonic()
    found = execution_match(
        database, predicted.replace("{dir}", str(database.parent)), "SELECT x FROM t", timeout_s=TIMEOUT_S
    )
    assert time.monotonic() - started < TIMEOUT_S + GRACE_S + SLACK_S
    assert not found.match
    assert found.reason and part in found.reason
    assert len(found.reason) < 500
    assert _found(database.parent) == before
    _check_normal(database)


def test_hostile_gold_queries_are_errors(database: Path) -> None:
    before = _found(database.parent)
    too_many = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 1000001) SELECT n FROM r"
    for gold, timeout_s, part in (
        (ENDLESS + "SELECT count(*) FROM r", TIMEOUT_S, "takes longer"),
        (ONE_LONG_STEP, TIMEOUT_S, "takes longer"),
        (too_many, 20.0, "more than 1,000,000 rows"),
        ("SELECT hex(randomblob(1000000)) FROM t AS a, t AS b", 20.0, "larger than 4,000,000 cells"),
        ("SELECT " + ", ".join(["zeroblob(4000000)"] * 1500), 20.0, "memory"),
        ("UPDATE t SET x = 1", TIMEOUT_S, "not allowed: UPDATE"),
    ):
        with pytest.raises(DataError, match=part):
            execution_match(database, "SELECT 1", gold, timeout_s=timeout_s)
        _check_normal(database)
    assert "not allowed: UPDATE" in (runs(database, "UPDATE t SET x = 1") or "")
    assert "takes longer" in (runs(database, ENDLESS + "SELECT count(*) FROM r", timeout_s=TIMEOUT_S) or "")
    assert _found(database.parent) == before


def test_a_prediction_cannot_change_what_gold_returns(database: Path) -> None:
    for predicted in (
        "SELECT x + 1 AS x FROM t",
        "WITH t(x, s) AS (SELECT 1, 2) SELECT x, s FROM t",
        "CREATE TEMP VIEW t AS SELECT 1",
        "PRAGMA case_sensitive_like = ON",
    ):
        assert not execution_match(database, predicted, GOLD).match
    assert not execution_match(database, "SELECT 1, 2", GOLD).match
    assert execution_match(database, "SELECT count(*) FROM t WHERE s LIKE 'A%'", "SELECT 50").match
    _check_normal(database)


def test_a_worker_that_is_killed_in_the_middle_is_replaced(database: Path) -> None:
    pid = _only_worker(database)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    started = time.monotonic()
    found = execution_match(database, ENDLESS + "SELECT count(*) FROM r", GOLD, timeout_s=20.0)
    assert time.monotonic() - started < 10.0
    assert found.reason == "The query does not run: the process that ran it died."
    _check_normal(database)
    assert worker_pids() != [pid]


def test_a_worker_that_is_killed_while_idle_costs_nothing(database: Path) -> None:
    _check_normal(database)
    for pid in worker_pids():
        psutil.Process(pid).kill()
    _check_normal(database)


def test_a_worker_that_is_stopped_is_replaced(database: Path) -> None:
    pid = _only_worker(database)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="takes longer"):
        execution_match(database, "SELECT 1", "SELECT 2", timeout_s=TIMEOUT_S)
    assert not psutil.pid_exists(pid)
    pid = _only_worker(database)
    os.kill(pid, signal.SIGSTOP)  # now with a request that does not fit the channel
    assert execution_match(database, "SELECT 2", "/*" + "x" * MB + "*/ SELECT 2", timeout_s=TIMEOUT_S).match
    assert not psutil.pid_exists(pid)


def test_an_interrupted_call_leaves_no_answer_behind(database: Path) -> None:
    _check_normal(database)
    # A shell without job control starts what is in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        execution_match(database, ENDLESS + "SELECT count(*) FROM r", GOLD, timeout_s=20.0)
    signal.signal(signal.SIGINT, before)
    assert not execution_match(database, "SELECT 1", GOLD).match
    _check_normal(database)


def test_many_hostile_pairs_at_once(database: Path) -> None:
    good = (database, GOLD, GOLD)
    bad = (database, ENDLESS + "SELECT count(*) FROM r", GOLD)
    found = execution_matches([good, bad, good, bad, good, (database, "DROP TABLE t", GOLD)], timeout_s=TIMEOUT_S)
    assert [m.match for m in found] == [True, False, True, False, True, False]


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended may wait for whatever adopted it to notice."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PROGRAM = """
import sys, threading, time
from pathlib import Path
from act_assets.metrics.execution_match import execution_match
from act_assets.metrics.sql_process import _pool

database, predicted, thread = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def work():
    execution_match(database, "SELECT 1", "SELECT 1")
    print(*[w.pid for w in _pool.workers if w.pid], flush=True)
    execution_match(database, predicted, "SELECT 1", timeout_s=100.0)
    time.sleep(100)

if thread == "main":
    work()
else:
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("predicted", ["SELECT 1", ENDLESS + "SELECT count(*) FROM r", ONE_LONG_STEP])
def test_no_orphan_is_left_when_the_parent_is_killed(database: Path, predicted: str, thread: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(database), predicted, thread]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.2)
        assert worker.is_running()
        parent.kill()
    deadline = time.monotonic() + 10
    while _alive(worker.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(worker.pid)


def test_no_worker_is_left_after_a_normal_end(database: Path) -> None:
    program = PROGRAM.replace("time.sleep(100)", "pass")
    command = [sys.executable, "-c", program, str(database), "SELECT 1", "main"]
    ended = subprocess.run(command, capture_output=True, cwd=REPO, timeout=60, check=True)
    assert not _alive(int(ended.stdout))
    assert ended.stderr == b""


def test_the_end_of_a_thread_ends_no_worker(database: Path) -> None:
    end_workers()
    thread = threading.Thread(target=_check_normal, args=(database,))
    thread.start()
    thread.join()
    (pid,) = worker_pids()
    time.sleep(0.2)
    _check_normal(database)
    assert worker_pids() == [pid]
