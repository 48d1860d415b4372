"""Expected outcomes are derived by hand from the rules of the test-suite evaluator (exec_eval.py)."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_assets.metrics import denotation, sql_process
from act_assets.metrics.denotation import SearchLimitError, equal_denotations
from act_assets.metrics.execution_match import execution_match, execution_matches, runs
from act_assets.metrics.sql_process import end_workers
from act_assets.metrics.sql_text import read_query
from resources.errors import DataError

pytestmark = pytest.mark.integration

SCHEMA = """
CREATE TABLE singer (id INTEGER, name TEXT, country TEXT, age INTEGER, rating REAL);
INSERT INTO singer VALUES (1,'Joe','US',30,4.5), (2,'Ann','US',25,4.0), (3,'Bob','UK',30,NULL),
                          (4,'Cleo','FR',41,5.0), (5,'Joe','UK',25,4.5), (6,'Dan',NULL,52,3.0);
CREATE TABLE concert (id INTEGER, singer_id INTEGER, year INTEGER, title TEXT);
INSERT INTO concert VALUES (1,1,2014,'Night'), (2,1,2015,'Day'), (3,2,2014,'Night'), (4,5,2015,'x > = y'),
                           (5,NULL,2016,'DISTINCT order by'), (6,4,2014,'Day');
