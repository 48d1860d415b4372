"""The embedded provider: plays every role by rule, without a network or a key, and always the same way.

It answers from the typed subject of a request (`LLMRequest.context`), so that a run with it takes the path of a real
one: template -> request -> provider. It stands in for a language model where none is configured; it is no baseline.
The generator reads a turn's references only so as not to repeat them; the simulator never sees them.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, Conversation, TurnState
from act_assets.roles.base import (
    AnnotatorContext,
    ClassifierContext,
    GeneratorContext,
    IntentContext,
    SimulatorContext,
    one_line,
)
from act_assets.roles.intent import OPENING
from act_assets.tasks.pacific_answer import SCALE_NOTES, parse, render
from resources.llm.base import LLMRequest, LLMResponse, ProviderError

MODEL = "embedded-rules-1"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class EmbeddedProvider:
    """Rule-based answers for the roles; a request without one of their contexts is rejected."""

    name = "embedded"
    base_url = ""

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer by rule. Raises ProviderError('rejected') for a request it has no rule for."""
        if request.model != MODEL:
            raise _rejected(f"the embedded provider has one model, {MODEL!r}, not {request.model!r}")
        text = _answer(request.context)
        return LLMResponse(
            text=text,
            model=MODEL,
            prompt_tokens=sum(len(m.content.split()) for m in request.messages),
            output_tokens=len(text.split()),
        )

    def fingerprint(self, request: LLMRequest) -> str:
        """The subject of the request and the rules as they stand: answers depend on them, not on the messages."""
        return hashlib.sha256(f"{_rules()}\n{request.context!r}".encode("utf-8", "replace")).hexdigest()


@functools.cache
def _rules() -> str:
    """A hash of the source of the rules, so that an answer of older rules is not taken for one of these."""
    digest = hashlib.sha256()
    for module in (__name__, parse.__module__):
        digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    return digest.hexdigest()


def _answer(context: object) -> str:
    match context:
        case GeneratorContext(turn, action, seed):
            return _generate(turn, action, seed)
        case AnnotatorContext(turn):
            return _label(turn.response.text)
        case ClassifierContext(_, response):
            return _label(response)
        case IntentContext(conversation):
            return _summarize(conversation)
        case SimulatorContext():
            return _reply(context)
    raise _rejected(f"the embedded provider answers typed role requests only, not {type(context).__name__}")


def _rejected(message: str) -> ProviderError:
    return ProviderError("rejected", message, retryable=False)


# Annotator, classifier: a question asks.


def _asks(text: str) -> bool:
    return "?" in text


def _label(response: str) -> str:
    return CLARIFY.name if _asks(response) else ANSWER.name


# Intent summary: the clear requests of the turns that settle something. A turn that clarifies is skipped, for the
# turn that ends its trajectory carries the whole request.


def _summarize(conversation: Conversation) -> str:
    wanted = [one_line(t.clear_request) for t in conversation.turns if t.action != CLARIFY.name]
    return " ".join([OPENING, *(f"{i}. {request}" for i, request in enumerate(wanted, start=1))])


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


# Simulator: says what the wanted item adds to what the user has said since the request was opened.

_LOOSE_ENDS = _words(
    "a an and are as at between by for from had has have how in is it its of on or respective that the their to was "
    "were what when where which who why with"
)
_VERBS = _words("are did do does has have is was were")
_QUESTION_WORDS = _words("how what when where which who whom whose why")


def _reply(context: SimulatorContext) -> str:
    turn = context.turn
    items = intent_items(one_line(context.intent))
    if not items:
        raise _rejected(f"no numbered item in the intent {context.intent[:80]!r}")
    request = _open_request(turn)
    said = [request, *(u.text for u in context.utterances if u.speaker == "user")]
    return _added(" ".join(said), _wanted(turn, items, request))


def _wanted(turn: TurnState, items: Sequence[str], request: str) -> str:
    """The item that holds most of the request's words; among equals the one nearest to the request's place."""
    settled = sum(1 for m in turn.history[: turn.open_request] if m.role == "assistant" and not _asks(m.content))
    asked = _content_words(request)
    best = max(range(len(items)), key=lambda i: (len(asked & _content_words(items[i])), -abs(i - settled), -i))
    return items[best]


