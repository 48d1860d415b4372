"""Deletes answers for good, and checks that a memo is whole.

The database's file does not get smaller by deleting: DuckDB keeps the room for what comes next.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from resources.errors import ActError
from resources.llm.memo.archive import SCHEMAS, archive_again, fold_unknown, readable, set_aside, survey, write_anew
from resources.llm.memo.database import Database, Rebuilt, is_damage, read_all
from resources.llm.memo.journal import finished, journals, read_journal
from resources.llm.memo.memo import Memo, memo_at
from resources.llm.memo.records import Record
from resources.llm.memo.schema import MIGRATIONS, schema_version
from resources.llm.memo.view import Filters, consult, first_line

NAMED = 10  # rows of a kind that are listed


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: answers, earlier answers, their tokens and what they had cost in US dollars
    (`unpriced` ones have no known price; None where none has).

    `restored`: earlier answers that are current again. `unfolded`: rows that match, but are still in journals of
    running processes, and stay. `aside`: damaged files set aside earlier, which may hold what was deleted.
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

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "aside": list(self.aside)}


_RESTORE = """
    CREATE OR REPLACE TEMP TABLE restored AS SELECT * FROM history ANTI JOIN answers USING (key)
      QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1;
    INSERT INTO answers SELECT * FROM restored;
    DELETE FROM history USING restored r WHERE history.key = r.key AND history.id = r.id;
