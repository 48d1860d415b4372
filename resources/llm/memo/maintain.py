"""Deletes answers for good, and checks that a memo is whole: its database against its archive.

The database's file does not get smaller by deleting: DuckDB keeps the room for what comes next.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from resources.errors import ActError
from resources.files import sync
from resources.llm.memo.database import Database, Rebuilt, is_damage, read_all
from resources.llm.memo.import_export import write_answers
from resources.llm.memo.journal import finished, journals, read_journal
from resources.llm.memo.memo import Memo, memo_at
from resources.llm.memo.records import USE_FIELDS, Record, Use
from resources.llm.memo.report import COLUMNS, Filters, consult, portions
from resources.llm.memo.schema import MIGRATIONS, SCHEMAS, USES, schema_version, transaction
from resources.llm.memo.segments import first_line, readable

NAMED = 10  # rows of a kind that are listed

# --- the archive against the database; to compare under the shared lock, to write under the exclusive one --------

# Every row of the database, by kind, with the names of the archive's columns.
HELD = {
    "answers": f"(SELECT {COLUMNS} FROM answers UNION ALL SELECT {COLUMNS} FROM history)",  # noqa: S608 (our names)
    "uses": f"(SELECT {', '.join(USE_FIELDS)} FROM uses)",  # noqa: S608 (our names)
}
_IDENTITY = {"answers": "key, id", "uses": "'' AS key, id"}
_MATCH = {"answers": "key, id", "uses": "id"}


@dataclass(frozen=True, slots=True)
class Survey:
    """What the archive of one kind of rows has. `damaged` segments with why they cannot be read in
    full; `unarchived` rows are only in the database, `unknown` ones only in the archive, and those
    that `differ` are in both with other content."""

    kind: str
    sound: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...]
    unarchived: int
    unknown: int
    differ: int


def survey(
    connection: duckdb.DuckDBPyConnection, database: Database, kind: str, unfolded: Sequence[Record] = ()
) -> Survey:
    """Reads the whole archive of `answers` or `uses`. Rows of `unfolded` records are not missed in
    the database: they are folded in again. Leaves temporary tables `unarchived_<kind>` and
    `unknown_<kind>` (key, id)."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE archived (key VARCHAR, id VARCHAR, content UBIGINT, sound BOOLEAN, part INTEGER)"
    )
    sound: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for part, path in enumerate(database.archive.segments(kind)):
        faults: list[str] = []
        for table in readable(path, kind, faults):
            connection.register("batch", table)
            connection.execute(f"INSERT INTO archived SELECT {_IDENTITY[kind]}, hash(b), true, ? FROM batch b", [part])  # noqa: S608
            connection.unregister("batch")
        if faults:
            connection.execute("UPDATE archived SET sound = false WHERE part = ?", [part])
            damaged.append((path, faults[0]))
        else:
            sound.append(path)
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE held AS SELECT {_IDENTITY[kind]}, hash(h) AS content FROM {HELD[kind]} h;
        CREATE OR REPLACE TEMP TABLE unarchived_{kind} AS
          SELECT key, id FROM held ANTI JOIN (SELECT key, id FROM archived WHERE sound) USING (key, id);
        """  # noqa: S608 (our names)
    )
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE unknown_{kind} AS
          SELECT DISTINCT key, id FROM archived ANTI JOIN held USING (key, id)
          WHERE key || id NOT IN (SELECT unnest(?::VARCHAR[]))
        """,  # noqa: S608 (our names)
        [[(r.id if isinstance(r, Use) else r.key + r.id) for r in unfolded]],
    )
    counts = connection.execute(
        f"""
        SELECT (SELECT count(*) FROM unarchived_{kind}), (SELECT count(*) FROM unknown_{kind}),
               (SELECT count(*) FROM archived a JOIN held h USING (key, id) WHERE a.content <> h.content)
        """  # noqa: S608 (our names)
    ).fetchall()[0]
    connection.execute("DROP TABLE archived; DROP TABLE held")
    return Survey(kind, tuple(sound), tuple(damaged), *counts)


