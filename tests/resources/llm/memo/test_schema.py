"""A memo is brought to a newer schema with every paid answer in it, or stays as it is."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from scripted import make_answer, paid

from resources.errors import ActError
from resources.llm.memo import database as database_module
from resources.llm.memo.database import Database
from resources.llm.memo.import_export import import_
from resources.llm.memo.journal import journals
from resources.llm.memo.maintain import verify
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import LATER, Use
from resources.llm.memo.schema import ANSWERS, MIGRATIONS, answers_of, migrate, schema_version, to_arrow
from resources.llm.memo.segments import write_tables

pytestmark = pytest.mark.integration

KEYS = [f"key {i}" for i in range(100)]
SECOND = """
    CREATE TABLE lengths AS SELECT key, length(text) AS letters FROM answers;
    UPDATE answers SET label = 'moved' WHERE label = 'example 1';
"""


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A memo folder of the first schema with answers, history and uses."""
    database = Database(tmp_path / "memo")
    answers = [make_answer(key, 1.0) for key in KEYS]
    database.fold([*answers, make_answer(KEYS[0], 2.0)], [Use(id="use")])
    return tmp_path / "memo"


NOW = len(MIGRATIONS)


def migrations(monkeypatch: pytest.MonkeyPatch, *further: str) -> None:
    """From now on the program knows these steps beyond its own."""
    known = functools.partial(migrate, migrations=(*MIGRATIONS, *further))
    monkeypatch.setattr(database_module, "migrate", known)


def counts(path: Path) -> list[tuple[int, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(
            "SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM history), (SELECT count(*) FROM uses), "
            "(SELECT max(version) FROM schema_version), (SELECT count(*) FROM schema_version)"
        ).fetchall()


def test_a_new_memo_has_the_newest_schema(filled: Path) -> None:
    assert counts(filled / "memo.duckdb") == [(100, 1, 1, NOW, 1)]


@pytest.mark.parametrize("lost", [False, True])
def test_a_memo_from_before_thoughts_were_kept_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Its database and its archive lack the columns that came later; rebuilt or not, nothing is asked again."""
    older = Database(tmp_path / "memo")
    answer = paid(said="<think>the goal is 7</think>Which year?")
    columns = [name for name in ANSWERS.names if name not in LATER]
    schema = pa.schema([ANSWERS.field(name) for name in columns])
    path = older.archive.new_segment("answers")
    write_tables(path, schema, [to_arrow([answer], schema)])
    with duckdb.connect(str(older.path)) as connection:
        migrate(connection, "an older version's", MIGRATIONS[:1])
        connection.execute(f"INSERT INTO answers FROM read_parquet('{path}')")
    if lost:
        older.path.unlink()
    (found,) = Database(older.folder).look_up([answer.key]).values()
    assert found.response().text == "Which year?", "the thought is taken off where it is read"
    assert verify(older.folder).problems == ()
    assert import_(Memo(tmp_path / "another"), path).added == 1


@pytest.mark.parametrize("steps", [(SECOND,), (SECOND, "ALTER TABLE lengths ADD COLUMN words BIGINT")])
def test_a_further_step_keeps_every_paid_answer(
    filled: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[str, ...]
) -> None:
    before = Database(filled).look_up(KEYS)
    migrations(monkeypatch, *steps)
    database = Database(filled)
    assert database.look_up(KEYS) == before and len(before) == 100
    assert counts(database.path) == [(100, 1, 1, NOW + len(steps), 1)]
    assert database.query("SELECT count(*), min(letters) > 0 FROM lengths") == [(100, True)]
    assert database.query("SELECT count(*) FROM answers WHERE label = 'moved'") == [(100,)]
    database.fold([make_answer("new")], [])
    assert counts(database.path) == [(101, 1, 1, NOW + len(steps), 1)]
    assert not list(filled.glob("*.damaged-*"))


@pytest.mark.parametrize(
    "mistake", ["SELECT error('no')", "SELECT * FROM nowhere", "INSERT INTO answers (id) VALUES ('x')", "no SQL"]
)
def test_a_step_that_fails_half_way_changes_nothing(
    filled: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    before = Database(filled).look_up(KEYS)
    with monkeypatch.context() as meanwhile:
        migrations(meanwhile, "CREATE TABLE half (x INTEGER); DELETE FROM answers", f"DROP TABLE history; {mistake}")
        # The first of the two is done, and by itself; the second one is not.
        with pytest.raises(duckdb.Error):
            Database(filled).look_up(KEYS)
        assert counts(filled / "memo.duckdb") == [(0, 1, 1, NOW + 1, 1)]
    Database(filled).path.unlink()
    assert Database(filled).look_up(KEYS) == before
    with monkeypatch.context() as meanwhile:
        migrations(meanwhile, f"CREATE TABLE half (x INTEGER); DELETE FROM answers; {mistake}")
        with pytest.raises(duckdb.Error):
            Database(filled).look_up(KEYS)
        with pytest.raises(duckdb.Error):
            Database(filled).fold([make_answer("new")], [])
    assert counts(filled / "memo.duckdb") == [(100, 1, 1, NOW, 1)]
    assert not list(filled.glob("*.damaged-*")) and not list(filled.glob("rebuilding*"))
    database = Database(filled)
    assert database.look_up(KEYS) == before
    with pytest.raises(duckdb.CatalogException, match="half"):
        database.query("SELECT * FROM half")


def test_a_memo_of_a_newer_version_is_refused_and_untouched(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        migrations(newer, SECOND, "CREATE TABLE more (x INTEGER)")
        Database(filled).look_up(KEYS)
    content = {p.name: p.read_bytes() for p in filled.rglob("*") if p.is_file()}
    for attempt in (
        lambda: Database(filled).look_up(KEYS),
        lambda: Database(filled).query("SELECT 1"),
        lambda: Database(filled).fold([make_answer("new")], [Use()]),
    ):
        with pytest.raises(ActError, match=f"schema {NOW + 2}, and this version knows {NOW}") as caught:
            attempt()
        assert "upgrade" in str(caught.value) and str(filled) in str(caught.value)
    assert {p.name: p.read_bytes() for p in filled.rglob("*") if p.is_file()} == content


def test_answers_paid_meanwhile_stay_in_their_journal(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = Memo(filled)
    memo.append([make_answer("new")])
    with monkeypatch.context() as newer:
        migrations(newer, SECOND)
        Database(filled).look_up(KEYS)
    memo.close()  # of the older version: cannot fold
    assert len(journals(memo.journal_folder)) == 1
    migrations(monkeypatch, SECOND)
    assert len(Memo(filled).look_up([*KEYS, "new"]).answers) == 101


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_answers_survive_the_way_through_arrow(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", zone)
        time.tzset()
        there_and_back()
    time.tzset()


def there_and_back() -> None:
    answers = [make_answer("a", 1732108801.123456, cost_usd=None), make_answer("b", 0.0, text="\0😀")]
    assert answers_of(to_arrow(answers, ANSWERS)) == answers
    assert answers_of(to_arrow([], ANSWERS)) == []


def test_a_database_without_tables_has_version_0() -> None:
    with duckdb.connect(":memory:") as connection:
        assert schema_version(connection) == 0
        migrate(connection, "memory")
        assert schema_version(connection) == len(MIGRATIONS)
        migrate(connection, "memory")  # nothing to do
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(len(MIGRATIONS),)]
