"""Spider: questions to databases, each with its SQL query (Yu et al., 2018), which AmbigSQL is made of.

`tables.json` describes the databases, `train_spider.json` and `dev.json` hold the questions, and the databases lie at
`database/<db_id>/<db_id>.sqlite`. Keys that are not read here may be missing. A schema is written as one line a table,
and read back from it:

    singer (Singer_ID number primary key, Name text, "Home Town" text, Band_ID number; Band_ID -> band.Band_ID)
"""

from __future__ import annotations

import gzip
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act_assets.conversation import ContextBlock
from act_assets.tasks.files import AGAIN, file_record, find_file, malformed, read_items, text_of, value_of
from act_assets.tasks.rules import one_line, words
from resources.errors import DataError

TASK = "ambig_sql"
TABLES, TRAIN, DEV = "tables.json", "train_spider.json", "dev.json"
SECTION = "schema"
_FIX = f"{AGAIN}, or fix this item"
_DB_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class SpiderQuestion:
    """A question and its gold query. `number` is its place in its file, from 1."""

    number: int
    db_id: str
    question: str
    query: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column as SQL names it, its type (text, number, time, ...) and its name in words."""

    name: str
    type: str
    natural: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """`column` of this table names a row of `table` by its column `target`."""

    column: str
    table: str
    target: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table as SQL names it, and its name in words. `primary_key` names the columns that make up the key."""

    name: str
    natural: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    """What `tables.json` says of a database."""

    db_id: str
    tables: tuple[Table, ...]

    @property
    def blocks(self) -> tuple[ContextBlock, ...]:
        """The schema as the grounding of a conversation, a block a table."""
        return tuple(ContextBlock(SECTION, table_text(t)) for t in self.tables)

    @property
    def text(self) -> str:
        """The schema, a line a table."""
        return "\n".join(table_text(t) for t in self.tables)


@dataclass(frozen=True, slots=True)
class Spider:
    """The three files. Every question's database has a schema; no database is in both `train` and `dev`."""

    schemas: dict[str, Schema]
    train: tuple[SpiderQuestion, ...]
    dev: tuple[SpiderQuestion, ...]


def read_spider(folder: Path) -> Spider:
    """The files of a folder, plain or .gz, checked against each other and the databases.

    Raises DataError naming the file and the item.
    """
    path = find_file(TASK, folder, TABLES)
    schemas = read_schemas(path)
    train_path, dev_path = (find_file(TASK, folder, name) for name in (TRAIN, DEV))
    train, dev = read_questions(train_path), read_questions(dev_path)
    for source, questions in ((train_path, train), (dev_path, dev)):
        for q in questions:
            if q.db_id not in schemas:
                raise DataError(
                    f"the question is about the database {q.db_id!r}, which {path.name} does not describe",
                    where=_where(source, q.number),
                    todo=f"use {path.name} and {source.name} of one release, or fix this item",
                )
    trained = {q.db_id for q in train}
    for q in dev:
        if q.db_id in trained:
            raise DataError(
                f"the database {q.db_id!r} has questions in {train_path.name} too",
                where=_where(dev_path, q.number),
                todo="test questions must be about databases that are never trained on; leave them out of one file",
            )
    for db_id in sorted(trained | {q.db_id for q in dev}):
        check_database(find_file(TASK, folder, database_name(db_id)))
    return Spider(schemas, train, dev)


def database_name(db_id: str) -> str:
    """Where a database lies, relative to the folder."""
    return f"database/{db_id}/{db_id}.sqlite"


def database_names(folder: Path) -> tuple[str, ...]:
    """Where the databases lie that the questions are about, each once, sorted."""
    questions = (q for name in (TRAIN, DEV) for q in read_questions(find_file(TASK, folder, name)))
    return tuple(database_name(db_id) for db_id in sorted({q.db_id for q in questions}))


