"""The embedded provider's rules for PACIFIC: clarifying questions in the annotated form, answers from the page.

The generator reads a turn's references only so as not to repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import chain

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, TurnState
from act_assets.tasks.pacific.answer import SCALE_NOTES, parse, render
from act_assets.tasks.rules import (
    STOP_WORDS,
    Draw,
    Rules,
    bare,
    content_words,
    lower_first,
    one_line,
    open_request,
    words,
)


class PacificRules(Rules):
    """A response that takes the wanted action and is not the reference."""

    def generate(self, turn: TurnState, action: str, seed: int) -> str | None:
        draw = Draw(f"{turn.turn_id}|{seed}")
        taken = {turn.response.text, turn.goal.text}
        if action == CLARIFY.name:
            return next((q for q in _questions(turn, draw) if "?" in q and q not in taken), "")
        if action != ANSWER.name:
            return None
        # A figure that only lacks its scale, or a longer way to the same number, is still the goal.
        golds = [parse(text).answer for text in taken]
        usable = [a for a in _answers(turn, draw) if "?" not in a and a not in taken]
        return next((a for a in usable if parse(a).answer not in golds), usable[0] if usable else "")


_YEAR = re.compile(r"(?:19|20)\d\d")
_TIMED = re.compile(
    r"\b(?:19|20)\d\d\b|\bFY\s?\d\d|\bF\d\d\b|quarter|period|month|year|date|\b(?:both|last) ", re.IGNORECASE
)
_WHY = re.compile(
    r"^(?:why|who|where|how (?:is|are|was|were|do|does|did|has|have)|what (?:does|do|did))\b"
    r"|\b(?:calculated|determined|factors?|include[ds]?|reasons?)\b",
    re.IGNORECASE,
)
_WHICH_YEAR = re.compile(r"\bwhich (?:fiscal |financial )?(?:years?|fys?)\b", re.IGNORECASE)
_AVERAGE = re.compile(r"\baverage\b", re.IGNORECASE)
_CHANGE = re.compile(r"\b(?:change|changes|increase|decrease|difference|growth|variance)\b", re.IGNORECASE)
_SHARE = re.compile(r"\b(?:ratio|proportion|percentage|percent|share of)\b", re.IGNORECASE)
_SUM = re.compile(r"\b(?:sum|combined)\b", re.IGNORECASE)
# Words that say what to do with an item or when, not which item.
_MEASURES = STOP_WORDS | words(
    "april august average between change changes compared december decrease difference february first fiscal fourth fy "
    "higher highest increase january july june larger largest less lower lowest march month months november october "
    "percent percentage period portion proportion quarter quarters ratio respective respectively second september "
    "smallest sum third variance year years"
)
_MODIFIERS = words("basic current diluted gross net other total")


# Clarifying questions, in the form of the annotated ones, so that it gives nothing away: `Which ... are you asking
# about?` or `What kind of ... are you asking about?`.


def _questions(turn: TurnState, draw: Draw) -> Iterator[str]:
    request = open_request(turn)
    over_time = any(p.search(request) for p in (_AVERAGE, _CHANGE, _SUM)) or draw.unit("when") < 0.2
    when = "period" if over_time else "year"
    topics = _topics(turn, request, draw)
    kinds = [f"What kind of {topic}" for topic in topics]
    types = [f"Which type of {topic}" for topic in topics]
    others = draw.shuffled("other", ["Which segment", "Which region", "Which country", "Which component", *types[:2]])
    # Annotated shares: without a time in the request the time is asked for 8 times of 10, with one the kind is.
    timed = _TIMED.search(request) is not None
    chance = draw.unit("question")
    if timed and chance >= 0.95:
        order = ["Which quarter" if _YEAR.search(request) else "Which period", *kinds]
    elif chance >= 0.80:
        order = [*(others[:1] if timed or chance >= 0.95 else []), *kinds, *types]
    elif timed:
        order = kinds
    else:
        order = [f"Which {when}", *kinds]
    for opening in (*order, *types, *others):
        yield f"{opening} are you asking about?"


def _topics(turn: TurnState, request: str, draw: Draw) -> list[str]:
    """What a request may leave open: its own item words, those of the table's rows first; then rows at large."""
    labels = [one_line(label) for label, cells in _table(turn.context) if label and any(map(_figure, cells))]
    in_table = set().union(*(content_words(label) for label in labels)) if labels else set()
    runs = _runs(request)
    known = [run for run in runs if content_words(run) & in_table]
    topics: list[str] = []
    for run in (*draw.shuffled("run", known), *draw.shuffled("run", [r for r in runs if r not in known])):
        words = run.split()
        cut = draw.unit(f"cut|{run}")
        # The head of a phrase comes last: `deferred tax assets` may leave open which `assets`.
        keep = len(words) if cut < 0.6 else 2 if cut < 0.8 else 1
        topics.append(" ".join(words[-keep:]))
    for label in draw.shuffled("label", sorted(set(labels))):
        topics += [lower_first(run) for run in _runs(label)[:1]]
    return [t for t in topics if re.search(r"[^\W\d_]{2}", t) and t.lower() not in _MODIFIERS]