"""


def prune(memo: Memo, filters: Filters, *, history_only: bool = False, dry_run: bool = True) -> Pruned:
    """Deletes the answers that pass, with their history, from the database and from the archive, so that no rebuild
    brings them back. With `history_only`, earlier answers alone. Raises ActError where nothing is chosen.

    Cut off, it has deleted nothing: run it again.
    """
    if not filters and not history_only:
        raise ActError("nothing is chosen to be deleted", todo="give at least one filter, for example --older-than 90d")
    memo.fold()
    found = consult(memo, lambda connection: _matching(connection, filters, history_only))
    if not dry_run and (memo.database.path.exists() or memo.database.segments("answers")):
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
            connection.execute("BEGIN")
            try:
                for table in ("history",) if history_only else ("history", "answers"):
                    connection.execute(f"DELETE FROM {table} WHERE {condition}", parameters)  # noqa: S608 (ours)
                connection.execute(_RESTORE)
                restored = connection.execute("SELECT count(*) FROM restored").fetchall()[0][0]
                write_anew(connection, database, seen)  # first: no row to keep is ever in one place alone
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `problems`: something is damaged or missing; `notes`: good to know; `repaired`: what was
    done about it."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    answers: int = 0
    history: int = 0
    segments: int = 0
    journals: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "sound": not self.problems,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()},
        }


def verify(folder: Path, repair: bool = False) -> Verdict:
    """Reads everything in a memo's folder: every block of the database, every segment, every journal.

    Changes nothing, unless with `repair`: journals are folded, a database that cannot be read is rebuilt, and of the
    database and the archive each gets the rows that only the other has; the verdict is of what is there afterwards.
    """
    done = _repair(memo_at(folder)) if repair else []
    return replace(_Check(folder).run(), repaired=tuple(done))


class _Check:
    """One check of a memo; changes nothing but a database of an older schema."""

    def __init__(self, folder: Path) -> None:
        self.database, self.journal_folder = Database(folder), folder / "journal"
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.unfolded: list[Record] = []

    def run(self) -> Verdict:
        """The verdict."""
        number = self._journals()
        for path in set_aside(self.database.folder):
            self._aside(path)
        segments = len(self.database.segments("answers")) + len(self.database.segments("uses"))
        answers, history = self._database()
        return Verdict(tuple(self.problems), tuple(self.notes), (), answers, history, segments, number)

    def _journals(self) -> int:
        paths = journals(self.journal_folder)
        for path in paths:
            with finished([path]) as over:
                try:
                    records, _, damage = read_journal(path)
                except FileNotFoundError:  # folded meanwhile
                    continue
            self.unfolded += records
            self.problems += [f"journal {d}" for d in damage if not d.torn]
            self.notes += [f"journal {d}" for d in damage if d.torn and over]  # else it is being written
        if self.unfolded:
            self.notes.append(f"{len(self.unfolded)} records are in journals and not yet in the database")
        return len(paths)

    def _aside(self, path: Path) -> None:
        where = f"{path.relative_to(self.database.folder)} ({path.stat().st_size} bytes)"
        lines = [d for d in read_journal(path)[2] if not d.torn] if path.parent == self.journal_folder else []
        if lines:
            self.problems.append(
                f"{where}: {len(lines)} lines of a journal could not be read, the first at byte {lines[0].offset} "
                f"({lines[0].why}); the others are in the database. Delete the file when you have seen it"
            )
        else:
            self.notes.append(f"{where}: set aside as damaged; delete it when nothing is missed")

    def _database(self) -> tuple[int, int]:
        database = self.database
        there = database.path.exists()
        why = database.fault()
        if why:
            self.problems.append(f"the database cannot be read: {why}: --repair rebuilds it from the archive")
        elif not there and any(database.segments(kind) for kind in SCHEMAS):
            self.problems.append("the database is gone, but there is an archive: --repair rebuilds it")
        if why or not there:
            for kind in SCHEMAS:
                for path in database.segments(kind):
                    faults: list[str] = []
                    collections.deque(readable(path, kind, faults), maxlen=0)
                    self._unreadable([(path, fault) for fault in faults[:1]])
            return 0, 0
        try:
            with database.reading() as connection:
                if connection is None:
                    return 0, 0
                return self._tables(connection)
        except ActError as error:  # a newer schema
            self.problems.append(str(error))
        except Rebuilt as error:
            self.problems.append(f"the database could not be read and was rebuilt: {error.__cause__}")
        return 0, 0

    def _tables(self, connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
        if (version := schema_version(connection)) != len(MIGRATIONS):
            self.problems.append(f"the database has schema {version}, not {len(MIGRATIONS)}")
        for table in ("answers", "history"):
            self._listed(
                connection, f"in {table} the key is not that of the question", table, "sha256(question) <> key"
            )
        twice = "(SELECT key FROM answers GROUP BY key HAVING count(*) > 1)"
        self._listed(connection, "in answers the key is there more than once", twice, "true")
        for kind in ("answers", "uses"):
            found = survey(connection, self.database, kind, self.unfolded)
            self._unreadable(found.damaged)
            for number, what in (
                (found.unarchived, f"{kind} of the database are not in the archive"),
                (found.unknown, f"{kind} of the archive are not in the database"),
                (found.differ, f"{kind} are not the same in the archive as in the database"),
            ):
                if number:
                    self.problems.append(f"{number} {what}: --repair mends it")
        counts = connection.execute("SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM history)").fetchall()
        return counts[0]

    def _unreadable(self, damaged: Sequence[tuple[Path, str]]) -> None:
        for path, why in damaged:
            self.problems.append(f"archive/{path.name} cannot be read in full: {why}: --repair writes the archive anew")

    def _listed(self, connection: duckdb.DuckDBPyConnection, what: str, table: str, condition: str) -> None:
        rows = connection.execute(
            f"SELECT key, count(*) OVER () FROM {table} WHERE {condition} ORDER BY key LIMIT {NAMED}"  # noqa: S608 (ours)
        ).fetchall()
        if rows:
            named = ", ".join(key[:16] for key, _ in rows)
            self.problems.append(f"{what}: {rows[0][1]} rows ({named}): act memo prune --key removes one")


def _repair(memo: Memo) -> list[str]:
    """Makes the database and the archive whole from one another; returns what was done."""
    done: list[str] = []
    database = memo.database
    gone = not database.path.exists() and any(database.segments(kind) for kind in SCHEMAS)
    if gone or database.fault():
        with contextlib.suppress(Rebuilt), database.reading() as connection:
            if connection is not None:
                read_all(connection)
        done.append("the database was rebuilt from the archive")
    memo.fold()
    with database.writing() as connection:
        for kind in ("answers", "uses"):
            seen = survey(connection, database, kind)
            if added := fold_unknown(connection, database, seen):
                done.append(f"{added} {kind} that only the archive had were added to the database")
            if added < seen.unknown:  # the others cannot be true: kept, but not in the archive
                seen = replace(seen, sound=(), damaged=(*seen.damaged, *((path, "") for path in seen.sound)))
            if seen.damaged or seen.differ:
                write_anew(connection, database, seen)
                done.append(f"the archive of {kind} was written anew from the database")
                done += [f"{path.name} was set aside as {path.name}.damaged" for path, _ in seen.damaged]
            elif number := archive_again(connection, database, seen):
                done.append(f"{number} {kind} that only the database had were added to the archive")
        connection.execute("CHECKPOINT")
        database.changed()
    return done
