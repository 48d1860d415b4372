"""The memo of one folder, as one process uses it.

    memo = memo_at(folder)
    found = memo.look_up(keys)             # everything that any process has been answered so far
    await memo.keep(answer)                # returns when the answer is on disk
    memo.close()                           # folds the journal into the database; a kill loses nothing but this

Answers not yet folded are read from the journals, those of other live processes included.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from resources.llm.memo.database import Busy, Database
from resources.llm.memo.journal import (
    Journal,
    OtherJournals,
    finished,
    journals,
    newest,
    read_journal,
    records_in,
    to_line,
)
from resources.llm.memo.key_locks import KeyLocks
from resources.llm.memo.records import Answer, Record, Stored, Use

LOG = logging.getLogger(__name__)
FOLD_RECORDS = 5_000  # a journal of so many records,
FOLD_BYTES = 32 * 2**20  # or so many bytes, is ended and folded: some seconds at most, and bounded memory
POLL_S = (0.01, 0.1)  # how often a process looks whether another has been answered: at first, at most


class Found(NamedTuple):
    """What a look-up found, and the generation of the database that it looked at."""

    answers: dict[str, Stored]
    generation: int


class Memo:
    """One folder's answers. Look-ups and writes are safe for threads; the coroutines belong to one event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(folder)
        self.journal_folder = folder / "journal"
        self.journal_folder.mkdir(mode=0o700, exist_ok=True)
        self.key_locks = KeyLocks(folder / "flights.lock")
        self._journal = Journal(self.journal_folder)
        self._mutex = threading.RLock()
        self._own: dict[str, Stored] = {}
        self._others = OtherJournals(self.journal_folder)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="memo-journal")
        self._folder_thread = ThreadPoolExecutor(1, thread_name_prefix="memo-fold")
        self._pending: list[tuple[Record, asyncio.Future[None]]] = []
        self._flushing = False
        self._fold_aside(wait=True)

    # --- looking up ------------------------------------------------------------------------------------------

    def look_up(self, keys: Iterable[str], not_before: float = 0.0) -> Found:
        """The answers of those keys that have one, created at `not_before` (seconds since 1970) or later."""
        wanted = list(dict.fromkeys(keys))
        while True:
            with self._mutex:
                self._others.refresh(self._journal.path)
                generation = self.database.generation()
            folded = self.database.look_up(wanted)  # without the mutex: it may wait for another process
            with self._mutex:
                self._others.refresh(self._journal.path)  # one of this process may have ended meanwhile
                if self.database.generation() != generation:
                    continue  # a journal may have been folded meanwhile
                own, others = self._own, self._others
                found = {key: newest(own.get(key), others.get(key), folded.get(key)) for key in wanted}
            return Found({k: s for k, s in found.items() if s and s.created_at >= not_before}, generation)

    def unfolded(self, key: str) -> Stored | None:
        """The newest answer of a key that is in a journal."""
        with self._mutex:
            self._others.refresh(self._journal.path)
            return newest(self._own.get(key), self._others.get(key))

    def spent(self, budget: str) -> tuple[float, int]:
        """Dollars and calls paid under a budget so far, by any process; calls that failed after payment included."""
        while True:
            generation = self.database.generation()
            paid = {
                row[0]: (float(row[1] or 0.0), int(row[2]))
                for row in self.database.query(
                    "SELECT id, cost_usd, 1 FROM answers WHERE budget = ? UNION ALL "
                    "SELECT id, cost_usd, 1 FROM history WHERE budget = ? UNION ALL "
                    "SELECT id, lost_usd, lost_calls FROM uses WHERE budget = ? AND lost_calls > 0",
                    [budget] * 3,
                )
            }
            for r in records_in(self.journal_folder):
                if r.budget == budget and isinstance(r, Answer):
                    paid[r.id] = (r.cost_usd or 0.0, 1)
                elif r.budget == budget and isinstance(r, Use):
                    paid[r.id] = (r.lost_usd, r.lost_calls)
            if self.database.generation() == generation:
                return sum(usd for usd, _ in paid.values()), sum(calls for _, calls in paid.values())

    # --- keeping ---------------------------------------------------------------------------------------------

    async def keep(self, record: Record) -> None:
        """Returns when an answer, or a row of the ledger, is on disk; those that come in meanwhile
        share one fsync.

        Raises ActError where the disk does not take it.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._pending.append((record, done))
        if not self._flushing:
            self._flushing = True
            self._flush_task = loop.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                failed: Exception | None = None
                try:
                    await loop.run_in_executor(self._writer, self.append, [record for record, _ in batch])
                except Exception as error:  # of the disk, or of an interpreter that is ending
                    failed = error
                for _, done in batch:
                    if done.done():  # whoever waited has gone away
                        continue
                    if failed is not None:
                        done.set_exception(failed)
                    else:
                        done.set_result(None)
        finally:
            self._flushing = False

    def append(self, records: Sequence[Record]) -> None:
        """Writes records to this process's journal; they are on disk on return. Raises ActError."""
        lines = [to_line(r) for r in records]
        with self._mutex:
            self._journal.append(lines)
            self._own.update((r.key, r.stored()) for r in records if isinstance(r, Answer))
            full = self._journal.records >= FOLD_RECORDS or self._journal.size >= FOLD_BYTES
            if full:
                self._seal()
        if full:
            self._folder_thread.submit(self._fold_aside)

    def _seal(self) -> None:
        """Ends this process's journal; its answers are then read as those of any other journal."""
        self._journal.seal()  # from now on anyone may fold and delete it
        self._others.list_again()
        self._own = {}

    # --- folding ---------------------------------------------------------------------------------------------

    def fold(self, wait: bool = True) -> None:
        """Folds every journal that no process writes to any more into the database.

        What could not be read is logged; a damaged journal is kept beside (`*.damaged`). With
        `wait` off, does nothing while another process is writing.
        """
        with finished(journals(self.journal_folder)) as paths:
            for path in paths:  # one at a time, for memory
                records, _, damage = read_journal(path)
                answers = [r for r in records if isinstance(r, Answer)]
                uses = [r for r in records if isinstance(r, Use)]
                try:
                    self.database.fold(answers, uses, wait)
                except Busy:
                    break
                for one in damage:
                    LOG.warning("the memo's journal %s", one)
                if any(not d.torn for d in damage):
                    path.rename(path.with_name(path.name + ".damaged"))
                else:
                    path.unlink(missing_ok=True)

    def _fold_aside(self, wait: bool = False) -> None:
        try:
            self.fold(wait)
        except Exception as error:  # nothing is lost: the journals stay
            LOG.warning("the memo's journals could not be folded now: %s", error)

    def close(self) -> None:
        """Ends this process's journal and folds it; what cannot be folded now stays in its journal."""
        self._folder_thread.shutdown()
        self._writer.shutdown()
        with self._mutex:
            self._seal()
        self._fold_aside(wait=True)