def _runs(text: str) -> list[str]:
    """Stretches of up to five words that can name an item: no function words, measures or figures."""
    runs: list[list[str]] = [[]]
    for word in text.split():
        stripped = re.sub(r"^[^\w(]+|[^\w)]+$", "", word)
        names_item = bare(word) not in _MEASURES and re.search(r"[^\W\d_]", stripped)
        if not names_item or stripped.count("(") != stripped.count(")"):
            runs.append([])
            continue
        runs[-1].append(stripped)
        if stripped != word.lstrip("“\"'‘"):  # punctuation ends the stretch
            runs.append([])
    for run in runs:
        while run and re.search(r"(?<!e)ed$", run[-1]):  # `losses recognized` are losses
            run.pop()
    return [" ".join(run[-5:]) for run in runs if run]


# Answers: figures from the rows that the request names, arithmetic with them, or words from the passages.


@dataclass(frozen=True, slots=True)
class _Row:
    """A table row with figures. `scale` is what its figures count."""

    label: str
    figures: tuple[str, ...]
    scale: str


def _answers(turn: TurnState, draw: Draw) -> Iterator[str]:
    request = open_request(turn)
    rows = _rows_by_overlap(turn, request, draw)
    arithmetic = [*_arithmetic(request, rows, draw)]
    spans = [
        render([figure], "" if "%" in figure else row.scale, "span", "")
        for row in rows
        for figure in draw.shuffled(f"cell|{row.label}", sorted(set(row.figures)))
    ]
    several = []
    for row in rows:
        if len(row.figures) > 1:
            figures = list(row.figures[:3] if draw.unit(f"three|{row.label}") < 0.3 else row.figures[:2])
            several.append(render(figures, "" if "%" in "".join(figures) else row.scale, "multi-span", ""))
    asked = content_words(request)
    texts = {one_line(b.text) for b in turn.context if b.section != "table" and len(b.text.split()) > 3}
    rank = lambda t: (-len(asked & content_words(t)), draw.unit(f"sentence|{t}"), t)  # noqa: E731
    sentences = [render([text], "", "span", "") for text in sorted(texts, key=rank)]
    calculated = any(p.search(request) for p in (_AVERAGE, _CHANGE, _SHARE, _SUM))
    chance = draw.unit("answer")
    # Annotated shares among the goals of ambiguous requests: a third to a half arithmetic, a tenth several spans.
    if _WHICH_YEAR.search(request):
        heads = {cell for label, cells in _table(turn.context) for cell in (label, *cells) if not _figure(cell)}
        years = draw.shuffled("year", sorted({year for head in heads for year in _YEAR.findall(head)}))
        order = [years, spans, arithmetic, several]
    elif _WHY.search(request):
        order = [sentences, spans, arithmetic, several]
    elif chance < (0.9 if calculated else 0.1):
        order = [arithmetic, spans, several, sentences]
    elif chance < 0.25:
        order = [several, spans, arithmetic, sentences]
    else:
        order = [spans, arithmetic, several, sentences]
    for group in order:
        yield from group
    yield from ("not material", "not disclosed", "none")


def _table(context: Sequence[ContextBlock]) -> list[tuple[str, tuple[str, ...]]]:
    """Table rows as (first cell, other cells)."""
    rows = []
    for block in context:
        if block.section == "table":
            label, _, rest = f" {block.text}".partition(" : ")
            rows.append((label.strip(), tuple(one_line(cell) for cell in rest.split("|"))))
    return rows


# Longer ones are codes, and would not fit a Decimal's 28 digits once divided.
_FIGURE = re.compile(r"[($£€¥\s-]*(?P<number>\d[\d,]{0,14}(?:\.\d{1,4})?)\s*%?\s*\)?\s*%?")


