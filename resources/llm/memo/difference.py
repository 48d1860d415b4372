"""What differs between two questions, for people to read."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from resources.llm.memo.records import canonical

LINES, WIDTH = 16, 160  # of a shown difference
BEFORE = 50  # characters of a long line that are shown before its first difference
COMPARED_LINES, COMPARED_WORDS, COMPARED_CHARACTERS = 400, 300, 20_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, by its dotted path. A side on which it is absent has `None` for its JSON; null is "null".
    `diff`: what changed in a text, one line per line."""

    path: str
    asked: str | None
    stored: str | None
    diff: tuple[str, ...] = ()


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
    if isinstance(value, Mapping) and value:
        inner = value.items()
    elif isinstance(value, list) and path == "messages" and value:
        inner = enumerate(value)
    if inner is None:
        yield path, value
        return
    for name, part in inner:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def text_diff(old: str, new: str) -> tuple[str, ...]:
    """The lines that differ, `-` old and `+` new, cut to a readable size; long lines around their first difference."""
    alike = unicodedata.normalize("NFC", old) == unicodedata.normalize("NFC", new)  # one would see no difference
    before, after = old.split("\n"), new.split("\n")
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    end = 0
    while end < min(len(before), len(after)) - same and before[-1 - end] == after[-1 - end]:
        end += 1
    changed, into = before[same : len(before) - end], after[same : len(after) - end]
    shown = [f"@@ line {same + 1} @@"]
    matcher = SequenceMatcher(None, changed[:COMPARED_LINES], into[:COMPARED_LINES], autojunk=False)
    for what, i1, i2, j1, j2 in matcher.get_opcodes():
        if what == "equal":
            shown += [f"  {_window(line, 0, alike)}" for line in changed[i1:i2]] if i2 - i1 < 3 else ["  ..."]
            continue
        ones, others = changed[i1:i2], into[j1:j2]
        starts = [_common(a, b) for a, b in zip(ones, others, strict=False)]
        shown += [f"- {_window(line, starts[n] if n < len(starts) else 0, alike)}" for n, line in enumerate(ones)]
        shown += [f"+ {_window(line, starts[n] if n < len(starts) else 0, alike)}" for n, line in enumerate(others)]
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


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
