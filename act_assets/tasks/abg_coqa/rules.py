"""The embedded provider's rules for Abg-CoQA: clarifying questions in the annotated manner, spans of the story.

The generator reads a turn's references only so as not to repeat them. The user is played from the intent alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from act_assets.conversation import ANSWER, CLARIFY, TurnState, Utterance
from act_assets.tasks.rules import (
    QUESTION_WORDS,
    STOP_WORDS,
    Draw,
    Rules,
    bare,
    content_words,
    intent_items,
    lower_first,
    one_line,
    open_request,
    wanted,
    words,
)


class AbgCoqaRules(Rules):
    """A response that takes the wanted action and is not the reference; the user of one reading."""

    def generate(self, turn: TurnState, action: str, seed: int) -> str | None:
        draw = Draw(f"{turn.turn_id}|{seed}")
        if action == CLARIFY.name:
            return next((q for q in _questions(turn, draw) if _new(q, turn)), None)
        if action == ANSWER.name:
            return next((a for a in _answers(turn, draw) if "?" not in a and _new(a, turn)), None)
        return None

    def reply(self, turn: TurnState, intent: str, utterances: Sequence[Utterance]) -> str | None:
        """What the wanted item adds to the request, said as a statement: the policy's question is not the annotated
        one, to which the annotated reply may be a mere `Yes`."""
        items = intent_items(one_line(intent))
        if not items:
            return None
        request = one_line(open_request(turn))
        item = wanted(turn, items, request)
        parts = clarified_parts(item, request)
        if parts is None:
            return item if item in (request, ended(request, "?")) else super().reply(turn, intent, utterances)
        text = _statement(*parts)
        said = {u.text for u in utterances if u.speaker == "user"}
        return f"{ended(request, '?')} {text}" if text in said else text


# A clear request is the request, the clarifying question and the reply, one after another.


def clear_request(request: str, question: str, reply: str) -> str:
    """`What did they remove? Do you mean before heading for the path? Yes.`"""
    return f"{ended(request, '?')} {ended(question, '?')} {ended(reply, '.')}"


def clarified_parts(text: str, request: str) -> tuple[str, str] | None:
    """(clarifying question, reply) of a clear request; None where it has another form."""
    start = ended(request, "?") + " "
    if not text.startswith(start):
        return None
    rest = text[len(start) :]
    question, mark, reply = rest.partition("? ")
    if not mark:  # a question may be annotated without its mark
        question, mark, reply = rest.partition(". ")
    return (question + mark.strip(), reply) if reply.strip() else None


def ended(text: str, end: str) -> str:
    """A text with something that ends it."""
    return text if re.search(r"[.?!][\"'”’)]*$", text) else text + end


_ASKED = (
    (re.compile(r"^(?:.*\b)?do you mean\s+", re.IGNORECASE), "I mean", "I do not mean"),
    (re.compile(r"^do you want to know\s+", re.IGNORECASE), "I want to know", "I do not want to know"),
    (re.compile(r"^(?:.*\b)?are you (?=asking|talking|referring)", re.IGNORECASE), "I am", "I am not"),
)


def _statement(question: str, reply: str) -> str:
    """A reply that can be understood without its question."""
    agrees = re.match(r"yes\b", reply, re.IGNORECASE)
    rest = re.sub(r"^(?:yes|no)\b[\s,.:;!]*", "", reply, flags=re.IGNORECASE)
    if agrees or not rest:
        for pattern, yes, no in _ASKED:
            if found := pattern.match(question):
                return f"{yes if agrees else no} {question[found.end() :].rstrip(' ?.')}."
        return reply if rest else f"{reply} {question}"
    return ended(rest[:1].upper() + rest[1:], ".")


# Clarifying questions. The annotated ones begin `Do you mean` 7 times of 10 and `Are you asking` once; they restate
# the request with a word made plain, name someone or something, or ask when, each about a third; every fifth offers
# two things.

_PRONOUN = re.compile(
    r"\b(?:he|she|it|they|him|them|his|her|their|its|(?:that|this|these|those)(?=\W*$))\b", re.IGNORECASE
)
_POSSESSIVE = words("his her their its")
_PEOPLE = words("he she they him them his her their who whom whose")
_PLACES = words("in at on to from near behind under inside outside into through by over above along")
_AUXILIARIES = words("is are was were do did does has have had can could will would should may might")
# A story's words that name nothing when they follow an article.
_NO_THINGS = STOP_WORDS | words(
    "again another away back even ever every few first good great had just last later less little long made much never "
    "new next no now often old once one only other others own quite really rest same second several she so soon still "
    "such said says too two upon us until very wake way well while will yet i he his her their my your our i'm i've "
    "i'll became began brought came fell felt found gave got had held kept knew led left lost made met put ran sat saw "
    "sent stood then thought told took went won wrote"
)


def _questions(turn: TurnState, draw: Draw) -> Iterator[str]:
    request = re.sub(r"^(?:and|but|so|then)\b[\s,]*", "", one_line(open_request(turn)), flags=re.IGNORECASE)
    sentences = _ranked(turn, draw)
    names = draw.shuffled("name", _names(turn))
    things = draw.shuffled("thing", _things(sentences[:6]))
    plain = _plain(request, names, things, draw)
    either = draw.unit("either") < 0.25
    restated = [f"{a} or {b}" for a, b in pairwise(plain)][:1] if either else []
    offered = [f"{a} or {b}" for a, b in (*pairwise(names), *pairwise(things))][:1] if either else []
    mean = [f"Do you mean {p}?" for p in (*restated, *plain)]
    named = [f"Do you mean {x}?" for x in (*offered, *_mixed(names, things, draw))]
    opening = draw.shuffled("opening", ("after", "before", "when", "before or after"))[0]
    clauses = draw.shuffled("clause", [c for s in sentences[:8] if (c := _clause(s))])
    when = [*(f"Do you mean {opening} {clause}?" for clause in clauses), *draw.shuffled("end", _ENDINGS)]
    topics = [*offered, *_mixed(things, names, draw)]
    asks = "Do you want to know" if draw.unit("asks") < 0.2 else "Are you asking"
    asking = [f"{asks} {p}?" for p in plain if p.split()[0].lower() in QUESTION_WORDS]
    asking += [f"{draw.shuffled('about', _ABOUT)[0]} {x}?" for x in topics]
    pronoun = next((m.group().lower() for m in _PRONOUN.finditer(request)), "")
    by = draw.shuffled("by", ("by", "with"))[0] if pronoun in _PEOPLE else ""
    meant = f'Who are you referring to {by} "{pronoun}"?' if by else f'What do you mean by "{pronoun}"?'
    asked = next((w for w in map(bare, request.split()) if w in QUESTION_WORDS), "")
    openings = draw.shuffled("short", ("When", "Where", "Who", "After what", "What are you referring to"))
    short = [*([meant] if pronoun else []), *(f"{word}?" for word in openings if word.lower() != asked)]
    orders = (
        (0.30, [mean, named, when]),
        (0.54, [named, when, mean]),
        (0.73, [when, mean, named]),
        (0.91, [asking, mean, named]),
        (1.00, [short, mean, named]),
    )
    chance = draw.unit("question")
    for group in (*next(order for most, order in orders if chance < most), when, short):
        yield from group
    yield "Do you mean at the beginning of the story or at the end?"


_ENDINGS = (
    "Do you mean at the beginning of the story?",
    "Do you mean at the end of the story?",
    "Do you mean at the beginning or at the end?",
)
_ABOUT = ("Are you asking about", "Are you asking about", "Are you referring to", "Are you talking about")


def _plain(request: str, names: Sequence[str], things: Sequence[str], draw: Draw) -> list[str]:
    """The request with its pronoun replaced: `what did Kacey see`."""
    pronouns = [m for m in _PRONOUN.finditer(request) if m.start()]
    if not pronouns:
        return []
    found = pronouns[0]
    pronoun = found.group().lower()
    others = [*names, *things] if pronoun in _PEOPLE else _mixed(things, names, draw)
    body = request.rstrip(" ?.!")
    start, stop = found.span()
    tail = "'s" if pronoun in _POSSESSIVE and stop < len(body) else ""
    return [lower_first(f"{body[:start]}{x}{tail}{body[stop:]}") for x in others]


def _mixed(one: Sequence[str], other: Sequence[str], draw: Draw) -> list[str]:
    """Both lists, the first one's items three times of four where both have some."""
    first, second = (one, other) if draw.unit("mixed") < 0.75 else (other, one)
    return [*first[:3], *second[:3], *first[3:], *second[3:]]


