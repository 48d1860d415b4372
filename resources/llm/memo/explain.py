"""Why the memo does not hold a question: the nearest one that it holds, and what differs.

Questions that offline mode did not find are noted in `missed.jsonl`, for `act memo why-miss`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from resources.errors import ActError
from resources.llm.memo.difference import Difference, differences, similarity
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import canonical, key_of
from resources.llm.memo.report import utc
from resources.llm.memo.view import checked_prefix, consult, the_one

LOG = logging.getLogger(__name__)
KEPT = 1_000  # misses that are remembered
SEARCH_S = 0.5  # for questions with the same messages; the newest are looked at first
SCAN_ROWS = 50_000  # at a time
CANDIDATES = 200  # questions that are compared closely


class Nearest(NamedTuple):
    """A stored question; `created_at` in seconds since 1970."""

    key: str
    question: str
    role: str
    model: str
    label: str
    asset: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question is not in the memo. `held`: it is. `empty`: nothing is.

    `how` the nearest was found: `same messages`, `same example` or `similar messages`; `similarity` of the messages,
    0 to 1. `unsearched` stored questions were not compared, for want of time.
    """

    key: str
    held: bool = False
    empty: bool = False
    nearest: Nearest | None = None
    how: str = ""
    similarity: float = 0.0
    differences: tuple[Difference, ...] = ()
    unsearched: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; a side that is absent is not there."""
        near = self.nearest
        facts = {**near._asdict(), "created_at": utc(near.created_at)} if near else {}
        return {
            "key": self.key,
            "held": self.held,
            "empty": self.empty,
            "nearest": {k: v for k, v in facts.items() if k != "question"} or None,
            "how": self.how,
            "similarity": round(self.similarity, 4),
            "differences": [_plain(d) for d in self.differences],
            "unsearched": self.unsearched,
        }


def _plain(found: Difference) -> dict[str, Any]:
    sides = {"asked": found.asked, "stored": found.stored}
    present = {name: json.loads(value) for name, value in sides.items() if value is not None}
    kind = "changed" if len(present) == 2 else f"only {next(iter(present))}"
    return {"path": found.path, "kind": kind, **present, **({"diff": list(found.diff)} if found.diff else {})}


def why_miss(memo: Memo, question: str, role: str = "", label: str = "") -> Explanation:
    """The nearest stored question and what differs, in about a second however many there are.

    `role` and `label` of who asked, where known: the same example of the same role is then preferred to a stranger.
    """
    key = key_of(question)
    if memo.look_up([key]).answers:
        return Explanation(key, held=True)
    asked: dict[str, Any] = json.loads(question)

    def ask(connection: duckdb.DuckDBPyConnection) -> Explanation:
        if not connection.execute("SELECT 1 FROM current_answers LIMIT 1").fetchall():
            return Explanation(key, empty=True)
        example = _rows(connection, *_of_example(asked, role, label)) if label else []
        best, unsearched = _same_messages(connection, asked, example)
        if best:
            return Explanation(key, False, False, best, "same messages", 1.0, _differences(asked, best), unsearched)
        how = "same example" if example else "similar messages"
        related = "model = ? OR role = ?", [str(asked.get("model")), role]
        candidates = example or _rows(connection, *related) or _rows(connection, "true", [])
        alike, best = _most_similar(asked, candidates)
        return Explanation(key, False, False, best, how, alike, _differences(asked, best), unsearched)

    return consult(memo, ask)


def _differences(asked: Mapping[str, Any], stored: Nearest) -> tuple[Difference, ...]:
    return differences(asked, json.loads(stored.question))


def _of_example(asked: Mapping[str, Any], role: str, label: str) -> tuple[str, list[Any]]:
    if role:
        return "label = ? AND role = ?", [label, role]
    return "label = ? AND model = ?", [label, str(asked.get("model"))]


def _rows(
    connection: duckdb.DuckDBPyConnection,
    condition: str,
    parameters: Sequence[Any],
    tables: Sequence[str] = ("answers", "fresh"),
) -> list[Nearest]:
    """The newest rows for which a condition holds, of the database and of the journals."""
    found: list[Nearest] = []
    for table in tables:
        # First which rows, by narrow columns alone: the questions are most of what there is to read.
        rows = connection.execute(
            f"""
            SELECT key, question, role, model, label, asset, epoch_us(created_at) / 1e6 FROM {table} WHERE rowid IN (
              SELECT rowid FROM {table} WHERE {condition} ORDER BY created_at DESC, id DESC LIMIT {CANDIDATES}
            )
            """,  # noqa: S608 (names and conditions of ours)
            [
                p.encode("utf-8", "replace").decode("utf-8") if isinstance(p, str) else p for p in parameters
            ],  # as stored
        )
        found += [Nearest(*row) for row in rows.fetchall()]
    return sorted(found, key=lambda n: n.created_at, reverse=True)[:CANDIDATES]


def _same_messages(
    connection: duckdb.DuckDBPyConnection, asked: Mapping[str, Any], example: Sequence[Nearest]
) -> tuple[Nearest | None, int]:
    """The stored question with the same messages and the fewest differences; and how many were not looked at.

    Questions are canonical JSON, so that the same messages are the same text in them: to look for a text is seven
    times as fast as to take the JSON apart.
    """
    messages = asked.get("messages")
    if not messages:
        return None, 0

    def best_of(rows: Iterable[Nearest]) -> list[tuple[int, float, Nearest]]:
        """The one of them with the fewest differences, the newest of several; none where none has the messages."""
        parsed = ((n, json.loads(n.question)) for n in rows)
        ranked = [(len(differences(asked, q)), -n.created_at, n) for n, q in parsed if q.get("messages") == messages]
        return [min(ranked)] if ranked else []

    text = f'"messages":{canonical(messages)}'
    best = best_of([*example, *_rows(connection, "contains(question, ?)", [text], ["fresh"])])
    (last,) = connection.execute("SELECT coalesce(max(rowid), -1) FROM answers").fetchall()[0]
    deadline = time.monotonic() + SEARCH_S
    while last >= 0 and time.monotonic() < deadline and not (best and best[0][0] == 1):
        condition = "rowid BETWEEN ? AND ? AND contains(question, ?)"
        rows = _rows(connection, condition, [last - SCAN_ROWS + 1, last, text], ["answers"])
        best = best_of([*(n for _, _, n in best), *rows])
        last -= SCAN_ROWS
    return (best[0][2], 0) if best else (None, max(0, last + 1))


def _most_similar(asked: Mapping[str, Any], candidates: Sequence[Nearest]) -> tuple[float, Nearest]:
    """The candidate whose messages are most alike, the newest of several."""
    text = _text(asked)
    scored = [(similarity(text, _text(json.loads(n.question))), n.created_at, n) for n in candidates]
    alike, _, best = max(scored, key=lambda s: s[:2])
    return alike, best


def _text(question: Mapping[str, Any]) -> str:
    messages = question.get("messages")
    parts = messages if isinstance(messages, list) else []
    return "\n".join(str(m.get("content", "")) if isinstance(m, Mapping) else str(m) for m in parts)


def read_question(text: str | bytes) -> str:
    """A question as canonical JSON, from a JSON object like it. Raises ActError."""
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            parsed = parsed.get("request", parsed)  # what `act memo show --json` says
        if not isinstance(parsed, dict) or "messages" not in parsed:
            raise ValueError("not an object with messages")
        return canonical(parsed)
    except (ValueError, RecursionError) as error:
        raise ActError(
            f"a question cannot be read: {error}",
            todo="give a JSON object like `request` of act memo show --json: provider, model, messages, sampling ...",
        ) from error


# --- what was missed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Miss:
    """A question that was not in the memo; `at` in seconds since 1970."""

    key: str
    question: str
    role: str
    label: str
    at: float


def record_miss(folder: Path, key: str, question: str, role: str, label: str) -> None:
    """Notes a question for `why_miss` in the folder's `missed.jsonl`; the last ones are kept, KEPT at most.

    What cannot be noted is no reason to fail: it is logged.
    """
    noted = json.dumps({"key": key, "question": question, "role": role, "label": label, "at": time.time()})
    try:
        with _held(folder / "missed.jsonl", os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
            size = os.fstat(descriptor).st_size
            end = os.pread(descriptor, 32, max(0, size - 32))
            count, whole = _number(end), end[-1:] in (b"", b"\n")
            if count >= KEPT or (size and not count):
                lines = os.pread(descriptor, size, 0).splitlines(keepends=True)
                kept = [line for line in lines if line.endswith(b"\n")][-(KEPT - KEPT // 10) :]
                size, count, whole = _overwrite(descriptor, b"".join(kept)), len(kept), True
            line = f'{noted[:-1]}, "n": {count + 1}}}\n'.encode("ascii")  # so that nobody has to count the lines
            os.pwrite(descriptor, line if whole else b"\n" + line, size)
    except OSError as error:
        LOG.warning("a question that the memo does not hold could not be noted: %s", error)


def _number(end: bytes) -> int:
    """How many lines there are, by the last one's word; 0 where it has none."""
    match = re.search(rb'"n": (\d+)\}\n$', end)
    return int(match[1]) if match else 0


def _overwrite(descriptor: int, content: bytes) -> int:
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    return len(content)


@contextmanager
def _held(path: Path, flags: int, how: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def find_miss(folder: Path, key_prefix: str) -> Miss | None:
    """The last miss whose key begins so; None where there is none. Raises ActError where several keys do."""
    wanted = checked_prefix(key_prefix)
    try:
        with _held(folder / "missed.jsonl", os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    except FileNotFoundError:
        return None
    found = {m.key: m for m in map(_miss, content.splitlines()[-KEPT:]) if m and m.key.startswith(wanted)}
    return found[the_one(sorted(found), key_prefix, "")] if found else None


def _miss(line: bytes) -> Miss | None:
    """The miss of a line; None for a damaged one."""
    try:
        raw = json.loads(line)
        key, question, role, label = (str(raw[name]) for name in ("key", "question", "role", "label"))
        return Miss(key, question, role, label, float(raw["at"]))
    except (ValueError, TypeError, KeyError):
        return None
