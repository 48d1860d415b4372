"""The memo's DuckDB file, and how it is rebuilt from the archive (segments.py).

    memo.duckdb            what people query; opened late and closed early, for one process at a time may write
    archive/*.parquet      the same rows as they were folded in; never changed, merged when they are many
    memo.lock              held (flock) shared by readers and exclusively by whoever writes
    generation             a number that grows with every change, so that other processes know when to look again

A database that cannot be read is set aside (`memo.duckdb.damaged-<time>`) and rebuilt from the archive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from resources.errors import ActError
from resources.files import atomic_file, sync
from resources.llm.memo.records import Answer, Record, Stored, Use
from resources.llm.memo.schema import SCHEMAS, migrate, schema_version, to_arrow, transaction
from resources.llm.memo.segments import Archive

LOG = logging.getLogger(__name__)
MEMORY_LIMIT = "512MB"  # DuckDB's own default is 80 % of the machine
LOCK_WAIT_S = 60.0  # for a program that is not ours and has the database open
T = TypeVar("T")
_DAMAGE = (
    duckdb.IOException,
    duckdb.SerializationException,
    duckdb.InternalException,
    duckdb.FatalException,
    duckdb.CatalogException,
)
_LOCKED = "lock on file"  # DuckDB's words for "another process has it open"
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EROFS, errno.ENOMEM)
_CIRCUMSTANCES = (_LOCKED, *map(os.strerror, _OURS))

_LOOK_UP = """
    SELECT key, text, reported_model, prompt_tokens, output_tokens, latency_s, cost_usd, epoch_us(created_at) / 1e6
    FROM answers WHERE key IN (SELECT unnest(?))
"""

# A row whose (key, id) is already there is not added again; the newest row of a key is its answer, others its history.
_FOLD = """
    CREATE TEMP TABLE incoming AS
      SELECT DISTINCT ON (key, id) * FROM staged s
      WHERE NOT EXISTS (SELECT 1 FROM answers a WHERE a.key = s.key AND a.id = s.id)
        AND NOT EXISTS (SELECT 1 FROM history h WHERE h.key = s.key AND h.id = s.id);
    CREATE TEMP TABLE newest AS
      SELECT * FROM incoming QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1;
    CREATE TEMP TABLE replaced AS
      SELECT a.* FROM answers a JOIN newest n ON n.key = a.key WHERE (n.created_at, n.id) > (a.created_at, a.id);
    INSERT INTO history SELECT * FROM replaced;
    DELETE FROM answers WHERE key IN (SELECT key FROM replaced);
    CREATE TEMP TABLE added AS SELECT * FROM newest n WHERE NOT EXISTS (SELECT 1 FROM answers a WHERE a.key = n.key);
    INSERT INTO answers SELECT * FROM added;
    INSERT INTO history SELECT * FROM incoming i ANTI JOIN added USING (key, id);
    DROP TABLE incoming; DROP TABLE newest; DROP TABLE replaced; DROP TABLE added;
