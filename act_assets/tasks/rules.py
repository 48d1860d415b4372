"""The rules by which the embedded provider answers for a task: what all tasks share.

A task subclasses `Rules` and writes `generate`; the rest has defaults that suit conversations in English.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence

from act_assets.conversation import ClearRequest, TurnState, Utterance


class Rules:
    """Answers by rule, always the same way. None where no rule fits, which the provider reports as a failed call."""

    def generate(self, turn: TurnState, action: str, seed: int) -> str | None:
        """M: a response to `turn` that takes `action` and is not the reference."""
        return None

    def reply(self, turn: TurnState, intent: str, utterances: Sequence[Utterance]) -> str | None:
        """U: what the wanted item of the intent adds to what the user has said since the request was opened."""
        items = intent_items(one_line(intent))
        if not items:
            return None
        request = open_request(turn)
        said = [request, *(u.text for u in utterances if u.speaker == "user")]
        return added(" ".join(said), wanted(turn, items, request))

    def perturb(self, clear: ClearRequest) -> str | None:
        """The ambiguous twin of a request, in the form in which a model is asked to write it."""
        return None


class Draw:
    """Choices that depend on a key and a name alone, not on the process or the order of calls."""

    def __init__(self, key: str) -> None:
        self.key = key

    def unit(self, name: str) -> float:
        """A number in [0, 1)."""
        digest = hashlib.sha256(f"{self.key}|{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def shuffled(self, name: str, items: Sequence[str]) -> list[str]:
        return sorted(items, key=lambda item: (self.unit(f"{name}|{item}"), item))


def lower_first(text: str) -> str:
    """A sentence that goes on in the middle of another; `US` stays."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def one_line(text: str) -> str:
    """An utterance must not look like several: policies write line breaks and speaker names of their own."""
    return " ".join(text.split())


def same_text(one: str, other: str) -> bool:
    """Whether two requests are the same but for case, spaces and punctuation."""
    plain = lambda text: re.findall(r"[^\W_]+", text.lower())  # noqa: E731
    return plain(one) == plain(other)


def words(text: str) -> frozenset[str]:
    """Words that are listed in a string."""
    return frozenset(text.split())


LOOSE_ENDS = words(
    "a an and are as at between by for from had has have how in is it its of on or respective that the their to was "
    "were what when where which who why with"
)
_VERBS = words("are did do does has have is was were")
QUESTION_WORDS = words("how what when where which who whom whose why")
STOP_WORDS = LOOSE_ENDS | words(
    "about all also been be both can company company's could did do does during each if into many me more most much "
    "not our out over s some than them then there these they this those under up we whose would you"
)


def content_words(text: str) -> set[str]:
    """The words that carry meaning, lower-cased."""
    return {w for w in re.findall(r"[^\W_]+(?:[.'’,-][^\W_]+)*", text.lower()) if w not in STOP_WORDS}


def open_request(turn: TurnState) -> str:
    """What the user has said since the request was opened."""
    return " ".join(m.content for m in turn.history[turn.open_request :] if m.role == "user")


def intent_items(intent: str) -> list[str]:
    """The items of `1. ... 2. ...`; a number counts only where it is the next one."""
    starts: list[tuple[int, int]] = []
    position, number = 0, 1
    while marker := re.compile(rf"(?:^|(?<=\s)){number}\.\s+").search(intent, position):
        starts.append(marker.span())
        position, number = marker.end(), number + 1
    stops = [start for start, _ in starts[1:]] + [len(intent)]
    items = [intent[end:stop].strip() for (_, end), stop in zip(starts, stops, strict=False)]
    return [re.sub(r",?\s+and$|,$", "", item).strip() for item in items]


def wanted(turn: TurnState, items: Sequence[str], request: str) -> str:
    """The item that holds most of the request's words; among equals the one nearest to the request's place."""
    settled = sum(1 for m in turn.history[: turn.open_request] if m.role == "assistant" and "?" not in m.content)
    asked = content_words(request)
    best = max(range(len(items)), key=lambda i: (len(asked & content_words(items[i])), -abs(i - settled), -i))
    return items[best]


def added(said: str, item: str) -> str:
    """The words of `item` that `said` lacks, in their order.

    The whole item where `said` lacks none of weight, or where the words would not read as a reply: `How about 2019?`
    is no request that a few words complete.
    """
    words = item.split()
    keys = [bare(w) for w in words]
    heard = [bare(w) for w in said.split()]
    matcher = difflib.SequenceMatcher(None, heard, keys, autojunk=False)
    if 2 * sum(block.size for block in matcher.get_matching_blocks()) < len(heard):
        return item
    parts: list[list[str]] = []
    for kind, _, _, start, stop in matcher.get_opcodes():
        if kind not in ("insert", "replace") or all(k in LOOSE_ENDS for k in keys[start:stop]):
            continue
        if kind == "insert" and start and keys[start - 1] == keys[stop - 1]:
            start, stop = start - 1, stop - 1  # `sales [APAC in] 2017` is rather `sales [in APAC] in 2017`
        while keys[stop - 1] in LOOSE_ENDS:
            stop -= 1
        if QUESTION_WORDS & set(keys[start:stop]) or len(parts) == 2:
            return item
        # `What was the cost` is stated as `What the cost was`: a verb that moved is nothing new.
        moved = _VERBS & set(heard)
        parts.append([words[i] for i in range(start, stop) if keys[i] not in moved])
    text = " ".join(word for part in parts for word in part).strip("?.,;: ")
    if not text:
        return item
    return text if text.isdigit() else f"{text[0].upper()}{text[1:]}."


def bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word).lower() or word
