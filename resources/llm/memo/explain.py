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
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from itertools import compress, count, zip_longest
from operator import ne
from pathlib import Path
from typing import Any

import duckdb

from resources.errors import ActError
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, canonical, key_of, storable
from resources.llm.memo.report import COLUMNS, checked_prefix, consult, the_one, utc
from resources.llm.memo.schema import answers_of

LOG = logging.getLogger(__name__)
KEPT = 1_000  # misses that are remembered
SEARCH_S = 0.5  # for questions with the same messages; the newest are looked at first
SCAN_ROWS = 50_000  # at a time
CANDIDATES = 200  # questions that are compared closely
LINES, WIDTH = 16, 160  # of a shown difference
BEFORE = 50  # characters of a long line that are shown before its first difference
COMPARED_LINES, COMPARED_WORDS, COMPARED_CHARACTERS = 400, 300, 20_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question is not in the memo. `held`: it is. `empty`: nothing is.

    `how` the nearest was found: `same messages`, `same example` or `similar messages`; `similarity`
    of the messages, 0 to 1. `unsearched` stored questions were not compared, for want of time.
    """

    key: str
    held: bool = False
    empty: bool = False
    nearest: Answer | None = None
    how: str = ""
    similarity: float = 0.0
    differences: tuple[Difference, ...] = ()
    unsearched: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; a side that is absent is not there."""
        near, names = self.nearest, ("key", "role", "model", "label", "asset")
        return {
            **asdict(self),
            "nearest": {**{n: getattr(near, n) for n in names}, "created_at": utc(near.created_at)} if near else None,
            "similarity": round(self.similarity, 4),
            "differences": [d.to_json() for d in self.differences],
        }


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
        model = str(asked.get("model"))
        of_role = ("label = ? AND role = ?", [label, role]) if role else ("label = ? AND model = ?", [label, model])
        example = _rows(connection, *of_role) if label else []
        best, unsearched = _same_messages(connection, asked, example)
        how, alike = "same messages", 1.0
        if best is None:
            how = "same example" if example else "similar messages"
            related = example or _rows(connection, "model = ? OR role = ?", [model, role])
            scored = [
                (similarity(_text(asked), _text(json.loads(n.question))), n.created_at, n)
                for n in related or _rows(connection, "true", [])
            ]
            alike, _, best = max(scored, key=lambda s: s[:2])  # the newest of several
        found = differences(asked, json.loads(best.question))
        return Explanation(key, False, False, best, how, alike, found, unsearched)

    return consult(memo, ask)


def _rows(
    connection: duckdb.DuckDBPyConnection,
    condition: str,
    parameters: Sequence[Any],
    tables: Sequence[str] = ("answers", "fresh"),
) -> list[Answer]:
    """The newest rows for which a condition holds, of the database and of the journals."""
    found: list[Answer] = []
    for table in tables:
        # First which rows, by narrow columns alone: the questions are most of what there is to read.
        rows = connection.sql(
            f"""
            SELECT {COLUMNS} FROM {table} WHERE rowid IN (
              SELECT rowid FROM {table} WHERE {condition} ORDER BY created_at DESC, id DESC LIMIT {CANDIDATES}
            )
            """,  # noqa: S608 (names and conditions of ours)
            params=[storable(p) for p in parameters],
        )
        found += answers_of(rows.to_arrow_table())
    return sorted(found, key=lambda n: n.created_at, reverse=True)[:CANDIDATES]


def _same_messages(
    connection: duckdb.DuckDBPyConnection, asked: Mapping[str, Any], example: Sequence[Answer]
) -> tuple[Answer | None, int]:
    """The stored question with the same messages and the fewest differences; and how many were not looked at.

    Questions are canonical JSON, so that the same messages are the same text in them: to look for a
    text is seven times as fast as to take the JSON apart.
    """
    messages = asked.get("messages")
    if not messages:
        return None, 0
    text = f'"messages":{canonical(messages)}'
    rows = [*example, *_rows(connection, "contains(question, ?)", [text], ["fresh"])]
    (last,) = connection.execute("SELECT coalesce(max(rowid), -1) FROM answers").fetchall()[0]
    deadline = time.monotonic() + SEARCH_S
    best: tuple[int, float, Answer] | None = None
    while True:
        for row in rows:
            question = json.loads(row.question)
            if question.get("messages") == messages:
                ranked = (len(differences(asked, question)), -row.created_at, row)
                best = min(best or ranked, ranked, key=lambda r: r[:2])  # of several the newest
        if last < 0 or time.monotonic() >= deadline or (best and best[0] == 1):
            return (best[2], 0) if best else (None, max(0, last + 1))
        condition = "rowid BETWEEN ? AND ? AND contains(question, ?)"
        rows = _rows(connection, condition, [last - SCAN_ROWS + 1, last, text], ["answers"])
        last -= SCAN_ROWS


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


# --- what differs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, by its dotted path. A side on which it is absent has `None` for its JSON; null is "null".
    `diff`: what changed in a text, one line per line."""

    path: str
    asked: str | None
    stored: str | None
    diff: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; a side that is absent is not there."""
        sides = {"asked": self.asked, "stored": self.stored}
        present = {name: json.loads(value) for name, value in sides.items() if value is not None}
        kind = "changed" if len(present) == 2 else f"only {next(iter(present))}"
        return {"path": self.path, "kind": kind, **present, **({"diff": list(self.diff)} if self.diff else {})}