"""
_ADD_USES = "INSERT INTO uses SELECT DISTINCT ON (id) * FROM staged s ANTI JOIN uses USING (id)"


class Database:
    """The DuckDB file of a memo folder; safe for threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "memo.duckdb"
        self._lock_path = folder / "memo.lock"
        self._generation = folder / "generation"
        self._mutex = threading.RLock()  # within the process: DuckDB refuses two connections of different modes
        self._generation_read: tuple[tuple[int, int], int] = ((0, 0), 0)
        self._prepared = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.archive = Archive(folder / "archive")

    # --- reading ---------------------------------------------------------------------------------------------

    def generation(self) -> int:
        """A number that has grown if anything has changed."""
        try:
            status = self._generation.stat()
            stamp = (status.st_ino, status.st_mtime_ns)  # it is replaced, never written to
            if stamp != self._generation_read[0]:
                self._generation_read = (stamp, int(self._generation.read_text() or 0))
            return self._generation_read[1]
        except (FileNotFoundError, ValueError):
            return 0

    def look_up(self, keys: Sequence[str]) -> dict[str, Stored]:
        """The answers of those keys that have one."""
        if not keys:
            return {}
        return {row[0]: Stored(*row) for row in self.query(_LOOK_UP, [list(keys)])}

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a read-only query; none where there is no database yet."""
        return self.ask(lambda connection: connection.execute(sql, list(parameters)).fetchall() if connection else [])

    def ask(self, work: Callable[[duckdb.DuckDBPyConnection | None], T]) -> T:
        """What `work` makes of a read-only connection (`reading`); called again after a rebuild."""
        with contextlib.suppress(Rebuilt), self.reading() as connection:
            return work(connection)
        try:
            with self.reading() as connection:
                return work(connection)
        except Rebuilt as again:  # it is not the database, then
            raise again.__cause__ or again from None

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection | None]:
        """A read-only connection; None where there is no database yet. A damaged database is rebuilt first."""
        with self._mutex:
            # An older one is brought to the newest schema first, and a lost one rebuilt.
            if not self._prepared if self.path.exists() else self.archive:
                with self.writing():
                    self._prepared = True
            try:
                with self._locked(fcntl.LOCK_SH):
                    if not self.path.exists():
                        yield None
                        return
                    with self._connect(read_only=True) as connection:
                        yield connection
            except duckdb.Error as error:
                if not is_damage(error):
                    raise
                self._repair(error)
                raise Rebuilt from error

    # --- writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, wait: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that may write. Raises Busy at once where another process is at it and `wait` is off."""
        with (
            self._mutex,
            self._locked(fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)),
            self._open_to_write() as connection,
        ):
            yield connection

    def fold(self, answers: Sequence[Answer], uses: Sequence[Use], wait: bool = True) -> None:
        """Adds rows, durably, to the archive and to the database. Raises Busy as `writing` does."""
        if not answers and not uses:
            return
        rows: dict[str, Sequence[Record]] = {"answers": answers, "uses": uses}
        tables = {kind: to_arrow(found, SCHEMAS[kind]) for kind, found in rows.items() if found}
        with self._mutex, self._locked(fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
            archived: list[Path] = []
            try:
                with self._open_to_write() as connection:
                    archived = [self.archive.add(kind, table) for kind, table in tables.items()]
                    self.insert(connection, **tables)
                    connection.execute("CHECKPOINT")  # closing does so too, but keeps quiet where it fails
            except duckdb.Error as error:
                if not is_damage(error):
                    for path in archived:  # the journal stays, and will write them again
                        path.unlink()
                    raise
                self._rebuild(error)
            self.changed()
            self.archive.merge_small()

    def insert(self, connection: duckdb.DuckDBPyConnection, **tables: pa.Table) -> None:
        """Adds rows (`answers`, `uses`) to the database alone, in one transaction."""
        with transaction(connection):
            for kind, statements in (("answers", _FOLD), ("uses", _ADD_USES)):
                if kind in tables:
                    connection.register("staged", tables[kind])
                    connection.execute(statements)
                    connection.unregister("staged")

    def changed(self) -> None:
        """Tells other processes to look again."""
        with atomic_file(self._generation, mode=0o600) as beside:
            beside.write_text(str(self.generation() + 1))

    # --- locks, damage ---------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, how)
            except BlockingIOError:
                raise Busy from None
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _connect(self, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Opens the file; waits for another program that has it open, for ours wait at the lock."""
        if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK):
            raise ActError("the memo's database may not be read", where=str(self.path), todo="fix its permissions")
        deadline = time.monotonic() + LOCK_WAIT_S
        with contextlib.ExitStack() as held:
            while True:
                try:
                    connection = held.enter_context(connect(self.path, read_only))
                    break
                except duckdb.IOException as error:
                    if _LOCKED not in str(error):
                        raise
                    if time.monotonic() > deadline:
                        raise ActError(
                            f"another program has the memo's database open: {error}",
                            where=str(self.path),
                            todo="close it (a DuckDB shell?) and run again; paid answers are safe in the journals",
                        ) from error
                    time.sleep(0.1)
            yield connection

    @contextmanager
    def _open_to_write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to a database of the newest schema; called under the exclusive lock."""
        if not self.path.exists() and self.archive:
            self._rebuild(None)
        with contextlib.ExitStack() as held:
            try:
                connection = held.enter_context(self._connect(read_only=False))
                if schema_version(connection) == 0 and self.archive:
                    raise duckdb.CatalogException("its tables are gone")
                migrate(connection, str(self.path))
            except duckdb.Error as error:
                if not is_damage(error):
                    raise
                held.close()
                self._rebuild(error)
                connection = held.enter_context(self._connect(read_only=False))
            self._private()
            held.callback(self._private)
            yield connection

    def fault(self) -> str:
        """Why the database cannot be read in full; "" where it can or is not there. Changes nothing."""
        with self._mutex, self._locked(fcntl.LOCK_SH):
            return self._fault() if self.path.exists() else ""

    def _fault(self) -> str:
        try:
            with self._connect(read_only=True) as connection:
                read_all(connection)
        except duckdb.Error as error:
            if not is_damage(error):
                raise
            return str(error).splitlines()[0]
        return ""

    def _repair(self, error: Exception) -> None:
        """Rebuilds a damaged database unless another process has done so meanwhile."""
        with self._mutex, self._locked(fcntl.LOCK_EX):
            if self._fault():
                self._rebuild(error)

    def _rebuild(self, why: Exception | None) -> None:
        """Rebuilds the database from the sound segments of the archive, and sets a damaged one
        aside (`why`; None where there is none any more); called under the exclusive lock.

        It is built beside and renamed, so that a rebuild that fails changes nothing and one that is
        cut off starts again.
        """
        beside = self.folder / "rebuilding.duckdb"
        try:
            for left in _files(beside):
                left.unlink()
            with connect(beside) as connection:
                migrate(connection, str(beside))
                for kind in SCHEMAS:
                    for table in self.archive.read(kind):
                        self.insert(connection, **{kind: table})
        except BaseException:
            for left in _files(beside):
                left.unlink()
            raise
        stamp = f"damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"
        for path in _files(self.path):
            path.rename(path.with_name(f"{path.name}.{stamp}"))
        sync(self.folder)
        if why is None:
            LOG.warning("the memo's database is gone; rebuilt from the archive")
        else:
            what = f"the memo's database is damaged ({str(why).splitlines()[0][:200]})"
            LOG.warning("%s; set aside as %s.%s and rebuilt from the archive", what, self.path.name, stamp)
        beside.rename(self.path)
        self._private()
        sync(self.folder)
        self.changed()

    def _private(self) -> None:
        for path in _files(self.path):
            path.chmod(0o600)


def _files(database: Path) -> list[Path]:
    """Those of DuckDB's two files of a database that exist."""
    return [path for path in (database, database.with_name(database.name + ".wal")) if path.exists()]


_instances: dict[int, duckdb.DuckDBPyConnection] = {}  # by process
_opened = itertools.count()


@contextmanager
def connect(path: Path | None = None, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a database file, or to an empty one in memory, closed at the end of the block.

    A process has one instance of DuckDB, of bounded memory: to start one takes 20 ms, to open a file in it less than
    one.
    """
    if os.getpid() not in _instances:
        started = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "preserve_insertion_order": "false"})
        started.execute("SET enable_progress_bar = false")  # it would draw into what commands print
        _instances[os.getpid()] = started
    instance, name = _instances[os.getpid()], f"opened_{next(_opened)}"
    connection = instance.cursor()
    try:
        where = str(path or ":memory:").replace("'", "''")
        connection.execute(f"ATTACH '{where}' AS {name}{' (READ_ONLY)' if read_only else ''}")
        connection.execute(f"USE {name}")
        yield connection
    except (duckdb.FatalException, duckdb.InternalException):
        _instances.pop(os.getpid(), None)  # it answers nothing any more
        raise
    finally:
        connection.close()
        with contextlib.suppress(duckdb.Error), instance.cursor() as other:
            other.execute(f"DETACH DATABASE IF EXISTS {name}")


def is_damage(error: duckdb.Error) -> bool:
    """Whether an error says that the database is damaged, and not the disk full or the like."""
    # What does not match its checksum is a plain Error, of none of the classes below it.
    damage = isinstance(error, _DAMAGE) or type(error) is duckdb.Error
    return damage and not any(text in str(error) for text in _CIRCUMSTANCES)


class Busy(Exception):
    """Another process is writing to the database."""


class Rebuilt(Exception):
    """The database was damaged while it was read, and has been rebuilt: ask again."""


def read_all(connection: duckdb.DuckDBPyConnection) -> None:
    """Reads every block. Raises duckdb.Error where one is damaged."""
    for table in ("answers", "history", "uses", "schema_version"):
        connection.execute(f"SELECT sum(hash({table})) FROM {table}").fetchall()  # noqa: S608 (fixed names)