def _figure(cell: str) -> bool:
    return bool(_FIGURE.fullmatch(cell)) and not _YEAR.fullmatch(cell)


def _rows_by_overlap(turn: TurnState, request: str, draw: Draw) -> list[_Row]:
    asked = content_words(request)
    scale = _scale(turn.context)
    rows = []
    for label, cells in _table(turn.context):
        figures = tuple(cell for cell in cells if _figure(cell))
        # A percentage among amounts is a column of its own (`Change`), not another value of the row's item.
        figures = tuple(f for f in figures if "%" not in f) or figures
        if figures:
            percent = "%" in label or "%" in figures[0]
            unscaled = percent or re.search(r"\bper\b|number of|rate\b", label, re.IGNORECASE)
            rows.append(_Row(label, figures, "percent" if percent else "" if unscaled else scale))

    def rank(row: _Row) -> tuple[float, float, float]:
        words = content_words(row.label)
        shared = len(asked & words)
        return -shared, -shared / max(1, len(words)), draw.unit(f"row|{row.label}")

    return sorted(rows, key=rank)


_SCALES = (
    ("thousand", re.compile(r"thousand|[’'‘`]000|\b000s\b", re.IGNORECASE)),
    ("million", re.compile(r"million|[$£€]\s?m\b|\bmn\b", re.IGNORECASE)),
    ("billion", re.compile(r"billion|[$£€]\s?bn\b", re.IGNORECASE)),
)
_STATED_SCALE = re.compile(r"\bin (?:[\w.$€£’]+ ){0,4}?(thousand|million|billion)s", re.IGNORECASE)


def _scale(context: Sequence[ContextBlock]) -> str:
    """The scale that a page states for its table: in the table, or as `in thousands` in the passages."""
    tables = (block.text for block in context if block.section == "table")
    in_table = (scale for text in tables for scale, pattern in _SCALES if pattern.search(text))
    stated = (_STATED_SCALE.search(block.text) for block in context if block.section != "table")
    return next(chain(in_table, (found[1].lower() for found in stated if found)), "")


def _arithmetic(request: str, rows: Sequence[_Row], draw: Draw) -> Iterator[str]:
    """Calculations with the figures of one row, or of one column of two rows: shown, and right."""
    average, change, share, total = (p.search(request) is not None for p in (_AVERAGE, _CHANGE, _SHARE, _SUM))
    space = " " if draw.unit("space") < 1 / 3 else ""  # as in the annotated calculations
    minus, plus, by = f"{space}-{space}", f"{space}+{space}", f"{space}/{space}"
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        if len(row.figures) < 2:
            continue
        a, b = _operand(row.figures[0]), _operand(row.figures[1])
        first = a.strip("()")
        unit = row.scale
        if average:
            yield _equation(f"({first}{plus}{b}){by}2", (_value(a) + _value(b)) / 2, unit)
        elif total:
            yield _equation(f"{first}{plus}{b}", _value(a) + _value(b), unit)
        elif change and (share or draw.unit(f"form|{row.label}") < 0.2) and _value(b):
            yield _equation(f"({first}{minus}{b}){by}{b}", (_value(a) - _value(b)) / _value(b) * 100, "percent")
        elif share and not change and other is not row and (d := _operand(other.figures[0])) and _value(d):
            percent = re.search(r"percent", request, re.IGNORECASE) is not None
            value = _value(a) / _value(d)
            yield _equation(f"{first}{by}{d}", value * 100 if percent else value, "percent" if percent else "")
        yield _equation(f"{first}{minus}{b}", _value(a) - _value(b), unit)


def _operand(figure: str) -> str:
    """A figure as the right operand: what a table writes `(1,204)` is negative, here `(-1,204)`."""
    number = _FIGURE.fullmatch(figure)
    assert number is not None
    negative = "(" in figure or "-" in figure
    return f"(-{number['number']})" if negative else number["number"]


def _value(operand: str) -> Decimal:
    return Decimal(operand.strip("()").replace(",", ""))


def _equation(left: str, value: Decimal, scale: str) -> str:
    rounded = value.quantize(Decimal("0.01"), ROUND_HALF_UP)
    whole = rounded == rounded.to_integral_value()
    return render(int(rounded) if whole else float(rounded), scale if scale in SCALE_NOTES else "", "arithmetic", left)