def fold_unknown(connection: duckdb.DuckDBPyConnection, database: Database, found: Survey) -> int:
    """Adds to the database what only the archive has, damaged segments included as far as they can
    be read; returns how many rows. An answer whose key is not that of its question is left out."""
    kind, added = found.kind, 0
    names, sane = ", ".join(SCHEMAS[kind].names), "sha256(question) = key" if kind == "answers" else "true"
    for path in [*found.sound, *(path for path, _ in found.damaged)] if found.unknown else []:
        for table in readable(path, kind, []):
            connection.register("batch", table)
            unknown = connection.sql(
                f"SELECT {names} FROM batch SEMI JOIN unknown_{kind} USING ({_MATCH[kind]}) WHERE {sane}"  # noqa: S608
            ).to_arrow_table()
            connection.unregister("batch")
            if unknown.num_rows:
                database.insert(connection, **{kind: unknown.cast(SCHEMAS[kind])})
                added += unknown.num_rows
    return added


def rewrite(connection: duckdb.DuckDBPyConnection, database: Database, found: Survey) -> None:
    """Makes one segment of all that the database has, and then removes the others; what is damaged is set aside.

    Cut off between the two, it leaves rows twice, which does no harm.
    """
    _write(connection, database, found.kind, HELD[found.kind])
    for path, _ in found.damaged:
        path.rename(path.with_name(path.name + ".damaged"))
    folder = database.archive.folder
    for path in (*found.sound, *folder.glob(f".{found.kind}-*")):  # the latter were never finished
        path.unlink()
    sync(folder)


def _write(connection: duckdb.DuckDBPyConnection, database: Database, kind: str, source: str) -> None:
    if not connection.execute(f"SELECT 1 FROM {source} LIMIT 1").fetchall():  # noqa: S608 (our names)
        return
    if kind == "answers":
        write_answers(database.archive.new_segment(kind), portions(connection, source, Filters()))
    else:
        rows = connection.sql(f"SELECT * FROM {source} ORDER BY noted_at, id").to_arrow_table()  # noqa: S608 (our names)
        database.archive.add(kind, rows.cast(USES))


def set_aside(folder: Path) -> list[Path]:
    """The files that were damaged and have been kept beside."""
    patterns = ("memo.duckdb*.damaged-*", "journal/*.damaged", "archive/*.damaged")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


# --- pruning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: answers, earlier answers, their tokens and what they had cost
    in US dollars (`unpriced` ones have no known price; None where none has).

    `restored`: earlier answers that are current again. `unfolded`: rows that match, but are still
    in journals of running processes, and stay. `aside`: damaged files set aside earlier, which may
    hold what was deleted.
    """

    dry_run: bool
    answers: int = 0
    history: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    unpriced: int = 0
    unfolded: int = 0
    restored: int = 0
    aside: tuple[str, ...] = ()


_RESTORE = """
    CREATE OR REPLACE TEMP TABLE restored AS SELECT * FROM history ANTI JOIN answers USING (key)
      QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1;
    INSERT INTO answers SELECT * FROM restored;
    DELETE FROM history USING restored r WHERE history.key = r.key AND history.id = r.id;
