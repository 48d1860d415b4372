"""The child process that runs SQL queries for sql_process.py: reads, bounded in time and memory, writes nothing.

Run by path with `-I -S`, it uses the standard library, denotation.py and sql_text.py only. A request is one line
of JSON on stdin: {"database": path, "gold": SQL, "ordered": bool, "predicted": SQL or null, "timeout_s": seconds}.
It is answered by one line about the gold query, {"kind": null, "database" or "query", "problem": text or null,
"ran": whether it was run rather than remembered}, and where that has no problem and `predicted` is not null by a
second one, {"reason": null where the results match, else a sentence}. Either line has "spent": true where the
process then ends itself because it ran out of memory. It ends with its stdin and with its parent, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last, so that it hides no standard module

from act_assets.metrics.denotation import SearchLimitError, equal_denotations
from act_assets.metrics.sql_text import MAX_SQL_BYTES

# All limits are OURS: the evaluator has none but a time limit that does not stop SQLite. Results of Spider's gold
# queries stay under 11,000 rows.
MAX_GOLD_ROWS = 1_000_000
MAX_CELLS = 4_000_000  # of one result, and of all remembered gold results; a long cell counts as several
CHARACTERS_PER_CELL = 64  # about what the smallest Python object for a cell takes in bytes
MAX_VALUE_BYTES = 4 << 20  # of one value, one stored row
SQLITE_HEAP_BYTES = 256 << 20  # sorting and grouping have to fit in: nothing is spilled to files
ADDRESS_SPACE_BYTES = 3 << 30  # two results of MAX_CELLS and their comparison take under 2
FETCHED_AT_ONCE = 50  # rows between two checks of size and time; at most 50 times a row of long values
OPEN_DATABASES = 32  # Spider's development set has 20
STEPS_PER_CHECK = 10_000  # of SQLite's virtual machine between two looks at the clock, under 1 ms
PARENT_CHECK_S = 0.5

# Lower than SQLite's defaults (10^9, 50,000, 1,000, 500 and 250 million): what a hostile query can make slow or
# large without passing the progress handler. Names as in sqlite3's SQLITE_LIMIT_*.
_LIMITS = {
    "LENGTH": MAX_VALUE_BYTES,
    "SQL_LENGTH": MAX_SQL_BYTES,
    "LIKE_PATTERN_LENGTH": 1_000,
    "EXPR_DEPTH": 500,
    "COMPOUND_SELECT": 200,
    "VDBE_OP": 5_000_000,
    "ATTACHED": 0,
    "TRIGGER_DEPTH": 1,
    "WORKER_THREADS": 0,
}
# Some SQLite builds have these; none can do harm here that the process's own limits let through, but each can try.
_DENIED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "zipfile", "fsdir", "lsmode"}
# The result of a gold query that calls one of these may differ the next time, so it is not remembered.
_CHANGING_FUNCTIONS = {
    *("random", "randomblob", "date", "time", "datetime", "julianday", "unixepoch", "strftime"),
    *("current_date", "current_time", "current_timestamp"),
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_ACTIONS = (
    *("CREATE_INDEX", "CREATE_TABLE", "CREATE_TEMP_INDEX", "CREATE_TEMP_TABLE", "CREATE_TEMP_TRIGGER"),
    *("CREATE_TEMP_VIEW", "CREATE_TRIGGER", "CREATE_VIEW", "DELETE", "DROP_INDEX", "DROP_TABLE", "DROP_TEMP_INDEX"),
    *("DROP_TEMP_TABLE", "DROP_TEMP_TRIGGER", "DROP_TEMP_VIEW", "DROP_TRIGGER", "DROP_VIEW", "INSERT", "PRAGMA"),
    *("TRANSACTION", "UPDATE", "ATTACH", "DETACH", "ALTER_TABLE", "REINDEX", "ANALYZE", "CREATE_VTABLE"),
    *("DROP_VTABLE", "SAVEPOINT"),
)
_ACTION_NAMES = {getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ") for name in _ACTIONS}


class DatabaseProblem(Exception):
    """The database cannot be read; the message continues "the database ..."."""


class QueryProblem(Exception):
    """A query has no result; the message says why."""


class Result(NamedTuple):
    rows: list[tuple[Any, ...]]
    width: int


class Database:
    """A database that is read as it is on disk: no locks, no journal, no files beside it."""

    def __init__(self, path: Path, *, with_wal: bool) -> None:
        self._deadline = 0.0
        self._refused: str | None = None
        self.changing = False
        """Whether the last query may have another result the next time."""
        # A write-ahead log is not read from an immutable database. Its index, -shm, is only read: a missing one
        # would be created beside the database, so then it cannot be opened.
        uri = path.as_uri() + ("?mode=ro&readonly_shm=1" if with_wal else "?mode=ro&immutable=1")
        # Without cached statements every query passes the authorizer.
        self.connection = connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        try:
            for pragma in ("temp_store = MEMORY", f"hard_heap_limit = {SQLITE_HEAP_BYTES}", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # reads the header and the schema
        except sqlite3.Error as error:
            connection.close()
            advice = "; it has a -wal file, which opening and closing it with sqlite3 merges" if with_wal else ""
            raise DatabaseProblem(f"cannot be read: {error}{advice}") from None
        for name in ("json_each", "json_tree"):
            # The first use of a table-valued function asks the authorizer for an UPDATE of sqlite_master.
            with contextlib.suppress(sqlite3.Error):  # a build may lack JSON
                connection.execute(f"SELECT 1 FROM {name}('[]')").fetchall()  # noqa: S608
        connection.text_factory = lambda value: value.decode(errors="ignore")  # as the evaluator reads text
        for name, limit in _LIMITS.items():
            connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), limit)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._is_late, STEPS_PER_CHECK)

    def run(self, sql: str, timeout_s: float, most_rows: int) -> Result:
        """Fetch at most `most_rows` rows. Raises QueryProblem, and MemoryError."""
        self._deadline = time.monotonic() + timeout_s
        self._refused, self.changing = None, False
        late = f"it takes longer than {timeout_s:g} s"
        rows: list[tuple[Any, ...]] = []
        cells = 0
        try:
            cursor = self.connection.execute(sql)
            if cursor.description is None:
                raise QueryProblem("it is no query")
            try:
                while len(rows) < most_rows:
                    chunk = cursor.fetchmany(min(FETCHED_AT_ONCE, most_rows - len(rows)))
                    if not chunk:
                        break
                    rows += chunk
                    cells += _cells(chunk)
                    if cells > MAX_CELLS:
                        raise QueryProblem(f"its result is larger than {MAX_CELLS:,} cells")
                    # SQLite itself looks at the clock only where fetching takes it many steps.
                    if len(rows) < most_rows and self._is_late():
                        raise QueryProblem(late)
                return Result(rows, len(cursor.description))
            finally:
                cursor.close()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: a message that is not UTF-8
            if self._refused:
                raise QueryProblem(f"not allowed: {self._refused}") from None
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise QueryProblem(late) from None
            text = str(error)
            raise QueryProblem(text.rstrip(".") if len(text) <= 300 else f"{text[:300]}...") from None

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            name = (second or "").lower()
            self.changing = self.changing or name in _CHANGING_FUNCTIONS
            if name not in _DENIED_FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._refused = self._refused or name
        elif action in _ALLOWED:
            return sqlite3.SQLITE_OK
        elif action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            self._refused = self._refused or "UPDATE of sqlite_master, which the use of a virtual table is too"
        else:
            self._refused = self._refused or _ACTION_NAMES.get(action, f"action {action}")
        return sqlite3.SQLITE_DENY


class Service:
    """Answers requests; keeps databases open and gold results at hand."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[object, Database]] = OrderedDict()
        self._results: OrderedDict[tuple[str, object, str], Result] = OrderedDict()
        self._cells = 0

    def gold(self, path: str, sql: str, timeout_s: float) -> tuple[Database, Result, bool]:
        """The open database, the gold query's result, and whether it was run now."""
        state, database = self._database(path)
        key = (path, state, sql)
        if known := self._results.get(key):
            self._results.move_to_end(key)
            return database, known, False
        result = database.run(sql, timeout_s, MAX_GOLD_ROWS + 1)
        if len(result.rows) > MAX_GOLD_ROWS:
            raise QueryProblem(f"its result has more than {MAX_GOLD_ROWS:,} rows")
        if not database.changing:
            self._results[key] = result
            self._cells += 1 + _cells(result.rows)
            while self._cells > MAX_CELLS:
                self._cells -= 1 + _cells(self._results.popitem(last=False)[1].rows)
        return database, result, True

    def reason(
        self, database: Database, gold: Result, predicted: str, timeout_s: float, *, ordered: bool
    ) -> str | None:
        """Why a prediction does not match; None where it does."""
        try:
            result = database.run(predicted, timeout_s, len(gold.rows) + 1)
            if len(result.rows) > len(gold.rows):
                return f"The result has more rows than gold's {len(gold.rows):,}."
            if len(result.rows) < len(gold.rows):
                return f"The result has {len(result.rows):,} rows, gold's {len(gold.rows):,}."
            if gold.rows and result.width != gold.width:
                return f"The result has {result.width} columns, gold's {gold.width}."
            if equal_denotations(gold.rows, result.rows, ordered=ordered):
                return None
            return f"The results differ in their values{' or the order of rows' if ordered else ''}."
        except QueryProblem as problem:
            return f"The query does not run: {problem}."
        except SearchLimitError:
            return "The results were not found equal within the limit of the search over column orders."

    def _database(self, path: str) -> tuple[object, Database]:
        """The database and what identifies its bytes."""
        state = _state(path), _state(f"{path}-wal")
        if state[0] is None:
            raise DatabaseProblem("does not exist")
        known = self._open.pop(path, None)
        if known and known[0] != state:
            known[1].connection.close()
            known = None
        if not known:
            try:
                with open(path, "rb") as file:
                    if file.read(16) != b"SQLite format 3\0":
                        raise DatabaseProblem("is no SQLite file")
                known = state, Database(Path(path), with_wal=bool(state[1] and state[1][1]))
            except (OSError, sqlite3.Error) as error:
                raise DatabaseProblem(f"cannot be read: {error}") from None
        self._open[path] = known
        while len(self._open) > OPEN_DATABASES:
            self._open.popitem(last=False)[1][1].connection.close()
        return known