def _added(said: str, item: str) -> str:
    """The words of `item` that `said` lacks, in their order.

    The whole item where `said` lacks none of weight, or where the words would not read as a reply: `How about 2019?`
    is no request that a few words complete.
    """
    words = item.split()
    keys = [_bare(w) for w in words]
    heard = [_bare(w) for w in said.split()]
    matcher = difflib.SequenceMatcher(None, heard, keys, autojunk=False)
    if 2 * sum(block.size for block in matcher.get_matching_blocks()) < len(heard):
        return item
    parts: list[list[str]] = []
    for kind, _, _, start, stop in matcher.get_opcodes():
        if kind not in ("insert", "replace") or all(k in _LOOSE_ENDS for k in keys[start:stop]):
            continue
        if kind == "insert" and start and keys[start - 1] == keys[stop - 1]:
            start, stop = start - 1, stop - 1  # `sales [APAC in] 2017` is rather `sales [in APAC] in 2017`
        while keys[stop - 1] in _LOOSE_ENDS:
            stop -= 1
        if _QUESTION_WORDS & set(keys[start:stop]) or len(parts) == 2:
            return item
        # `What was the cost` is stated as `What the cost was`: a verb that moved is nothing new.
        moved = _VERBS & set(heard)
        parts.append([words[i] for i in range(start, stop) if keys[i] not in moved])
    text = " ".join(word for part in parts for word in part).strip("?.,;: ")
    if not text:
        return item
    return text if text.isdigit() else f"{text[0].upper()}{text[1:]}."


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word).lower() or word


# Generator: a response that takes the wanted action and is not the reference.


def _generate(turn: TurnState, action: str, seed: int) -> str:
    draw = _Draw(f"{turn.turn_id}|{seed}")
    if action == CLARIFY.name:
        candidates = _questions(turn, draw)
    elif action == ANSWER.name:
        candidates = _answers(turn, draw)
    else:
        raise _rejected(f"the embedded generator has rules for {CLARIFY.name} and {ANSWER.name}, not {action!r}")
    usable = (c for c in candidates if _label(c) == action)
    taken = {turn.response.text, turn.goal.text}
    readings = [parse(text) for text in taken]
    second_best = ""
    for candidate in usable:
        if candidate in taken:
            continue
        # A figure that only lacks its scale, or a longer way to the same number, is still the goal.
        if action == CLARIFY.name or not any(parse(candidate).answer == r.answer for r in readings):
            return candidate
        second_best = second_best or candidate
    return second_best