def differences(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields that differ: two values whose JSON is not the same text, 0 and 0.0 among them."""
    left, right = dict(_leaves(asked, "")), dict(_leaves(stored, ""))
    found = []
    for path in sorted(left.keys() | right.keys()):
        one, other = (canonical(side[path]) if path in side else None for side in (left, right))
        if one == other:
            continue
        texts = (left.get(path), right.get(path))
        diff = text_diff(texts[1], texts[0]) if isinstance(texts[0], str) and isinstance(texts[1], str) else ()
        found.append(Difference(path, one, other, diff if path.startswith("messages.") else ()))
    return tuple(found)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values that hold no others, with their paths; a list is one value, but messages are looked into."""
    inner: Any = None
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list) and path == "messages":
        inner = enumerate(value)
    if not value or inner is None:
        yield path, value
        return
    for name, part in inner:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def text_diff(old: str, new: str) -> tuple[str, ...]:
    """The lines that differ, `-` old and `+` new, cut to a readable size; long lines around their first difference."""
    alike = unicodedata.normalize("NFC", old) == unicodedata.normalize("NFC", new)  # one would see no difference
    before, after = old.split("\n"), new.split("\n")
    same = _common(before, after)
    end = _common(before[same:][::-1], after[same:][::-1])
    changed, into = before[same : len(before) - end], after[same : len(after) - end]
    shown = [f"@@ line {same + 1} @@"]
    matcher = SequenceMatcher(None, changed[:COMPARED_LINES], into[:COMPARED_LINES], autojunk=False)
    for what, i1, i2, j1, j2 in matcher.get_opcodes():
        if what == "equal":
            shown += [f"  {_window(line, 0, alike)}" for line in changed[i1:i2]] if i2 - i1 < 3 else ["  ..."]
            continue
        sides = (("-", changed[i1:i2], into[j1:j2]), ("+", into[j1:j2], changed[i1:i2]))
        for sign, lines, opposite in sides:
            pairs = zip_longest(lines, opposite[: len(lines)], fillvalue="")
            shown += [f"{sign} {_window(line, _common(line, other), alike)}" for line, other in pairs]
    more = len(shown) - 1 - LINES
    return tuple(shown[: LINES + 1] + ([f"... {more} more lines"] if more > 0 else []))


def _window(line: str, at: int, escaped: bool) -> str:
    start = max(0, at - BEFORE) if len(line) > WIDTH else 0
    part = line[start : start + WIDTH]
    text = part.encode("unicode_escape").decode("ascii") if escaped else visible(part)
    cut = start + WIDTH < len(line)
    bare = text if cut else text.rstrip(" ")
    spaces = "·" * (len(text) - len(bare))
    return ("..." if start else "") + bare + spaces + ("..." if cut else "")


def visible(text: str) -> str:
    """A text with everything that a terminal would not show, or would obey, written as an escape sequence."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def similarity(one: str, other: str) -> float:
    """How alike two texts are, 0 to 1; of long ones a bounded part is compared."""
    one, other = one[:COMPARED_CHARACTERS], other[:COMPARED_CHARACTERS]
    if one == other:
        return 1.0
    start = _common(one, other)
    rest, remaining = one[start:], other[start:]
    end = _common(rest[::-1], remaining[::-1])
    left, right = rest[: len(rest) - end], remaining[: len(remaining) - end]
    words, others = left.split()[:COMPARED_WORDS], right.split()[:COMPARED_WORDS]
    middle = SequenceMatcher(None, words, others, autojunk=False).ratio() if words and others else 0.0
    return (2 * (start + end) + middle * (len(left) + len(right))) / (len(one) + len(other))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many characters, or lines, both begin with."""
    return next(compress(count(), map(ne, one, other)), min(len(one), len(other)))


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
        descriptor = os.open(folder / "missed.jsonl", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            end = os.pread(descriptor, 32, max(0, size - 32))
            number = re.search(rb'"n": (\d+)\}\n$', end)  # of lines, by the last one's word
            count, whole = int(number[1]) if number else 0, end[-1:] in (b"", b"\n")
            if count >= KEPT or (size and not count):
                lines = os.pread(descriptor, size, 0).splitlines(keepends=True)
                kept = [line for line in lines if line.endswith(b"\n")][-(KEPT - KEPT // 10) :]
                size, count, whole = sum(map(len, kept)), len(kept), True
                os.pwrite(descriptor, b"".join(kept), 0)
                os.ftruncate(descriptor, size)
            line = f'{noted[:-1]}, "n": {count + 1}}}\n'.encode("ascii")  # so that nobody has to count the lines
            os.pwrite(descriptor, line if whole else b"\n" + line, size)
    except OSError as error:
        LOG.warning("a question that the memo does not hold could not be noted: %s", error)


def find_miss(folder: Path, key_prefix: str) -> Miss | None:
    """The last miss whose key begins so; None where there is none. Raises ActError where several keys do."""
    wanted = checked_prefix(key_prefix)
    try:
        with (folder / "missed.jsonl").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            content = stream.read()
    except FileNotFoundError:
        return None
    found: dict[str, Miss] = {}
    for line in content.splitlines()[-KEPT:]:
        with suppress(ValueError, TypeError, KeyError):  # a damaged line
            raw = json.loads(line)
            key, question, role, label = (str(raw[name]) for name in ("key", "question", "role", "label"))
            if key.startswith(wanted):
                found[key] = Miss(key, question, role, label, float(raw["at"]))
    return found[the_one(sorted(found), key_prefix, "")] if found else None