def _cells(rows: list[tuple[Any, ...]]) -> int:
    """The size of a result: a cell counts once, and once more for each CHARACTERS_PER_CELL of text or bytes."""
    return sum(
        len(row) + sum([len(cell) for cell in row if isinstance(cell, (str, bytes))]) // CHARACTERS_PER_CELL
        for row in rows
    )


def _state(path: str) -> tuple[int, int, int] | None:
    """What changes when a file does: time of change in ns, bytes, inode; None for no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _confine() -> None:
    """Limit this process: no bytes into files, no core dumps, bounded memory."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails instead of ending the process
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: ADDRESS_SPACE_BYTES}
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS takes no limit of the address space
                raise


def _end_with_parent(parent: int, *, by_main_thread: bool) -> None:
    """End this process when its parent is gone, in the middle of a query as well.

    Linux's signal comes when the thread that started the process ends, so it is asked for only where that was the
    main thread. The watching thread is for all other cases.
    """
    if by_main_thread and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(service: Service, request: dict[str, Any]) -> None:
    timeout_s = request["timeout_s"]
    try:
        database, gold, ran = service.gold(request["database"], request["gold"], timeout_s)
    except DatabaseProblem as problem:
        return _say({"kind": "database", "problem": str(problem), "ran": False})
    except QueryProblem as problem:
        return _say({"kind": "query", "problem": str(problem), "ran": True})
    except MemoryError:
        return _give_up({"kind": "query", "problem": "it takes too much memory", "ran": True})
    _say({"kind": None, "problem": None, "ran": ran})
    if request["predicted"] is None:
        return None
    try:
        reason = service.reason(database, gold, request["predicted"], timeout_s, ordered=request["ordered"])
    except MemoryError:
        return _give_up({"reason": "The query does not run: it takes too much memory."})
    return _say({"reason": reason})


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def _give_up(reply: dict[str, Any]) -> None:
    """Answer and end: after a MemoryError nothing in this process is sure to be whole."""
    _say({**reply, "spent": True})
    os._exit(0)


def main() -> None:
    _end_with_parent(int(sys.argv[1]), by_main_thread=sys.argv[2] == "main")
    _confine()
    service = Service()
    _say({"ready": True})
    for line in sys.stdin.buffer:
        _answer(service, json.loads(line))


if __name__ == "__main__":
    main()
