"""Malformed Spider files: each is refused with the file, the item, and what to do."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from act_assets.tasks.ambig_sql.spider import database_names, plain_database, read_spider
from resources.errors import DataError

Item = dict[str, Any]


def schema(db_id: str, **more: object) -> Item:
    return {
        "db_id": db_id,
        "table_names_original": ["Singer", "In_Band"],
        "table_names": ["singer", "in band"],
        "column_names_original": [[-1, "*"], [0, "Id"], [0, "Name"], [1, "Singer_Id"], [1, "Band"]],
        "column_names": [[-1, "*"], [0, "id"], [0, "name"], [1, "singer id"], [1, "band"]],
        "column_types": ["text", "number", "text", "number", "text"],
        "primary_keys": [1, [3, 4]],
        "foreign_keys": [[3, 1]],
        **more,
    }


def question(db_id: str, **more: object) -> Item:
    return {"db_id": db_id, "question": "How many singers?", "query": "SELECT count(*) FROM Singer", **more}


FILES: dict[str, list[Item]] = {
    "tables.json": [schema("one"), schema("two")],
    "train_spider.json": [question("one", sql={"from": 1}, query_toks=["SELECT"]), question("one", question="Who?")],
    "dev.json": [question("two")],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, items in FILES.items():
        (tmp_path / name).write_text(json.dumps(items))
    for db_id in ("one", "two"):
        (tmp_path / "database" / db_id).mkdir(parents=True)
        with closing(sqlite3.connect(tmp_path / "database" / db_id / f"{db_id}.sqlite")) as connection:
            connection.execute("CREATE TABLE Singer (Id, Name)")
    return tmp_path


def refusal(folder: Path, *named: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_spider(folder)
    assert caught.value.where.startswith("task ambig_sql, ")
    for part in named:
        assert part in caught.value.where, "the file and the item are named"
    assert caught.value.todo, "what to do is said"
    return caught.value


def spoilt(folder: Path, name: str, spoil: Callable[[list[Item]], object], number: int) -> str:
    """How the files are refused after one change to one of them."""
    items = copy.deepcopy(FILES[name])
    spoil(items)
    (folder / name).write_text(json.dumps(items))
    return str(refusal(folder, str(folder / name), f"item {number}"))


def test_the_sound_files_are_read_in_both_forms_of_keys(folder: Path) -> None:
    spider = read_spider(folder)
    assert (len(spider.train), len(spider.dev)) == (2, 1)
    assert spider.schemas["one"].text.splitlines() == [
        "Singer (Id number primary key, Name text)",
        "In_Band (Singer_Id number, Band text; primary key (Singer_Id, Band); Singer_Id -> Singer.Id)",
    ]
    flat = [schema("one", primary_keys=[1, 3, 4]), schema("two")]
    (folder / "tables.json").write_text(json.dumps(flat))
    assert read_spider(folder).schemas["one"].text == spider.schemas["one"].text


def test_spaces_in_a_question_are_one_each(folder: Path) -> None:
    (folder / "dev.json").write_text(json.dumps([question("two", question=" How \n many\t? ", query=" SELECT 1\n")]))
    (read,) = read_spider(folder).dev
    assert (read.question, read.query) == ("How many ?", "SELECT 1")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe[]", b"{}", b"[]", b"null"])
def test_a_file_that_is_no_list_of_items_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refusal(folder, str(folder / name))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_refused(folder: Path, name: str) -> None:
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes())[:-9])
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"(?s)cannot be read.*{name}\.gz"):
        read_spider(folder)
    (folder / f"{name}.gz").unlink()
    assert f"{name} is missing" in str(refusal(folder, str(folder)))


QUESTION_FAULTS: dict[str, tuple[Callable[[Item], object], str]] = {
    **{f"no {key}": (lambda q, key=key: q.pop(key), f"missing key '{key}'") for key in FILES["dev.json"][0]},
    **{
        f"{key} is a number": (lambda q, key=key: q.update({key: 5}), f"'{key}' must be a string, not 5")
        for key in FILES["dev.json"][0]
    },
    "blank question": (lambda q: q.update(question=" \n"), "'question' is blank"),
    "blank query": (lambda q: q.update(query=""), "'query' is blank"),
    "unknown database": (lambda q: q.update(db_id="three"), "'three', which tables.json does not describe"),
    "a path": (lambda q: q.update(db_id="../one"), "'db_id' must be a name of letters, digits and underscores"),
}


@pytest.mark.parametrize("fault", QUESTION_FAULTS)
def test_a_malformed_question_is_refused_by_its_number(folder: Path, fault: str) -> None:
    spoil, said = QUESTION_FAULTS[fault]
    assert said in spoilt(folder, "train_spider.json", lambda items: spoil(items[1]), 2)


@pytest.mark.parametrize("item", [None, 3, "text", []])
@pytest.mark.parametrize("name", FILES)
def test_an_item_that_is_no_mapping_is_refused_by_its_number(folder: Path, name: str, item: object) -> None:
    assert "malformed" in spoilt(folder, name, lambda items: items.insert(0, item), 1)


def test_a_database_on_both_sides_is_refused(folder: Path) -> None:
    said = spoilt(folder, "dev.json", lambda items: items.append(question("one")), 2)
    assert "'one' has questions in train_spider.json too" in said


def put(**values: object) -> Callable[[Item], object]:
    return lambda item: item.update(values)


SCHEMA_FAULTS: dict[str, tuple[Callable[[Item], object], str]] = {
    **{f"no {key}": (lambda s, key=key: s.pop(key), f"missing key '{key}'") for key in schema("x")},
    **{
        f"{key} is a text": (lambda s, key=key: s.update({key: "x"}), f"'{key}' must be a list, not 'x'")
        for key in schema("x")
        if key != "db_id"
    },
    "numeric name": (put(db_id=7), "'db_id' must be a string, not 7"),
    "described twice": (put(db_id="one"), "the database 'one' is described twice"),
    "no tables": (put(table_names_original=[], table_names=[]), "'table_names_original' is empty"),
    "a table is a number": (put(table_names=["singer", 1]), "'table_names' must hold texts, not 1"),
    "a table is blank": (put(table_names_original=["Singer", " "]), "'table_names_original' must hold texts"),
    "a table without its words": (put(table_names=["singer"]), "2 tables, but 1 'table_names'"),
    "a column without its type": (put(column_types=["text"]), "5 columns, but 5 'column_names', 1 types"),
    "a column without its words": (put(column_names=[[-1, "*"]]), "5 columns, but 1 'column_names', 5 types"),
    "a type of two words": (put(column_types=["text", "big int", "text", "text", "text"]), "one word, not 'big int'"),
    "a column of no table": (
        put(column_names_original=[[-1, "*"], [2, "Id"], [0, "Name"], [1, "Singer_Id"], [1, "Band"]]),
        "the column 'Id' is of table 2, and there are 2",
    ),
    "a column of table -2": (
        put(column_names_original=[[-2, "*"], [0, "Id"], [0, "Name"], [1, "Singer_Id"], [1, "Band"]]),
        "the column '*' is of table -2",
    ),
    "a column is a text": (put(column_names=["*"]), "'column_names' must hold pairs"),
    "a column of truth": (put(column_names=[[True, "x"]]), "'column_names' must hold pairs"),
    "a column without a name": (put(column_names=[[0, ""]]), "'column_names' must hold pairs"),
    "a key past the end": (put(primary_keys=[5]), "'primary_keys' names the column 5, and there are 5"),
    "a key past the end in a list": (put(primary_keys=[[1, 9]]), "'primary_keys' names the column 9"),
    "the key `*`": (put(primary_keys=[0]), "'primary_keys' names the column 0"),
    "a negative key": (put(primary_keys=[-1]), "'primary_keys' names the column -1"),
    "a key by name": (put(primary_keys=["Id"]), "'primary_keys' names the column 'Id'"),
    "a foreign key past the end": (put(foreign_keys=[[3, 8]]), "'foreign_keys' names the column 8"),
    "a foreign key of three": (put(foreign_keys=[[3, 1, 2]]), "'foreign_keys' must hold pairs of columns"),
    "a foreign key of one": (put(foreign_keys=[3]), "'foreign_keys' must hold pairs of columns, not 3"),
}


@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_a_malformed_schema_is_refused_by_its_number(folder: Path, fault: str) -> None:
    spoil, said = SCHEMA_FAULTS[fault]
    assert said in spoilt(folder, "tables.json", lambda items: spoil(items[1]), 2)


def test_a_missing_database_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "database" / "two")
    assert "database/two/two.sqlite is missing" in str(refusal(folder))
    assert "database/two/two.sqlite" in database_names(folder)
    with pytest.raises(DataError, match="missing"), plain_database(folder, "two"):
        pass


@pytest.mark.parametrize("content", [b"", b"SQLite format", b"CREATE TABLE t (a)", b"SQLite format 3\0 and nothing"])
def test_a_file_that_is_no_database_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "database" / "one" / "one.sqlite"
    path.write_bytes(content)
    assert "database cannot be read" in str(refusal(folder, str(path)))


@pytest.mark.parametrize("content", [b"no gz", gzip.compress(b"no database", mtime=0)])
def test_a_packed_file_that_is_no_database_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "database" / "one" / "one.sqlite"
    path.unlink()
    path.with_name("one.sqlite.gz").write_bytes(content)
    assert "database cannot be read" in str(refusal(folder, f"{path}.gz"))


def test_a_database_is_not_written_to(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    read_spider(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