_CLAUSE = re.compile(
    r"(?P<subject>(?:He|She|They|It|The \w+|[A-Z][a-z]+)) (?P<verb>\w+(?:ed|id|ent|aw|as|ook|ame|ound))\b"
)


def _clause(sentence: str) -> str:
    """The beginning of a sentence that says what happened, as a subordinate clause of 3 to 9 words."""
    found = _CLAUSE.match(sentence)
    pronoun = found is not None and bare(found["subject"]) in _PEOPLE | {"it"}
    if not found or (not pronoun and bare(found["subject"]) in _NO_THINGS) or re.search(r"[\"“”?!]", sentence):
        return ""
    clause = re.split(r"[,;:.()—]|--| (?:and|but|who|which|because|so|while|when|as|that) ", sentence)[0].split()[:9]
    while clause and (bare(clause[-1]) in STOP_WORDS | _POSSESSIVE or clause[-1].endswith(("'s", "’s"))):
        clause.pop()
    text = " ".join(clause)
    common = pronoun or found["subject"].startswith("The ")  # only a name keeps its capital
    return "" if len(clause) < 3 else lower_first(text) if common else text


# Answers: names, times, numbers, places or things near the words of the request, as short as the annotated ones.

_NUMBER = words("two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand")
_FIGURE = re.compile(
    rf"(?<!\w)[$£€]?\d(?:[\d,.]*\d)?(?!\w)(?: (?:million|billion|percent))?|\b(?:{'|'.join(sorted(_NUMBER))})\b",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?:\b(?:in|on|by|until|since|around|about|last|next|every|that|this|the|one) )?"
    r"\b(?:(?:January|February|March|April|May|June|July|August|September|October|November|December)(?: \d{1,4})?"
    r"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:1[5-9]\d\d|20\d\d)s?\b"
    r"|(?:morning|afternoon|evening|night|weekend|spring|summer|autumn|winter)\b"
    rf"|(?:\d+|a few|several|{'|'.join(sorted(_NUMBER))}) (?:days|weeks|months|years|hours|minutes)(?: (?:ago|later))?)"
)
_PLACE = re.compile(
    rf"\b(?:{'|'.join(sorted(_PLACES))}) (?:(?:the|a|an|his|her|their|my|our) (?:\w+ )?[a-z]\w+|[A-Z]\w+(?: [A-Z]\w+)*)"
)
_REASON = re.compile(r"\b(?:because|so that|in order to|since|to|for) \w[^.,;:!?\"“”]{4,60}\b", re.IGNORECASE)
_QUANTITY = re.compile(
    r"\bhow (?:many|much|old|far|tall|big|high|large)\b|\bwhat (?:number|percent|age)", re.IGNORECASE
)
_WHEN = re.compile(r"\bwhen\b|\b(?:what|which) (?:time|day|year|month|date)\b|\bhow long\b", re.IGNORECASE)