CREATE TABLE look (k INTEGER, v);
INSERT INTO look VALUES (1,1), (2,1.0), (3,'1'), (4,X'31'), (5,NULL), (6,2.5), (7,'2.5'), (8,'');
CREATE TABLE bag (x INTEGER, y INTEGER);
INSERT INTO bag VALUES (1,2), (1,2), (2,1), (3,3), (NULL,1);
CREATE TABLE raw (id INTEGER, t);
INSERT INTO raw VALUES (1,CAST(X'61FF62' AS TEXT)), (2,'ab'), (3,X'6162'), (4,CAST(X'FF' AS TEXT)), (5,'');
CREATE TABLE tri (a INTEGER, b INTEGER, c INTEGER);
INSERT INTO tri VALUES (0,1,1), (1,0,1), (1,1,0), (0,0,1);
CREATE TABLE none_a (a INTEGER, b TEXT);
CREATE TABLE "odd name" ("a b" INTEGER, "order by" TEXT);
INSERT INTO "odd name" VALUES (1,'one'), (2,'two');
"""

SINGERS = "SELECT name, age FROM singer"
UNION3 = "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3"

# group: (predicted, gold, match)
PAIRS: dict[str, list[tuple[str, str, bool]]] = {
    "the same": [
        (SINGERS, SINGERS, True),
        ("SELECT 1", "SELECT 1", True),
        ("SELECT 1", "SELECT 2", False),
        ("WITH s AS (SELECT age FROM singer) SELECT * FROM s", "SELECT age FROM singer", True),
        ("SELECT value FROM json_each('[1,2]')", "VALUES (2), (1)", True),
    ],
    "column permutation": [
        ("SELECT age, name FROM singer", SINGERS, True),
        ("SELECT age, name, id FROM singer", "SELECT id, name, age FROM singer", True),
        ("SELECT name, age, name FROM singer", "SELECT age, name, age FROM singer", False),
        ("SELECT name FROM singer", SINGERS, False),
        ("SELECT name, age, 1 FROM singer", SINGERS, False),
        ("SELECT b, a, c FROM tri", "SELECT a, b, c FROM tri", True),
        ("SELECT a, b, 1 - c FROM tri", "SELECT a, b, c FROM tri", False),
        ("SELECT 1, 2, 3, 4, 5", "SELECT 5, 4, 3, 2, 1", True),
        ("SELECT 1, 2 UNION ALL SELECT 2, 1", "SELECT 2, 1 UNION ALL SELECT 1, 2", True),
        ("SELECT 1, 2 UNION ALL SELECT 1, 2", "SELECT 1, 2 UNION ALL SELECT 2, 1", False),  # one order for all rows
        ("SELECT 1, 2 UNION ALL SELECT 1, 2", "SELECT 2, 1 UNION ALL SELECT 2, 1", True),
    ],
    "order": [
        (SINGERS + " ORDER BY age DESC", SINGERS, True),  # gold is not ordered
        (SINGERS, SINGERS + " ORDER BY age DESC", False),
        (SINGERS + " ORDER BY id DESC", SINGERS + " ORDER BY id", False),
        ("SELECT age, name FROM singer ORDER BY id", SINGERS + " ORDER BY id", True),
        (SINGERS, SINGERS + " ORDER BY id", True),  # the table's own order is that of id
        (SINGERS, SINGERS + " ORDER  BY\n age DESC", False),  # any white space
        (SINGERS, SINGERS + " ORDER /* ! */ BY age DESC", False),
        ("SELECT age FROM singer ORDER BY age, id", "SELECT age FROM singer ORDER BY age, id DESC", True),  # ties
        (
            "SELECT id FROM singer ORDER BY id DESC",
            "SELECT id FROM singer WHERE id IN (SELECT id FROM singer ORDER BY id)",
            False,  # ORDER BY anywhere in gold
        ),
        (
            "SELECT id FROM concert WHERE title != 'order by' ORDER BY id DESC",
            "SELECT id FROM concert WHERE title != 'order by'",
            True,  # a literal is not ORDER BY (for the evaluator it is)
        ),
        ('SELECT "order by" FROM "odd name" ORDER BY 1 DESC', 'SELECT "order by" FROM "odd name"', True),
        ("SELECT id FROM singer ORDER BY id DESC", "SELECT id FROM singer -- order by id", True),
        ("SELECT 2 UNION ALL SELECT 1", "SELECT 1 UNION ALL SELECT 2 ORDER BY 1", False),
        ("SELECT 1, 2 UNION ALL SELECT 3, 1", "SELECT 2, 1 UNION ALL SELECT 1, 3 ORDER BY 1 DESC", True),
    ],
    "bags of rows": [
        ("SELECT x FROM bag ORDER BY x DESC", "SELECT x FROM bag", True),
        ("VALUES (1), (1), (2)", "VALUES (1), (2), (2)", False),  # the same sets, other bags
        ("VALUES (1), (2), (2)", "VALUES (1), (2)", False),
        ("VALUES (1, 'a'), (1, 'a'), (2, 'b')", "VALUES ('a', 1), ('b', 2), ('a', 1)", True),
        ("VALUES (1, 'a'), (2, 'a'), (2, 'b')", "VALUES ('a', 1), ('b', 2), ('a', 1)", False),
        ("VALUES (1, 'a'), (2, 'b')", "VALUES (1, 'b'), (2, 'a')", False),  # equal columns, other rows
    ],
    "DISTINCT ignored": [
        ("SELECT DISTINCT x FROM bag", "SELECT x FROM bag", True),
        ("SELECT x FROM bag", "SELECT DISTINCT x FROM bag", True),
        ("SELECT count(DISTINCT x) FROM bag", "SELECT count(x) FROM bag", True),
        ("SELECT DISTINCT(name) FROM singer", "SELECT name FROM singer", True),
        ("SELECT/**/DISTINCT/**/name FROM singer", "SELECT name FROM singer", True),
        ("SELECT DISTINCT'a'FROM bag", "SELECT 'a' FROM bag", True),
        ("SELECT 'DISTINCT'", "SELECT ''", False),  # a literal keeps it
        ("SELECT id FROM concert WHERE title LIKE 'DISTINCT%'", "SELECT 5", True),
        ("SELECT 'a DISTINCT b' -- DISTINCT", "SELECT 'a ' || 'DISTINCT' || ' b'", True),
        ("SELECT 'it''s DISTINCT'", "SELECT 'it' || char(39) || 's DISTINCT'", True),
        ("SELECT x FROM bag GROUP BY x", "SELECT DISTINCT x FROM bag", False),  # removed from gold, too
        ("SELECT x IS DISTINCT FROM 1 FROM bag", "SELECT x IS NOT 1 FROM bag", True),
        ("SELECT x IS NOT DISTINCT FROM 1 FROM bag", "SELECT x IS 1 FROM bag", True),
        ("SELECT DISTINCT DISTINCT x FROM bag", "SELECT x FROM bag", True),  # as in the evaluator
    ],
    "numbers and text": [
        ("SELECT 1", "SELECT 1.0", True),
        ("SELECT '1'", "SELECT 1", False),
        ("SELECT X'31'", "SELECT '1'", False),
        ("SELECT X'31'", "SELECT CAST('1' AS BLOB)", True),
        ("SELECT v FROM look WHERE k = 1", "SELECT v FROM look WHERE k = 2", True),
        ("SELECT v FROM look WHERE k = 3", "SELECT v FROM look WHERE k = 4", False),
        ("SELECT 1, '1.'", "SELECT 1.0, '1.'", True),  # sorted as text these rows differ
        ("SELECT 0.1 + 0.2", "SELECT 0.3", False),  # no tolerance
        ("SELECT 0", "SELECT -0.0", True),
        ("SELECT 9007199254740993", "SELECT 9007199254740992.0", False),
        ("SELECT 9e999", "SELECT 9e998", True),  # both infinite
        ("SELECT -9e999", "SELECT 9e999", False),
        ("SELECT 9e999 - 9e999", "SELECT NULL", True),  # SQLite has no NaN
        ("SELECT 'Joe'", "SELECT 'joe'", False),
        ("SELECT CAST(age AS TEXT) FROM singer", "SELECT age FROM singer", False),
        ("SELECT 1, 2.0 UNION ALL SELECT 3.0, 4", "SELECT 2, 1.0 UNION ALL SELECT 4.0, 3", True),
    ],
    "text that is not UTF-8": [
        ("SELECT t FROM raw WHERE id = 1", "SELECT t FROM raw WHERE id = 2", True),  # the byte FF is ignored
        ("SELECT t FROM raw WHERE id = 2", "SELECT t FROM raw WHERE id = 3", False),  # a blob is no text
        ("SELECT t FROM raw WHERE id = 4", "SELECT t FROM raw WHERE id = 5", True),
        ("SELECT t FROM raw", "SELECT t FROM raw ORDER BY id", True),
        ("SELECT CAST(X'C3A9' AS TEXT)", "SELECT 'é'", True),
        ("SELECT 'a' || char(0) || 'b'", "SELECT 'a'", False),  # text goes on after a NUL
        ("SELECT 'a' || char(0) || 'b'", "SELECT CAST(X'610062' AS TEXT)", True),
        ("SELECT '日本'", "SELECT char(26085, 26412)", True),
    ],
    "NULL": [
        ("SELECT NULL", "SELECT NULL", True),
        ("SELECT NULL", "SELECT ''", False),
        ("SELECT 'None'", "SELECT NULL", False),
        ("SELECT rating FROM singer ORDER BY id DESC", "SELECT rating FROM singer", True),
        ("SELECT NULL, 1", "SELECT 1, NULL", True),
    ],
    "empty results": [
        ("SELECT a FROM none_a", "SELECT b FROM none_a", True),
        ("SELECT a, b FROM none_a", "SELECT b FROM none_a", True),  # whatever the number of columns
        ("SELECT 1", "SELECT a FROM none_a", False),
        ("SELECT count(*) FROM none_a", "SELECT a FROM none_a", False),
        ("SELECT a FROM none_a ORDER BY a", "SELECT b FROM none_a ORDER BY b", True),
        ("", "SELECT a FROM none_a", False),  # an empty prediction is no empty result
        ("-- nothing", "SELECT a FROM none_a", False),
        ("SELECT nothing FROM none_a", "SELECT a FROM none_a", False),
    ],
    "comparison signs": [
        ("SELECT id FROM singer WHERE age > = 30", "SELECT id FROM singer WHERE age >= 30", True),
        ("SELECT id FROM singer WHERE age ! = 30", "SELECT id FROM singer WHERE age != 30", True),
        ("SELECT id FROM singer WHERE age >= 30", "SELECT id FROM singer WHERE age > = 30", True),
        ("SELECT id FROM concert WHERE title = 'x > = y'", "SELECT 4", True),  # a literal keeps its blank
        ("SELECT 'a ! = b'", "SELECT 'a != b'", False),
        ("SELECT id FROM singer WHERE age >  = 30", "SELECT id FROM singer WHERE age >= 30", False),  # one blank only
        ("SELECT 1 WHERE 2 > =1", "SELECT 1", True),
    ],
    "the current year": [
        ("SELECT YEAR(CURDATE())", "SELECT 2020", True),
        ("SELECT year ( curdate ( ) ) - 20", "SELECT 2000", True),
        ("SELECT 2020 - age FROM singer", "SELECT YEAR(CURDATE()) - age FROM singer", True),
        ("SELECT YEAR(CURDATE())FROM bag", "SELECT 2020 FROM bag", True),
        ("SELECT 'YEAR(CURDATE())'", "SELECT '2020'", False),
        ("SELECT year(year) FROM concert", "SELECT year FROM concert", False),  # no such function
    ],
    "whole queries": [
        ("SELECT sum(age) / count(*) FROM singer", "SELECT avg(age) FROM singer", False),  # integer division
        ("SELECT max(age), min(age) FROM singer", "SELECT min(age), max(age) FROM singer", True),
        ("SELECT age FROM singer GROUP BY age", "SELECT age FROM singer", False),
        (
            "SELECT s.name FROM concert c, singer s WHERE c.singer_id = s.id",
            "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id",
            True,
        ),
        ("SELECT id FROM singer s JOIN concert c ON s.id = c.singer_id", "SELECT 1", False),  # ambiguous
        ("SELECT age FROM singer UNION ALL SELECT age FROM singer", "SELECT age FROM singer", False),
        ("SELECT id FROM singer EXCEPT SELECT singer_id FROM concert", "VALUES (3), (6)", True),
        (UNION3, "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r", True),
    ],
    "names, case, quotes": [
        ("select NAME from SINGER", "SELECT name FROM singer", True),
        ("SELECT `name` FROM [singer]", "SELECT name FROM singer", True),
        ('SELECT id FROM singer WHERE name = "Joe"', "SELECT id FROM singer WHERE name = 'Joe'", True),
        ("SELECT id FROM singer WHERE name = 'joe'", "SELECT id FROM singer WHERE name = 'Joe'", False),
        ("SELECT \n\t name\r\n FROM\fsinger", "SELECT name FROM singer", True),
        ("\ufeffSELECT name FROM singer", "SELECT name FROM singer", True),
        ("SELECT'a'", "SELECT 'a'", True),
    ],
    "comments and semicolons": [
        ("SELECT 1;", "SELECT 1", True),
        ("SELECT 1; -- done", "SELECT 1", True),
        ("SELECT 1;;", "SELECT 1", True),
        ("-- first\nSELECT 1", "SELECT 1", True),
        ("/* a */ SELECT /* b */ 1 /* c", "SELECT 1", True),
        ("SELECT 1 -- ; SELECT 2", "SELECT 1", True),
        ("SELECT ';'", "SELECT char(59)", True),
        ("SELECT '--'", "SELECT '-' || '-'", True),
        ("SELECT 1; SELECT 1", "SELECT 1", False),
        ("; SELECT 1", "SELECT 1", False),
        (";", "SELECT 1", False),
        ("/* SELECT 1 */", "SELECT 1", False),
    ],
    "what does not run": [
        ("", "SELECT 1", False),
        ("I cannot answer that.", "SELECT 1", False),
        ("SELECT name FROM singers", "SELECT name FROM singer", False),
        ("SELECT nofunction(1)", "SELECT 1", False),
        ("SELECT 'open", "SELECT 'open'", False),
        ("SELECT ?", "SELECT NULL", False),
        ("```sql\nSELECT 1\n```", "SELECT 1", False),
        ("SELECT abs(-9223372036854775808)", "SELECT 1", False),  # fails while it runs
        ("EXPLAIN SELECT 1", "SELECT 1", False),
        ("PRAGMA user_version", "SELECT 0", False),
    ],
}
CASES = [
    pytest.param(*pair, id=f"{group} {number}") for group, pairs in PAIRS.items() for number, pair in enumerate(pairs)
]


def worker_pids() -> list[int]:
    return [w.pid for w in sql_process._pool.workers if w.pid]


def gold_runs() -> int:
    return sum(w.gold_runs for w in sql_process._pool.workers)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _database(tmp_path_factory.mktemp("sql") / "a ?#% b.sqlite")


def _database(path: Path, script: str = SCHEMA) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA synchronous = OFF;" + script)
    connection.close()
    return path


@pytest.mark.parametrize(("predicted", "gold", "expected"), CASES)
def test_pair(database: Path, predicted: str, gold: str, expected: bool) -> None:
    found = execution_match(database, predicted, gold)
    assert found.match == expected, found.reason
    assert (found.reason is None) == expected


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("SELECT DISTINCT x FROM bag", "SELECT x FROM bag", False),
        ("SELECT x FROM bag GROUP BY x", "SELECT DISTINCT x FROM bag", True),
        ("SELECT count(DISTINCT x) FROM bag", "SELECT 3", True),
        ("SELECT count(x) FROM bag", "SELECT count(DISTINCT x) FROM bag", False),
        ("SELECT DISTINCT title FROM concert", "SELECT title FROM concert GROUP BY title", True),
    ],
)
def test_distinct_can_be_kept(database: Path, predicted: str, gold: str, expected: bool) -> None:
    assert execution_match(database, predicted, gold, ignore_distinct=False).match == expected


@pytest.mark.parametrize(
    ("predicted", "part"),
    [
        ("", "it is empty"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT x FROM nowhere", "no such table: nowhere"),
        ("DROP TABLE bag", "not allowed: DROP"),
        ("SELECT 1 UNION ALL SELECT 2", "has more rows than gold's 1"),
        ("SELECT 1 WHERE 0", "has 0 rows, gold's 1"),
        ("SELECT 1, 2", "has 2 columns, gold's 1"),
        ("SELECT 2", "differ in their values."),
    ],
)
def test_the_reason_is_a_sentence(database: Path, predicted: str, part: str) -> None:
    reason = execution_match(database, predicted, "SELECT 1").reason
    assert reason is not None
    assert part in reason
    assert reason.endswith(".") and reason[0].isupper()


@pytest.mark.parametrize(
    "gold", ["SELECT x FROM nowhere", "", "DROP TABLE bag", "SELECT 1; SELECT 2", "SELECT \0", "SELECT '\ud800'"]
)
def test_a_gold_query_that_does_not_run_is_an_error_whatever_the_prediction(database: Path, gold: str) -> None:
    with pytest.raises(DataError) as raised:
        execution_match(database, "", gold)
    assert str(database) in raised.value.where and ascii(gold) in raised.value.where and raised.value.todo
    assert runs(database, gold) == raised.value.what


@pytest.mark.parametrize("name", ["missing.sqlite", "text.sqlite", "empty.sqlite", "", "broken.sqlite", "a\0b"])
def test_a_database_that_cannot_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.sqlite").write_text("SELECT 1")
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "broken.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError) as raised:
        execution_match(tmp_path / name, "SELECT 1", "SELECT 1")
    assert str(tmp_path / name) in raised.value.where and "SELECT 1" in raised.value.where
    assert runs(tmp_path / name, "SELECT 1") == raised.value.what
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_the_time_is_checked(database: Path, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        execution_match(database, "SELECT 1", "SELECT 1", timeout_s=timeout_s)


def test_many_pairs_keep_their_order(database: Path) -> None:
    pairs = [(database, f"SELECT {i % 3}", f"SELECT {i % 2}") for i in range(60)]
    assert all(runs(database, gold) is None for _, _, gold in pairs[:2])
    found = execution_matches(pairs)
    assert [m.match for m in found] == [i % 3 == i % 2 for i in range(60)]
    assert execution_matches([]) == []
    with pytest.raises(DataError):
        execution_matches([*pairs, (database, "SELECT 1", "SELECT x FROM nowhere")])


def test_a_gold_query_runs_once(database: Path) -> None:
    end_workers()
    gold, before = "SELECT name FROM singer WHERE age > 26", gold_runs()
    for predicted in (gold, "SELECT 1", "DROP TABLE singer", "", gold):
        execution_match(database, predicted, gold)
    assert gold_runs() == before + 1
    assert execution_match(database, gold, "SELECT DISTINCT name FROM singer WHERE age > 26").match
    assert gold_runs() == before + 2, "the key is the query as it is run: a blank stands for DISTINCT"
    end_workers()
    execution_match(database, gold, gold)
    assert gold_runs() == before + 3, "a new process runs it again"


def test_what_may_change_is_not_remembered(database: Path) -> None:
    gold = "SELECT julianday('now') - julianday('now')"
    before = gold_runs()
    assert [execution_match(database, "SELECT 0", gold).match for _ in range(3)] == [True] * 3
    assert gold_runs() == before + 3


def test_a_changed_database_is_read_again(tmp_path: Path) -> None:
    path = _database(tmp_path / "one.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    assert execution_match(path, "SELECT 1", "SELECT a FROM t").match
    path.unlink()
    _database(path, "CREATE TABLE t (a); INSERT INTO t VALUES (2), (3);")
    assert execution_match(path, "VALUES (2), (3)", "SELECT a FROM t").match
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        execution_match(path, "SELECT 1", "SELECT a FROM t")


def test_many_databases_are_open_in_turn(tmp_path: Path) -> None:
    paths = [_database(tmp_path / f"{i}.sqlite", f"CREATE TABLE t (a); INSERT INTO t VALUES ({i});") for i in range(40)]
    for _ in range(2):
        assert all(execution_match(p, f"SELECT {i}", "SELECT a FROM t").match for i, p in enumerate(paths))
    (worker,) = (psutil.Process(pid) for pid in worker_pids()[:1])
    assert len([f for f in worker.open_files() if f.path.startswith(str(tmp_path))]) <= 32


def test_a_write_ahead_log_is_read_and_left_alone(tmp_path: Path) -> None:
    path = _database(tmp_path / "wal.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    writer = sqlite3.connect(path)
    writer.executescript("PRAGMA journal_mode = wal; INSERT INTO t VALUES (2);")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")}
    assert execution_match(path, "VALUES (1), (2)", "SELECT a FROM t").match
    writer.execute("INSERT INTO t VALUES (3)")
    writer.commit()
    assert execution_match(path, "VALUES (1), (2), (3)", "SELECT a FROM t").match
    writer.close()
    other = tmp_path / "other"
    other.mkdir()
    for name, content in before.items():
        (other / name).write_bytes(content)
    with pytest.raises(DataError, match="merges"):  # without -shm it could be read only by writing one
        execution_match(other / "wal.sqlite", "SELECT 1", "SELECT a FROM t")
    assert {p.name: p.read_bytes() for p in other.iterdir()} == before


def test_a_database_in_wal_mode_needs_no_files_beside_it(tmp_path: Path) -> None:
    path = _database(
        tmp_path / "wal.sqlite", "PRAGMA journal_mode = wal; CREATE TABLE t (a); INSERT INTO t VALUES (1);"
    )
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"wal.sqlite"}
    assert execution_match(path, "SELECT 1", "SELECT a FROM t").match
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_relative_path_is_the_callers(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    assert execution_match(Path(database.name), "SELECT 1", "SELECT 1").match


def test_the_process_knows_no_secrets(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "x")
    end_workers()
    execution_match(database, "SELECT 1", "SELECT 1")
    (pid,) = worker_pids()
    process = psutil.Process(pid)
    assert set(process.environ()) <= {"LD_LIBRARY_PATH", "LC_CTYPE"}
    assert os.getsid(pid) == pid


def test_threads_do_not_mix_their_answers(database: Path) -> None:
    wrong: list[Any] = []

    def work(me: int) -> None:
        for i in range(40):
            found = execution_match(database, f"SELECT {i % 4}", f"SELECT {(i + me) % 4}")
            if found.match != (me % 4 == 0):
                wrong.append((me, i, found))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_its_own_process(database: Path) -> None:
    assert execution_match(database, "SELECT 1", "SELECT 1").match
    mine = worker_pids()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            matched = execution_match(database, "SELECT 2", "SELECT 2").match
            own = matched and bool(worker_pids()) and not set(worker_pids()) & set(mine)
            end_workers()
            os.write(writer, b"own" if own else b"shared")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert said.read() == b"own"
    assert execution_match(database, "SELECT 1", "SELECT 1").match
    assert worker_pids() == mine


VALUES = st.sampled_from([0, 1, 1.0, 2, "1", None, b"1"])


@st.composite
def results(draw: st.DrawFn) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Two small results, often of the same bag of rows up to the order of columns, often with one cell changed."""
    width, height = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    rows = st.lists(st.tuples(*[VALUES] * width), min_size=height, max_size=height)
    gold = draw(rows)
    if draw(st.integers(0, 4)) == 0:
        return gold, draw(rows)
    order = draw(st.permutations(range(width)))
    other = [tuple(row[i] for i in order) for row in (draw(st.permutations(gold)) if draw(st.booleans()) else gold)]
    if other and draw(st.booleans()):
        i, j = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        other[i] = (*other[i][:j], draw(VALUES), *other[i][j + 1 :])
    return gold, other