"""


def prune(memo: Memo, filters: Filters, *, history_only: bool = False, dry_run: bool = True) -> Pruned:
    """Deletes the answers that pass, with their history, from the database and from the archive, so
    that no rebuild brings them back. With `history_only`, earlier answers alone. Raises ActError
    where nothing is chosen.

    Cut off, it has deleted nothing: run it again.
    """
    if not filters and not history_only:
        raise ActError("nothing is chosen to be deleted", todo="give at least one filter, for example --older-than 90d")
    memo.fold()
    found = consult(memo, lambda connection: _matching(connection, filters, history_only))
    if not dry_run and (memo.database.path.exists() or memo.database.archive):
        found = replace(_delete(memo.database, filters, history_only), unfolded=found.unfolded)
    return replace(found, dry_run=dry_run, aside=tuple(p.name for p in set_aside(memo.folder)))


def _delete(database: Database, filters: Filters, history_only: bool) -> Pruned:
    condition, parameters = filters.where()
    try:
        with database.writing() as connection:
            seen = survey(connection, database, "answers")
            fold_unknown(connection, database, seen)  # else they would come back
            connection.execute("CREATE TEMP TABLE fresh AS FROM answers LIMIT 0")
            found = _matching(connection, filters, history_only)
            if not found.answers + found.history:
                return found
            with transaction(connection):
                for table in ("history",) if history_only else ("history", "answers"):
                    connection.execute(f"DELETE FROM {table} WHERE {condition}", parameters)  # noqa: S608 (ours)
                connection.execute(_RESTORE)
                restored = connection.execute("SELECT count(*) FROM restored").fetchall()[0][0]
                rewrite(connection, database, seen)  # first: no row to keep is ever in one place alone
            connection.execute("CHECKPOINT")
            database.changed()
            return replace(found, restored=restored)
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        raise ActError(
            f"the memo's database is damaged: {first_line(error)}",
            where=str(database.path),
            todo="run act memo verify --repair, then again",
        ) from error


def _matching(connection: duckdb.DuckDBPyConnection, filters: Filters, history_only: bool) -> Pruned:
    condition, parameters = filters.where()
    rows = connection.execute(
        f"""
        SELECT count(*) FILTER (place = 'answers'), count(*) FILTER (place = 'history'),
               coalesce(sum(prompt_tokens) FILTER (place <> 'fresh'), 0),
               coalesce(sum(output_tokens) FILTER (place <> 'fresh'), 0),
               sum(cost_usd) FILTER (place <> 'fresh'),
               count(*) FILTER (place <> 'fresh' AND cost_usd IS NULL),
               count(*) FILTER (place = 'fresh')
        FROM (SELECT 'answers' AS place, * FROM answers WHERE ? UNION ALL SELECT 'history', * FROM history
              UNION ALL SELECT 'fresh', * FROM fresh WHERE ?)
        WHERE {condition}
        """,  # noqa: S608 (conditions of ours)
        [not history_only, not history_only, *parameters],
    ).fetchall()
    answers, history, prompt, output, cost, unpriced, fresh = rows[0]
    return Pruned(True, answers, history, prompt, output, cost if answers + history else 0.0, unpriced, fresh)


# --- verifying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `problems`: something is damaged or missing; `notes`: good to know;
    `repaired`: what was done about it."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    answers: int = 0
    history: int = 0
    segments: int = 0
    journals: int = 0


def verify(folder: Path, repair: bool = False) -> Verdict:
    """Reads everything in a memo's folder: every block of the database, every segment, every journal.

    Changes nothing, unless with `repair`: journals are folded, a database that cannot be read is
    rebuilt, and of the database and the archive each gets the rows that only the other has; the
    verdict is of what is there afterwards. A database of an older schema is migrated either way.
    """
    done = _repair(memo_at(folder)) if repair else []
    database, problems, notes = Database(folder), list[str](), list[str]()
    paths, unfolded = journals(folder / "journal"), list[Record]()
    for path in paths:
        with finished([path]) as over:
            try:
                records, _, damage = read_journal(path)
            except FileNotFoundError:  # folded meanwhile
                continue
        unfolded += records
        problems += [f"journal {d}" for d in damage if not d.torn]
        notes += [f"journal {d}" for d in damage if d.torn and over]  # else it is being written
    if unfolded:
        notes.append(f"{len(unfolded)} records are in journals and not yet in the database")
    for path in set_aside(folder):
        where = f"{path.relative_to(folder)} ({path.stat().st_size} bytes)"
        lines = [d for d in read_journal(path)[2] if not d.torn] if path.parent == folder / "journal" else []
        if lines:
            problems.append(
                f"{where}: {len(lines)} lines of a journal could not be read, the first at byte {lines[0].offset} "
                f"({lines[0].why}); the others are in the database. Delete the file when you have seen it"
            )
        else:
            notes.append(f"{where}: set aside as damaged; delete it when nothing is missed")
    answers, history = _check_database(database, unfolded, problems)
    segments = sum(len(database.archive.segments(kind)) for kind in SCHEMAS)
    return Verdict(tuple(problems), tuple(notes), tuple(done), answers, history, segments, len(paths))


def _check_database(database: Database, unfolded: Sequence[Record], problems: list[str]) -> tuple[int, int]:
    """How many answers and earlier answers there are."""
    there, why = database.path.exists(), database.fault()
    if why:
        problems.append(f"the database cannot be read: {why}: --repair rebuilds it from the archive")
    elif not there and database.archive:
        problems.append("the database is gone, but there is an archive: --repair rebuilds it")
    if why or not there:
        for kind in SCHEMAS:
            for path in database.archive.segments(kind):
                faults: list[str] = []
                collections.deque(readable(path, kind, faults), maxlen=0)
                problems += [_unreadable(path, fault) for fault in faults[:1]]
        return 0, 0
    try:
        with database.reading() as connection:
            if connection is None:
                return 0, 0
            if (version := schema_version(connection)) != len(MIGRATIONS):
                problems.append(f"the database has schema {version}, not {len(MIGRATIONS)}")
            for what, source in (
                ("in answers the key is not that of the question", "answers WHERE sha256(question) <> key"),
                ("in history the key is not that of the question", "history WHERE sha256(question) <> key"),
                ("in answers the key is there more than once", "answers GROUP BY key HAVING count(*) > 1"),
            ):
                sql = f"SELECT key, count(*) OVER () FROM {source} ORDER BY key LIMIT {NAMED}"  # noqa: S608 (ours)
                if rows := connection.execute(sql).fetchall():
                    named = ", ".join(key[:16] for key, _ in rows)
                    problems.append(f"{what}: {rows[0][1]} rows ({named}): act memo prune --key removes one")
            for kind in SCHEMAS:
                found = survey(connection, database, kind, unfolded)
                problems += [_unreadable(path, why) for path, why in found.damaged]
                for number, what in (
                    (found.unarchived, f"{kind} of the database are not in the archive"),
                    (found.unknown, f"{kind} of the archive are not in the database"),
                    (found.differ, f"{kind} are not the same in the archive as in the database"),
                ):
                    if number:
                        problems.append(f"{number} {what}: --repair fixes it")
            count = "SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM history)"
            return connection.execute(count).fetchall()[0]
    except ActError as error:  # a newer schema
        problems.append(str(error))
    except Rebuilt as error:
        problems.append(f"the database could not be read and was rebuilt: {error.__cause__}")
    return 0, 0


def _unreadable(path: Path, why: str) -> str:
    return f"archive/{path.name} cannot be read in full: {why}: --repair writes the archive again"


def _repair(memo: Memo) -> list[str]:
    """Makes the database and the archive whole from one another; returns what was done."""
    done: list[str] = []
    database = memo.database
    if database.fault() if database.path.exists() else database.archive:
        with contextlib.suppress(Rebuilt), database.reading() as connection:
            if connection is not None:
                read_all(connection)
        done.append("the database was rebuilt from the archive")
    memo.fold()
    with database.writing() as connection:
        for kind in SCHEMAS:
            seen = survey(connection, database, kind)
            if added := fold_unknown(connection, database, seen):
                done.append(f"{added} {kind} that only the archive had were added to the database")
            if added < seen.unknown:  # the others cannot be true: kept, but not in the archive
                seen = replace(seen, sound=(), damaged=(*seen.damaged, *((path, "") for path in seen.sound)))
            if seen.damaged or seen.differ:
                rewrite(connection, database, seen)
                done.append(f"the archive of {kind} was written again from the database")
                done += [f"{path.name} was set aside as {path.name}.damaged" for path, _ in seen.damaged]
            elif seen.unarchived:
                only = f"(SELECT * FROM {HELD[kind]} SEMI JOIN unarchived_{kind} USING ({_MATCH[kind]}))"  # noqa: S608
                _write(connection, database, kind, only)
                done.append(f"{seen.unarchived} {kind} that only the database had were added to the archive")
        connection.execute("CHECKPOINT")
        database.changed()
    return done
