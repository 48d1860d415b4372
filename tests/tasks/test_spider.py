"""The bundled files of Spider, all of them, and schemas as text."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from act_assets.tasks.ambig_sql.spider import (
    Column,
    ForeignKey,
    Spider,
    Table,
    database_names,
    in_words,
    parse_table,
    parse_tables,
    plain_database,
    quoted,
    read_spider,
    table_text,
    tables_of,
)
from act_assets.tasks.files import find_file

SAMPLE = Path(__file__).resolve().parents[2] / "datasets" / "sample" / "ambig_sql"
FEW = ("concert_singer", "aircraft", "perpetrator", "orchestra", "pets_1")  # three of them with odd names


@pytest.fixture(scope="module")
def spider() -> Spider:
    return read_spider(SAMPLE)


def test_the_sample_holds_what_its_source_says(spider: Spider) -> None:
    assert (len(spider.train), len({q.db_id for q in spider.train})) == (6628, 135)
    assert (len(spider.dev), len({q.db_id for q in spider.dev})) == (484, 10)
    assert len(spider.schemas) == 145
    assert [q.number for q in spider.dev] == list(range(1, 485))
    assert spider.dev[0].query == "SELECT COUNT(*) FROM singer"


def test_every_further_file_is_there_and_belongs_to_a_question(spider: Spider) -> None:
    names = database_names(SAMPLE)
    assert len(set(names)) == 145 and list(names) == sorted(names)
    assert names[0] == "database/activity_1/activity_1.sqlite"
    assert all(find_file("ambig_sql", SAMPLE, name).is_file() for name in names)


def test_a_schema_is_read_with_its_keys(spider: Spider) -> None:
    text = spider.schemas["concert_singer"].text.splitlines()
    assert text[0].startswith("stadium (Stadium_ID number primary key, Location text, ")
    assert text[3] == (
        "singer_in_concert (concert_ID number, Singer_ID number; primary key (concert_ID, Singer_ID); "
        "concert_ID -> concert.concert_ID; Singer_ID -> singer.Singer_ID)"
    )
    assert spider.schemas["concert_singer"].tables[1].columns[3] == Column("Song_Name", "text", "song name")


def test_every_schema_survives_being_written_and_read(spider: Spider) -> None:
    for schema in spider.schemas.values():
        assert parse_tables(schema.text.splitlines()) == schema.tables
        assert tables_of(schema.blocks) == schema.tables
        assert [b.text for b in schema.blocks] == schema.text.splitlines()
        assert {b.section for b in schema.blocks} == {"schema"}


@pytest.mark.parametrize("db_id", FEW)
def test_the_names_of_a_schema_are_those_of_its_database(spider: Spider, db_id: str) -> None:
    with plain_database(SAMPLE, db_id) as path, closing(sqlite3.connect(path)) as connection:
        for table in spider.schemas[db_id].tables:
            columns = ", ".join(quoted(c.name) for c in table.columns)
            found = connection.execute(f"SELECT {columns} FROM {quoted(table.name)} LIMIT 0").description
            assert [d[0] for d in found] == [c.name for c in table.columns]
    assert not path.exists()


ODD = Table(
    'order ""(x)',
    "order x",
    (
        Column("Home, Town;", "text", "home, town;"),
        Column("select", "number", "select"),
        Column("Größe", "time", "größe"),
    ),
    ("select", "Größe"),
    (ForeignKey("Home, Town;", "a.b -> c", "id"),),
)


def test_names_of_any_kind_survive() -> None:
    read = parse_table(table_text(ODD))
    assert (read.name, read.primary_key, read.foreign_keys) == (ODD.name, ODD.primary_key, ODD.foreign_keys)
    assert [(c.name, c.type) for c in read.columns] == [(c.name, c.type) for c in ODD.columns]
    assert parse_table(table_text(Table("t", "t", ()))).columns == ()


@pytest.mark.parametrize(
    "text",
    ["", "singer", "singer (", "singer (a)", "singer (a number", "singer (a number) more", "s (a b; c)", "? (a b)"],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no table of a schema"):
        parse_table(text)


def test_names_are_quoted_where_sql_needs_it() -> None:
    assert [quoted(n) for n in ("singer", "match", "Home Town", "%_Change_2007", 'a"b', "Order")] == [
        "singer",
        '"match"',
        '"Home Town"',
        '"%_Change_2007"',
        '"a""b"',
        '"Order"',
    ]
    assert in_words("Song_release__Year") == "song release year"