@settings(max_examples=400, deadline=None)
@given(results(), st.booleans())
def test_the_search_agrees_with_all_permutations(
    pair: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]], ordered: bool
) -> None:
    gold, predicted = pair
    orders = permutations(range(len(gold[0]))) if gold else [()]
    permuted = ([tuple(row[i] for i in order) for row in predicted] for order in orders)
    expected = any(p == gold if ordered else Counter(p) == Counter(gold) for p in permuted)
    assert equal_denotations(gold, predicted, ordered=ordered) == expected


def _edges(graph: dict[tuple[int, int], list[tuple[int, int]]]) -> list[tuple[int, ...]]:
    return [tuple(int(node in (a, b)) for node in graph) for a in graph for b in graph[a] if a < b]


def _graph(steps: list[tuple[int, int]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The graph on Z4 x Z4 with an edge for each step."""
    nodes = [(x, y) for x in range(4) for y in range(4)]
    return {(x, y): [((x + a) % 4, (y + b) % 4) for a, b in steps] for x, y in nodes}


ROOK = [(1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3)]
SHRIKHANDE = [(1, 0), (3, 0), (0, 1), (0, 3), (1, 1), (3, 3)]


def test_columns_that_look_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rook's and Shrikhande's graphs have the same parameters; 16! orders of columns are out of reach."""
    rook, shrikhande = _edges(_graph(ROOK)), _edges(_graph(SHRIKHANDE))
    order = [(7 * i + 3) % 16 for i in range(16)]
    assert equal_denotations(rook, [tuple(row[i] for i in order) for row in reversed(rook)], ordered=False)
    monkeypatch.setattr(denotation, "SEARCH_LIMIT", 2_000)
    with pytest.raises(SearchLimitError):
        equal_denotations(rook, shrikhande, ordered=False)


def test_many_equal_columns_are_no_search() -> None:
    gold = [(0, *[i] * 300, i % 2) for i in range(50)]
    assert equal_denotations(gold, [row[::-1] for row in reversed(gold)], ordered=False)
    assert not equal_denotations(gold, [(*row[:-1], 1 - row[-1]) for row in gold], ordered=False)
    one_hot = [tuple(int(i == j) for j in range(60)) for i in range(60)]
    assert equal_denotations(one_hot, [row[::-1] for row in one_hot], ordered=True)
    assert equal_denotations(one_hot, [row[7:] + row[:7] for row in one_hot], ordered=False)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("aD'\"`[]-/*; \n.>=<!(distinct)\u00e9\ufeff\ud800\0"), max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    assert read_query(text, ignore_distinct=True).sql.count("distinct") <= text.lower().count("distinct")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_a_literal_is_never_changed(content: str) -> None:
    hard = f"{content} DISTINCT > = ; YEAR(CURDATE()) -- /* order by"
    for sql in (f"SELECT '{hard.replace(chr(39), chr(39) * 2)}'", f'SELECT "{hard.replace(chr(34), chr(34) * 2)}"'):
        query = read_query(sql, ignore_distinct=True)
        assert (query.sql, query.ordered, query.problem) == (sql, False, None)