class Watch:
    """Some questions: what was `found`, and what has been answered since. Safe for threads."""

    def __init__(self, memo: Memo, keys: Iterable[str], not_before: float = 0.0) -> None:
        self.memo, self._not_before = memo, not_before
        wanted = list(keys)
        self.found, self._generation = memo.look_up(wanted, not_before)
        self._missing = [key for key in wanted if key not in self.found]
        self._late: dict[str, Stored] = {}
        self._mutex = threading.Lock()

    def answered(self, key: str) -> Stored | None:
        """What a look-up of a question that was not found would find now; the database is asked for
        all of them together, and only when it has changed (`stale`: then this may take a while)."""
        while True:
            unfolded = self.memo.unfolded(key)  # before the generation: what is folded now is noticed there
            if not self.stale():
                found = newest(unfolded, self._late.get(key))
                return found if found and found.created_at >= self._not_before else None
            with self._mutex:
                if self.stale():
                    self._late, self._generation = self.memo.look_up(self._missing, self._not_before)

    def stale(self) -> bool:
        """Whether the database has changed since it was last asked."""
        return self.memo.database.generation() != self._generation


_memos: dict[tuple[int, Path], Memo] = {}
_memos_lock = threading.Lock()


def memo_at(folder: Path) -> Memo:
    """This process's memo of a folder; its journal is folded when the process ends."""
    identity = (os.getpid(), folder.resolve())
    with _memos_lock:
        if identity not in _memos:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _memos[identity] = Memo(folder)
        return _memos[identity]


def close_memos() -> None:
    """Closes every memo of this process."""
    with _memos_lock:
        mine = [key for key in _memos if key[0] == os.getpid()]
        for key in mine:
            _memos.pop(key).close()


atexit.register(close_memos)