def check_database(path: Path) -> None:
    """Raises DataError where a file is no SQLite database. Of a .gz file the first bytes alone are looked at."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise ValueError("it is no SQLite file")
        if path.suffix != ".gz":
            # `immutable` keeps SQLite from writing anything beside the file.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (OSError, EOFError, ValueError, zlib.error, sqlite3.Error) as error:
        raise DataError(
            f"database cannot be read: {error}", where=f"task {TASK}, {path}", todo="fetch this database again"
        ) from error


@contextmanager
def plain_database(folder: Path, db_id: str) -> Iterator[Path]:
    """The file of a database; where it lies there as .gz alone, a copy that is gone afterwards. Raises DataError."""
    path = find_file(TASK, folder, database_name(db_id))
    if path.suffix != ".gz":
        yield path
        return
    _, content = file_record(path)
    with tempfile.TemporaryDirectory(prefix="act-database-") as copies:
        copy = Path(copies) / f"{db_id}.sqlite"
        copy.write_bytes(content)
        yield copy


def read_questions(path: Path) -> tuple[SpiderQuestion, ...]:
    """All questions of a file. Raises DataError naming the file and the item."""
    questions = []
    for number, item in enumerate(read_items(TASK, path), start=1):
        try:
            db_id = _db_id(item)
            question, query = (text_of(item, key).strip() for key in ("question", "query"))
            if not (question and query):
                raise ValueError(f"{'query' if question else 'question'!r} is blank")
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(error, _where(path, number), _FIX) from error
        questions.append(SpiderQuestion(number, db_id, one_line(question), query))
    return tuple(questions)


def read_schemas(path: Path) -> dict[str, Schema]:
    """The schemas of `tables.json` by db_id. Raises DataError naming the file and the item."""
    schemas: dict[str, Schema] = {}
    for number, item in enumerate(read_items(TASK, path), start=1):
        try:
            schema = _schema(item)
            if schema.db_id in schemas:
                raise ValueError(f"the database {schema.db_id!r} is described twice")
        except (KeyError, TypeError, ValueError) as error:
            name = item.get("db_id", "?") if isinstance(item, dict) else "?"
            raise malformed(error, f"{_where(path, number)} ({name})", _FIX) from error
        schemas[schema.db_id] = schema
    return schemas


def _schema(item: Any) -> Schema:
    db_id = _db_id(item)
    names, naturals = _texts(item, "table_names_original"), _texts(item, "table_names")
    columns, natural_columns = _columns(item, "column_names_original"), _columns(item, "column_names")
    types = _texts(item, "column_types")
    if not names:
        raise ValueError("'table_names_original' is empty")
    if len(naturals) != len(names):
        raise ValueError(f"{len(names)} tables, but {len(naturals)} 'table_names'")
    if not len(columns) == len(natural_columns) == len(types):
        raise ValueError(f"{len(columns)} columns, but {len(natural_columns)} 'column_names', {len(types)} types")
    for owner, name in columns:
        # Column 0 is `*`, which belongs to no table.
        if not -1 <= owner < len(names):
            raise ValueError(f"the column {name!r} is of table {owner}, and there are {len(names)}")
    if bad := [t for t in types if not re.fullmatch(r"[^\W\d]\w*", t)]:
        raise ValueError(f"a column type must be one word, not {bad[0]!r}")

    def place(index: Any, key: str) -> tuple[int, str]:
        """(table, column name) of a column index."""
        if type(index) is not int or not 0 <= index < len(columns) or columns[index][0] < 0:
            raise ValueError(f"{key!r} names the column {index!r}, and there are {len(columns)}, the first being `*`")
        return columns[index]

    # Newer releases write a key of several columns as a list within the list.
    listed = value_of(item, "primary_keys", list)
    primary = [place(i, "primary_keys") for key in listed for i in (key if isinstance(key, list) else [key])]
    foreign = []
    for pair in value_of(item, "foreign_keys", list):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError(f"'foreign_keys' must hold pairs of columns, not {pair!r}")
        foreign.append((place(pair[0], "foreign_keys"), place(pair[1], "foreign_keys")))
    tables = []
    for t, name in enumerate(names):
        described = zip(columns, natural_columns, types, strict=True)
        own = tuple(Column(column, kind, natural) for (owner, column), (_, natural), kind in described if owner == t)
        key = dict.fromkeys(column for owner, column in primary if owner == t)
        references = dict.fromkeys(
            ForeignKey(column, names[other], target) for (owner, column), (other, target) in foreign if owner == t
        )
        tables.append(Table(name, naturals[t], own, tuple(key), tuple(references)))
    return Schema(db_id, tuple(tables))


def _db_id(item: Any) -> str:
    db_id = text_of(item, "db_id")
    if not _DB_ID.fullmatch(db_id):  # it becomes a path
        raise ValueError(f"'db_id' must be a name of letters, digits and underscores, not {db_id!r}")
    return db_id


def _texts(item: Any, key: str) -> list[str]:
    values = value_of(item, key, list)
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key!r} must hold texts, not {value!r}")
    return values


def _columns(item: Any, key: str) -> list[tuple[int, str]]:
    out = []
    for value in value_of(item, key, list):
        match value:
            case [table, str() as name] if type(table) is int and name.strip():
                out.append((table, name))
            case _:
                raise ValueError(f"{key!r} must hold pairs of a table's index and a name, not {value!r}")
    return out


def _where(path: Path, number: int) -> str:
    return f"task {TASK}, {path}, item {number}"


# A schema as text and back.

# Names that SQLite or sqlglot does not take as they are.
_RESERVED = words(
    "add all alter and as autoincrement between case cast check collate commit constraint create cross default "
    "deferrable delete distinct drop else escape except exists for foreign from glob group having if in index inner "
    "insert intersect into is isnull join like limit match not nothing notnull null on or order outer primary raise "
    "references regexp returning rollback select set table then to transaction union unique update using values when "
    "where with"
)
_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d]\w*)'
_COLUMN = rf"({_NAME}) ({_NAME})( primary key)?"
_FOREIGN_KEY = rf"; ({_NAME}) -> ({_NAME})\.({_NAME})"
_TABLE = re.compile(
    rf"\s*(?P<name>{_NAME}) \((?P<columns>(?:{_COLUMN}(?:, (?!\))|(?=[;)])))*)"
    rf"(?:; primary key \((?P<primary>{_NAME}(?:, {_NAME})*)\))?(?P<foreign>(?:{_FOREIGN_KEY})*)\)\s*"
)


def quoted(name: str) -> str:
    """A name as SQL takes it: in double quotes where it is no plain word."""
    if re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def in_words(name: str) -> str:
    """A name as people say it, where the file does not tell: `Home_Town` is `home town`."""
    return " ".join(name.replace("_", " ").lower().split())


def table_text(table: Table) -> str:
    """A table on one line: columns with their types, then the keys."""
    single = table.primary_key if len(table.primary_key) == 1 else ()
    parts = [", ".join(f"{quoted(c.name)} {c.type}{' primary key' if c.name in single else ''}" for c in table.columns)]
    if len(table.primary_key) > 1:
        parts.append(f"primary key ({', '.join(map(quoted, table.primary_key))})")
    parts += [f"{quoted(k.column)} -> {quoted(k.table)}.{quoted(k.target)}" for k in table.foreign_keys]
    return f"{quoted(table.name)} ({'; '.join(parts)})"


def parse_table(text: str) -> Table:
    """The inverse of `table_text`, but for names in words, which follow from the others. Raises ValueError."""
    found = _TABLE.fullmatch(text)
    if found is None:
        raise ValueError(f"this is no table of a schema: {text!r}")
    columns = re.findall(_COLUMN, found["columns"])
    primary = [column for column, _, key in columns if key] + re.findall(_NAME, found["primary"] or "")
    name = _plain(found["name"])
    return Table(
        name,
        in_words(name),
        tuple(Column(_plain(column), kind, in_words(_plain(column))) for column, kind, _ in columns),
        tuple(map(_plain, primary)),
        tuple(ForeignKey(*map(_plain, key)) for key in re.findall(_FOREIGN_KEY, found["foreign"])),
    )


def parse_tables(texts: Sequence[str]) -> tuple[Table, ...]:
    """The tables of a schema from their lines. Raises ValueError."""
    return tuple(parse_table(text) for text in texts if text.strip())


def tables_of(context: Sequence[ContextBlock]) -> tuple[Table, ...]:
    """The tables that a conversation is grounded in. Raises ValueError."""
    return parse_tables([b.text for b in context if b.section == SECTION])


def _plain(name: str) -> str:
    """The inverse of `quoted`."""
    return name[1:-1].replace('""', '"') if name[0] == '"' else name