class _Draw:
    """Choices that depend on a key and a name alone, not on the process or the order of calls."""

    def __init__(self, key: str) -> None:
        self.key = key

    def unit(self, name: str) -> float:
        """A number in [0, 1)."""
        digest = hashlib.sha256(f"{self.key}|{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def shuffled(self, name: str, items: Sequence[str]) -> list[str]:
        return sorted(items, key=lambda item: (self.unit(f"{name}|{item}"), item))


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
_STOP_WORDS = _LOOSE_ENDS | _words(
    "about all also been be both can company company's could did do does during each if into many me more most much "
    "not our out over s some than them then there these they this those under up we whose would you"
)
# Words that say what to do with an item or when, not which item.
_MEASURES = _words(
    "april august average between change changes compared december decrease difference february first fiscal fourth fy "
    "higher highest increase january july june larger largest less lower lowest march month months november october "
    "percent percentage period portion proportion quarter quarters ratio respective respectively second september "
    "smallest sum third variance year years"
)
_MODIFIERS = _words("basic current diluted gross net other total")


def _content_words(text: str) -> set[str]:
    return {w for w in re.findall(r"[^\W_]+(?:[.'’,-][^\W_]+)*", text.lower()) if w not in _STOP_WORDS}


def _open_request(turn: TurnState) -> str:
    return " ".join(m.content for m in turn.history[turn.open_request :] if m.role == "user")


# Clarifying questions, in the form of the annotated ones, so that it gives nothing away: `Which ... are you asking
# about?` or `What kind of ... are you asking about?`.


def _questions(turn: TurnState, draw: _Draw) -> Iterator[str]:
    request = _open_request(turn)
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


def _topics(turn: TurnState, request: str, draw: _Draw) -> list[str]:
    """What a request may leave open: its own item words, those of the table's rows first; then rows at large."""
    labels = [one_line(label) for label, cells in _table(turn.context) if label and any(map(_figure, cells))]
    in_table = set().union(*(_content_words(label) for label in labels)) if labels else set()
    runs = _runs(request)
    known = [run for run in runs if _content_words(run) & in_table]
    topics: list[str] = []
    for run in (*draw.shuffled("run", known), *draw.shuffled("run", [r for r in runs if r not in known])):
        words = run.split()
        cut = draw.unit(f"cut|{run}")
        # The head of a phrase comes last: `deferred tax assets` may leave open which `assets`.
        keep = len(words) if cut < 0.6 else 2 if cut < 0.8 else 1
        topics.append(" ".join(words[-keep:]))
    for label in draw.shuffled("label", sorted(set(labels))):
        topics += [_lower_first(run) for run in _runs(label)[:1]]
    return [t for t in topics if re.search(r"[^\W\d_]{2}", t) and t.lower() not in _MODIFIERS]


def _runs(text: str) -> list[str]:
    """Stretches of up to five words that can name an item: no function words, measures or figures."""
    runs: list[list[str]] = [[]]
    for word in text.split():
        bare = re.sub(r"^[^\w(]+|[^\w)]+$", "", word)
        plain = _bare(word)
        if (
            plain in _STOP_WORDS
            or plain in _MEASURES
            or not re.search(r"[^\W\d_]", bare)
            or bare.count("(") != bare.count(")")
        ):
            runs.append([])
            continue
        runs[-1].append(bare)
        if bare != word.lstrip("“\"'‘"):  # punctuation ends the stretch
            runs.append([])
    for run in runs:
        while run and re.search(r"(?<!e)ed$", run[-1]):  # `losses recognized` are losses
            run.pop()
    return [" ".join(run[-5:]) for run in runs if run]


def _lower_first(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


# Answers: figures from the rows that the request names, arithmetic with them, or words from the passages.


@dataclass(frozen=True, slots=True)
class _Row:
    """A table row with figures. `scale` is what its figures count."""

    label: str
    figures: tuple[str, ...]
    scale: str


def _answers(turn: TurnState, draw: _Draw) -> Iterator[str]:
    request = _open_request(turn)
    rows = _rows_by_overlap(turn, request, draw)
    arithmetic = [*_arithmetic(request, rows, draw)]
    spans = [*_spans(rows, draw)]
    several = [*_several(rows, draw)]
    sentences = _sentences(turn.context, request, draw)
    calculated = any(p.search(request) for p in (_AVERAGE, _CHANGE, _SHARE, _SUM))
    chance = draw.unit("answer")
    # Annotated shares among the goals of ambiguous requests: a third to a half arithmetic, a tenth several spans.
    if _WHICH_YEAR.search(request):
        order = [_years(turn.context, draw), spans, arithmetic, several]
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


def _rows_by_overlap(turn: TurnState, request: str, draw: _Draw) -> list[_Row]:
    asked = _content_words(request)
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
        words = _content_words(row.label)
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
    for block in context:
        if block.section == "table":
            for scale, pattern in _SCALES:
                if pattern.search(block.text):
                    return scale
    for block in context:
        if block.section != "table" and (stated := _STATED_SCALE.search(block.text)):
            return stated.group(1).lower()
    return ""


def _years(context: Sequence[ContextBlock], draw: _Draw) -> list[str]:
    """The years that head the table's columns."""
    cells = {cell for label, cells in _table(context) for cell in (label, *cells)}
    years = sorted({year for cell in cells if not _figure(cell) for year in _YEAR.findall(cell)})
    return draw.shuffled("year", years)


def _spans(rows: Sequence[_Row], draw: _Draw) -> Iterator[str]:
    for row in rows:
        for figure in draw.shuffled(f"cell|{row.label}", sorted(set(row.figures))):
            yield render([figure], "" if "%" in figure else row.scale, "span", "")


def _several(rows: Sequence[_Row], draw: _Draw) -> Iterator[str]:
    for row in rows:
        if len(row.figures) > 1:
            figures = list(row.figures[:3] if draw.unit(f"three|{row.label}") < 0.3 else row.figures[:2])
            yield render(figures, "" if "%" in "".join(figures) else row.scale, "multi-span", "")


def _arithmetic(request: str, rows: Sequence[_Row], draw: _Draw) -> Iterator[str]:
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


def _sentences(context: Sequence[ContextBlock], request: str, draw: _Draw) -> list[str]:
    """Sentences of the passages, most words shared with the request first."""
    asked = _content_words(request)
    texts = {one_line(b.text) for b in context if b.section != "table" and len(b.text.split()) > 3}
    ranked = sorted(texts, key=lambda t: (-len(asked & _content_words(t)), draw.unit(f"sentence|{t}"), t))
    return [render([text], "", "span", "") for text in ranked]