def _answers(turn: TurnState, draw: Draw) -> Iterator[str]:
    request = one_line(open_request(turn)).lower()
    sentences = _ranked(turn, draw)
    names = [n for s in sentences for n in draw.shuffled("name", [n for n in _names(turn) if n in s])]
    things = [t for s in sentences for t in draw.shuffled("thing", _things([s]))]
    first = next(iter(map(bare, re.sub(r"^(?:and|but|so)\b", "", request).split())), "")
    if first in _AUXILIARIES:
        groups = [draw.shuffled("yes", ("yes", "no")), things, names]
    elif _QUANTITY.search(request):
        groups = [_matches(_FIGURE, sentences), things]
    elif _WHEN.search(request):
        groups = [_matches(_TIME, sentences), [c for s in sentences if (c := _clause(s))]]
    elif re.search(r"\bwhere\b", request):
        groups = [[_short_of(p) for p in _matches(_PLACE, sentences)], names]
    elif re.search(r"\bwh(?:o|om|ose)\b|\bname\b", request):
        groups = [names, things]
    elif re.search(r"\bwhy\b|\bhow\b", request):
        groups = [[_short_of(r) for r in _matches(_REASON, sentences)], things]
    else:
        groups = [_mixed(things, names, draw)]
    chance = draw.unit("written")  # as annotated: every ninth answer is a sentence, every seventh has a capital besides
    for group in (*groups, things, names, [_short_of(s) for s in sentences], ("yes", "no", "unknown")):
        for answer in group:
            text = answer.strip(" ,;:.-—'\"“”‘’()")
            yield f"{text[:1].upper()}{text[1:]}{'.' if chance < 0.11 else ''}" if chance < 0.25 else text


