"""PACIFIC answers as text and back, and how they are scored.

A response is written so that its text is true by itself: the scale is stated (`$1,496.5 (in millions)`), an
arithmetic answer shows its derivation (`44.1-56.7 = -12.6 (in millions)`), several spans are separated by ` | `.
`parse` is the exact inverse for every gold answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from act_assets.conversation import ANSWER, CLARIFY, Reference, TurnState
from act_assets.metrics.drop_f1 import bag_score, official_score
from act_assets.tasks.base import Scores, TaskJudge

SCALE_NOTES = {
    "": "",
    "thousand": " (in thousands)",
    "million": " (in millions)",
    "billion": " (in billions)",
    "percent": " (in percent)",
}
_NO_SCALE = " (no scale)"
_NOTE = re.compile(r" \((in thousands|in millions|in billions|in percent|no scale)\)$")
_SCALE_OF_NOTE = {note.strip(" ()"): scale for scale, note in SCALE_NOTES.items() if note} | {"no scale": ""}
_SEPARATOR = " | "
_EMPTY_ITEM = '""'
_LOOKS_EMPTY = re.compile(r'\\*""')  # an item that reads like the empty one gets one more backslash
# A derivation holds figures, operators, brackets and scale words, never prose.
_EQUATION = re.compile(r"^(?P<left>.*\d.*) = (?P<right>[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?))$", re.IGNORECASE)
_FORMULA_WORDS = re.compile(r"thousand|million|billion|percent", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A response read back: the number of an equation, or the items of a span answer, with the scale."""

    answer: int | float | tuple[str, ...]
    scale: str


def render(answer: object, scale: str, answer_type: str, derivation: str) -> str:
    """The text of a gold answer. Raises ValueError where the annotation has another shape."""
    if scale not in SCALE_NOTES:
        raise ValueError(f"unknown scale {scale!r}")
    if answer_type == "arithmetic":
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise ValueError(f"an arithmetic answer must be a number, not {answer!r}")
        body = f"{derivation.strip()} = {answer!r}"
    elif answer_type == "count":
        if not isinstance(answer, str | int) or isinstance(answer, bool):
            raise ValueError(f"a count must be a string or a number, not {answer!r}")
        body = _escape(str(answer))
    elif answer_type in ("span", "multi-span", "question"):
        if not (isinstance(answer, list) and answer and all(isinstance(a, str) for a in answer)):
            raise ValueError(f"a {answer_type} answer must be a list of strings, not {answer!r}")
        body = _SEPARATOR.join(_escape(a) for a in answer)
    else:
        raise ValueError(f"unknown answer_type {answer_type!r}")
    if not scale and _NOTE.search(body):
        return body + _NO_SCALE
    return body + SCALE_NOTES[scale]


def parse(text: str) -> ParsedAnswer:
    """Any response as (answer, scale); never fails, for policies write anything."""
    scale = ""
    note = _NOTE.search(text)
    if note:
        scale, text = _SCALE_OF_NOTE[note.group(1)], text[: note.start()]
    equation = _EQUATION.match(text)
    if equation and not re.search(r"[A-Za-z?]", _FORMULA_WORDS.sub("", equation["left"])):
        right = equation["right"]
        return ParsedAnswer(int(right) if re.fullmatch(r"[-+]?\d{1,300}", right) else float(right), scale)
    return ParsedAnswer(tuple(_unescape(item) for item in text.split(_SEPARATOR)), scale)


def _escape(item: str) -> str:
    if not item:
        return _EMPTY_ITEM
    if _LOOKS_EMPTY.fullmatch(item):
        return "\\" + item
    return item.replace("|", "\\|")


def _unescape(item: str) -> str:
    if item == _EMPTY_ITEM:
        return ""
    return item[1:] if _LOOKS_EMPTY.fullmatch(item) else item.replace("\\|", "|")


def _scores(text: str, gold: Reference) -> Scores:
    parsed = parse(text.strip())
    # Numbers go in as text: the official rule takes the number 0 for no prediction at all.
    items = list(parsed.answer) if isinstance(parsed.answer, tuple) else [str(parsed.answer)]
    gold_items = gold.answer if isinstance(gold.answer, list) else [str(gold.answer)]
    official = official_score(items, parsed.scale, gold.answer, gold.scale, gold.answer_type)
    return {"official": official.f1, "bag": bag_score(items, gold_items).f1, "exact match": official.exact_match}


class PacificJudge(TaskJudge):
    """DROP F1 in two named forms, and the official exact match; H is the official F1 with epsilon 0.9, the published
    code's tolerance."""

    tolerance = 0.9
    metric_name = "DROP F1"
    forms = ("official", "bag", "exact match")

    def turn_scores(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[Scores]:
        """Appendix D, turn level: a clarifying question is compared with the reference question alone."""
        return [_scores(response, turn.response) for turn, response in zip(turns, responses, strict=True)]

    def outcome_scores(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[Scores]:
        """Appendix D, trajectory level: the outcome against g."""
        return [_scores(outcome, turn.goal) for turn, outcome in zip(turns, outcomes, strict=True)]

    def rule_action(self, response: str) -> str:
        """A question mark asks: right for 1,982 of 1,982 gold responses of the public validation file."""
        return CLARIFY.name if "?" in response else ANSWER.name


def reference(answer: object, scale: str, answer_type: str, derivation: str) -> Reference:
    """The gold response of a PACIFIC question. Raises ValueError where it cannot be rendered."""
    text = render(answer, scale, answer_type, derivation)
    return Reference(text, json.dumps(answer, ensure_ascii=False), scale, answer_type)