def _matches(pattern: re.Pattern[str], sentences: Sequence[str]) -> list[str]:
    return [m.group() for s in sentences for m in pattern.finditer(s)]


def _short_of(text: str) -> str:
    """The first words of a text, up to eight, that do not end in the middle of a phrase."""
    cut = re.split(r"[,;:.?!\"“”—]", text.lstrip("\"“‘'"))[0].split()[:8]
    while cut and bare(cut[-1]) in STOP_WORDS:
        cut.pop()
    return " ".join(cut)


def _new(text: str, turn: TurnState) -> bool:
    """Whether a text says something else than the response and the goal: an answer holds neither all of their words
    nor only them, a question does not tell the answer."""
    said = _key(text)
    if not said:
        return False
    golds = [t for r in (turn.response, turn.goal) for t in (r.text, *r.alternatives)]
    answers = [_key(t) for t in golds if "?" not in t and _key(t)]
    if "?" in text:
        told = (a for a in answers if a not in ("yes", "no"))
        return said not in map(_key, golds) and not any(f" {a} " in f" {said} " for a in told)
    mine = set(said.split())
    return not any(mine <= gold or gold <= mine for gold in (set(a.split()) for a in answers))


def _key(text: str) -> str:
    return " ".join(w for w in re.findall(r"[^\W_]+", text.lower()) if w not in ("a", "an", "the"))


def _ranked(turn: TurnState, draw: Draw) -> list[str]:
    """The story's sentences, those that share most words with the request and the exchange before it first."""
    asked = content_words(open_request(turn))
    before = content_words(" ".join(m.content for m in turn.history[max(0, turn.open_request - 2) : turn.open_request]))

    def rank(text: str) -> tuple[float, float]:
        own = content_words(text)
        return -(len(asked & own) + 0.5 * len(before & own)), draw.unit(f"sentence|{text}")

    return sorted(dict.fromkeys(b.text for b in turn.context), key=rank)


_CAPITALISED = r"[A-Z][\w’'-]*[^\W\d_](?!\w)"
_NAME = re.compile(rf"{_CAPITALISED}(?: (?:of (?:the )?)?{_CAPITALISED})*")


def _names(turn: TurnState) -> list[str]:
    """Stretches of capitalised words. A word at the head of a sentence counts where it stands elsewhere too."""
    inside: list[str] = []
    heads: list[str] = []
    for block in turn.context:
        for found in _NAME.finditer(block.text):
            at_head = not re.search(r"[\w,;] $", block.text[: found.start()])
            name = re.sub(r"[’']s?$", "", found.group())
            if re.sub(r"[’'].*", "", bare(name.split()[0])) in _NO_THINGS | QUESTION_WORDS:
                name = name.partition(" ")[2]
            shouted = name.isupper() and (len(name) > 4 or set(name) <= set("IVXL"))
            if len(name) > 2 and not shouted and not _TIME.fullmatch(name):
                (heads if at_head else inside).append(name)
    known = {w for n in inside for w in n.split()}
    return list(dict.fromkeys([*inside, *(n for n in heads if set(n.split()) <= known)]))


_THING = re.compile(
    r"\b(?P<article>the|a|an|his|her|their|its) (?P<words>[a-z][\w-]*(?: [a-z][\w-]*)?)(?![\w-]| [A-Z\d])"
)
# What ends like this is mostly no noun; where one is mistaken nothing is lost but style.
_ENDS = re.compile(r"(?:ed|ing|ly|ould|ous|ile|ful)$")


def _things(sentences: Sequence[str]) -> list[str]:
    """Noun phrases after an article: `the control center`, `her mother`."""
    found = []
    for sentence in sentences:
        for match in _THING.finditer(sentence):
            phrase: list[str] = []
            for word in match["words"].split():
                if word in _NO_THINGS or word in _AUXILIARIES or (_ENDS.search(word) and phrase):
                    break
                phrase.append(word)
            if phrase and not _ENDS.search(phrase[-1]) and len(phrase[-1]) > 2:
                article = "the" if match["article"] in ("a", "an") else match["article"]
                found.append(f"{article} {' '.join(phrase)}")
    return list(dict.fromkeys(found))
