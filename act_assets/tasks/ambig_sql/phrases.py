"""Reading a request to a database: how it begins, what it asks for, and of what.

    Find the names of       the singers      who are older than 20.
    lead     asked    link  population noun  rest

Nouns are known from the schema; where a noun or its end is not sure, nothing is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from act_assets.tasks.ambig_sql.strategy import QueryFacts
from act_assets.tasks.rules import words


@dataclass(frozen=True, slots=True)
class SchemaNames:
    """The natural names of a schema ("singer in concert").

    `columns` are those of all tables one after the other: a name that several tables have is there several times.
    """

    tables: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun phrase at the beginning of a text, and the text after it.

    "all the young singers who sing" is the determiner "all the", the modifiers "young", the head "singers" and the
    rest "who sing".
    """

    determiner: str
    modifiers: str
    head: str
    rest: str

    @property
    def plural(self) -> bool:
        last = self.head.split()[-1].lower()
        if last in EITHER_NUMBER:
            return self.determiner not in ("the", "a", "an", "each", "every")
        return is_plural(last)

    @property
    def phrase(self) -> str:
        """Modifiers and head."""
        return f"{self.modifiers} {self.head}".strip()


_IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child",
    "criteria": "criterion", "wives": "wife", "movies": "movie", "faculties": "faculty", "aircrafts": "aircraft",
    "staffs": "staff",
    "status": "status", "campus": "campus", "bus": "bus", "address": "address", "gas": "gas", "heroes": "hero",
    "statuses": "status", "campuses": "campus", "buses": "bus",
}  # fmt: skip
EITHER_NUMBER = words("aircraft faculty staff series species")


def stem(word: str) -> str:
    """A noun in the singular, in small letters."""
    word = word.lower().removesuffix("'s").removesuffix("'")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in EITHER_NUMBER or len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    return word.removesuffix("s")


def is_plural(noun: str) -> bool:
    """Whether the last word of a noun is a plural."""
    last = noun.split()[-1].lower()
    return stem(last) != last


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def stems(text: str) -> set[str]:
    """The stems of a text's words; names such as `Song_Title` and `cityName` are taken apart."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    return {stem(w) for w in re.findall(r"[A-Za-z]+(?:'s)?", text)}


_LINKING = words("a an and at by for from has have id in name number of on or the to type with")


def known_nouns(names: Iterable[str]) -> set[str]:
    """The stems that name things in a list of table or column names."""
    return set().union(*(stems(name) for name in names)) - _LINKING


AUXILIARY = words(
    "am are are not can cannot can't could did didn't do does doesn't don't had has have haven't hasn't is isn't "
    "must should was wasn't were weren't will"
)
_BOUNDARY = AUXILIARY | words(
    "above across after against aged along among at before below between born by containing costing due during first "
    "for from having heavier higher in including into larger less longer lower made more never no not of older on only "
    "out over priced produced shorter taller than that through to under using where which whichever who whom whose "
    "with within without younger available taught held built written sung won given taken sold paid ever both either "
    "neither all each when there we you"
)
_PLURAL_MODIFIERS = words("sales savings sports series express gas us previous various famous religious")
_ASKED = words(
    "addresses ages amounts averages codes counts dates descriptions details emails ids kinds names numbers phones "
    "points prices ranks sums titles totals types values years times percentages records"
)
_DETERMINER = (
    r"(?:all of the|all of these|all the|all those|all these|all of|each of the|every one of the|any of the|all|each|"
    r"every|any|the|these|those|this|that|a|an|some|both)"
)
_DISTINCT = words("different distinct unique")
_ATTRIBUTES = words("code id name number type")
_GENERIC = words("member members record records entries types kinds")
_NO_MODIFIER = _BOUNDARY | words(
    "and or but as also than well about regarding concerning list show give find return what how if it its their his"
)


def noun_phrase(text: str, nouns: set[str], *, before_verb: bool = False) -> Noun | None:
    """The noun phrase at the beginning of `text`, the head of which is one of `nouns`.

    It must end where the text does, before a word that begins something else or, with `before_verb`, before any word
    that is no noun of `nouns`.
    """
    match = re.match(rf"({_DETERMINER})\b\s*(?!$)", text, re.IGNORECASE)
    determiner = match.group(1).lower() if match else ""
    body = text[match.end() :] if match else text
    tokens = body.split()
    end = 0
    for i, token in enumerate(tokens[:6]):
        plain = re.sub(r"[,;:]$", "", token)
        if not re.fullmatch(r"[A-Za-z]+(?:-[A-Za-z]+)*", plain) or plain.lower() in _NO_MODIFIER:
            break
        if end and (plain.endswith("ed") or (before_verb and _closes(tokens[end - 1]))):
            break
        if stem(plain) in nouns or (end == i > 0 and (plain.lower() in _GENERIC or stem(plain) in _ATTRIBUTES)):
            end = i + 1
        elif end and before_verb:
            break
        if plain != token:
            break
    if not end:
        end = _unknown_noun(tokens)
    if not end:
        return None
    following = tokens[end] if end < len(tokens) else ""
    head_end = re.search(r"\W$", tokens[end - 1])
    named = determiner == "the" and not _closes(tokens[end - 1]) and following[:1].isupper()  # `the browser Safari`
    # After a comma comes more than a plain phrase.
    if following and (head_end or not (named or _begins_something(following, before_verb))):
        return None
    start = end - 1
    while (
        start > 0
        and (stem(tokens[start - 1]) in nouns | _ATTRIBUTES or tokens[start].lower() in _GENERIC)
        and not tokens[start - 1].lower().endswith("ed")
    ):
        start -= 1
    head = " ".join(tokens[start:end]).rstrip(",;:")
    modifiers = tokens[:start]
    if any(map(_closes, modifiers)):  # `students play games` begins with another noun
        return None
    return Noun(determiner, " ".join(modifiers), head, " ".join(tokens[end:]))


def _closes(word: str) -> bool:
    """A plural is the last of its phrase: in `patients stay` the second is a verb, whatever the schema calls `stay`."""
    return is_plural(word) and word.lower() not in _PLURAL_MODIFIERS


def _unknown_noun(tokens: list[str]) -> int:
    """Where a plural ends that the schema does not know: one word, and then what cannot belong to it."""
    if tokens and tokens[0].lower() in _DISTINCT:
        return 1 + _unknown_noun(tokens[1:]) if _unknown_noun(tokens[1:]) else 0
    if not tokens or not re.fullmatch(r"[A-Za-z][a-z]{3,}", tokens[0]):
        return 0
    if stem(tokens[0]) == tokens[0].lower() or tokens[0] in _ASKED:
        return 0
    following = tokens[1].lower() if len(tokens) > 1 else ""
    return 1 if not following or following in AUXILIARY | words("who that which whose with without in from") else 0


def _begins_something(word: str, before_verb: bool) -> bool:
    plain = word.lower().rstrip(",")
    participle = re.fullmatch(r"[a-z]{3,}(?:ed|ing)", plain) and plain not in ("building", "king")
    if participle or plain in _BOUNDARY or plain[0] in "\"'“‘":
        return True
    if stem(plain) in _ATTRIBUTES:
        return False
    # A plural noun would belong to the phrase (`faculty lines`), a verb after a plural has no `s`.
    return before_verb and re.fullmatch(r"[a-z]+(?<!s)", plain) is not None and plain not in _NO_MODIFIER


def plain_modifiers(noun: Noun) -> bool:
    """Whether the modifiers say at most that each is counted once."""
    return set(noun.modifiers.lower().split()) <= _DISTINCT


COUNTED = re.compile(r"\b(?:how many|count|number of)\b", re.IGNORECASE)

# How requests begin.

_SHOW = (
    r"(?:(?:can|could|would) you )?(?:please )?(?:find(?: out)?|list(?: out)?|show|give|return|display|select|report|"
    r"get|tell|retrieve|provide|print|compute|calculate|state)(?: me| us)?(?: a list of| the list of| about)?"
)
_ASK = r"(?:what|who|which|wat) (?:is|are|was|were)|what's"
LEAD = re.compile(rf"^(?P<lead>{_SHOW}|{_ASK})\b\s*", re.IGNORECASE)
_ALL_ABOUT = re.compile(
    rf"^(?P<lead>{_SHOW}|{_ASK}) (?P<asked>all (?:the )?(?:information|info|details)) "
    r"(?P<link>about|regarding|on|for|of) ",
    re.IGNORECASE,
)
COUNT = re.compile(rf"^(?:(?:{_SHOW}|{_ASK}|count) (?:the )?(?:total )?(?:number|count) of|count)\b\s*", re.IGNORECASE)
HOW_MANY = re.compile(rf"^(?:(?:{_SHOW} )?how many)\s+", re.IGNORECASE)
WHICH = re.compile(r"^(?:which|what)\s+(?!is\b|are\b|was\b|were\b)", re.IGNORECASE)
# After an `and` that is followed by one of these more is asked for than what the noun phrase began.
_MORE = re.compile(
    r"(?:\band|,|\bas well as|\balong with|\btogether with|\bplus|\bor)\s+(?:also\s+|then\s+|for each\s+)?"
    r"(?:the|their|its|his|her|what|how|show|list|find|return|give|count|which|when|where|sort|order|all|each|tell|"
    r"number|name|names|ids?|average|corresponding)\b"
    r"|\b(?:respective(?:ly)?|corresponding|their sex|as well as|along with|together with|for each|of each|per)\b",
    re.IGNORECASE,
)


def unquoted(text: str) -> str:
    return re.sub(r"\"[^\"]*\"|“[^”]*”|(?<!\w)'[^']*'(?!\w)|‘[^’]*’", "''", text)


@dataclass(frozen=True, slots=True)
class Reading:
    """A request taken apart. `form` says how:

    `asked`: `lead` asks for `asked` of the noun; `listed`: `lead` asks for the noun itself; `counted`: the number of
    the noun; `how many`, `which`: a question about the noun, whose rest begins with a verb. `extra` is a second
    sentence ("List their ids.").
    """

    form: str
    lead: str
    asked: str
    link: str
    noun: Noun
    extra: str = ""


def read(question: str, facts: QueryFacts, names: SchemaNames) -> Reading | None:
    """The reading of a request, or None where it is not sure or its noun a possessive. What follows the noun may be
    `broken`."""
    sentences = re.split(r"(?<=[?.!])\s+(?=[A-Z])", " ".join(question.split()))
    # Without the mark at the end, within quotes too.
    text, *others = (re.sub(r"[?.!](?=[\"”']$)", "", re.sub(r"[\s?.!]+$", "", s.strip())) for s in sentences)
    extra = " ".join(others)
    if len(others) > 1 or (extra and not re.match(_SHOW, extra, re.IGNORECASE)):
        return None
    tables = known_nouns((*names.tables, *facts.tables))
    # What `List the total revenue ...` lists is no revenue but a sum: the names of columns name what is listed only
    # where rows or their number are asked for.
    nouns = tables | (set() if facts.aggregates and not COUNTED.search(text) else known_nouns(facts.selected))
    reading = _read(text, tables or nouns, nouns)
    if reading is None or not _plain(reading.asked) or re.search("['’]", reading.noun.phrase):
        return None
    rest = unquoted(reading.noun.rest)
    if _MORE.search(rest) or re.search(r"[?;:]", rest):
        return None
    if reading.form in ("how many", "counted") and not facts.counts:
        return None  # a sum over a column, which is no number of things
    return replace(reading, extra=extra)


_LISTS_OF = re.compile(r"\b(?:of|for) (?:(?:all|the|each|every) )*([a-z]+(?: [a-z]+)?),? and\b|\bcorresponding\b")


def _read(text: str, tables: set[str], nouns: set[str]) -> Reading | None:
    if match := HOW_MANY.match(text):
        return _reading("how many", match.group(), noun_phrase(text[match.end() :], nouns, before_verb=True))
    if match := COUNT.match(text):
        return _reading("counted", match.group(), noun_phrase(text[match.end() :], nouns))
    if match := _ALL_ABOUT.match(text):
        noun = noun_phrase(text[match.end() :], tables)
        return _reading("asked", match.group("lead"), noun, match.group("asked"), match.group("link"))
    if match := LEAD.match(text):
        lead, body = match.group("lead"), text[match.end() :]
        noun = noun_phrase(body, nouns)
        if noun and not noun.rest.lower().startswith(("of ", "for ", "and ", "corresponding")):
            return _reading("listed", lead, noun)
        for link in re.finditer(r"\s(of|for|in|from|across|by)\s", body):
            asked = body[: link.start()]
            # `names of climbers and names` (of mountains) names what its own things are of
            owners = _LISTS_OF.findall(asked)
            if any(not owner or stem(owner.split()[-1]) in tables for owner in owners):
                return None
            if link.group(1) not in ("of", "for") and re.search(r"\b(?:of|for)\b", asked):
                return None  # rather of what came before: `the name of a player from Spain`
            if re.search(r"\b(?:number|amount|count)$", asked):
                continue  # `the average number of cities of all markets` is about the markets
            if noun := noun_phrase(body[link.end() :], tables):
                return _reading("asked", lead, noun, asked, link.group(1))
        return None
    if match := WHICH.match(text):
        return _reading("which", match.group(), noun_phrase(text[match.end() :], nouns, before_verb=True))
    return None


def _reading(form: str, lead: str, noun: Noun | None, asked: str = "", link: str = "") -> Reading | None:
    return Reading(form, lead.strip(), asked, link, noun) if noun else None


def _plain(asked: str) -> bool:
    """Whether `asked` is a list of things, without a clause of its own."""
    found = asked.lower().split()
    # `the title of the prerequisite class`; `the season, the player, and the name` (of the team)
    if re.search(r"\b(?:of|for) (?:the|an?) |\bthe\b.*,.*\bthe\b", asked, re.IGNORECASE):
        return False
    return len(found) <= 16 and not set(found) & (
        (AUXILIARY - {"not"}) | words("who that which whose whom how many with their its his her")
    )


_DISAGREES = re.compile(r"(?:who|that|which)\s+(?:has|does|is|was)\b|where ha(?:s|ve|d)\b", re.IGNORECASE)
_DISAGREES_SINGULAR = re.compile(r"(?:who|that|which)\s+(?:have|do|are|were)\b", re.IGNORECASE)
_STOPS_SHORT = re.compile(r"\b(?:who|that|which|with|of|and|or|the|by) ?$|\bwho with\b|^to\b", re.IGNORECASE)


def broken(noun: Noun) -> bool:
    """English that went wrong in the request itself: `students who has`, a clause or bracket that does not end."""
    disagrees = (_DISAGREES if noun.plural else _DISAGREES_SINGULAR).match(noun.rest)
    return bool(disagrees or _STOPS_SHORT.search(noun.rest)) or noun.rest.count("(") != noun.rest.count(")")


# What follows the noun of a `how many`.

THERE = re.compile(
    r"^(?:(?:are|is|were|was|exist)(?: there)?|do (?:we|you) have|does it have|are (?:recorded|listed|stored))"
    r"(?: in total| total| altogether| in the (?:database|list|record|records|system)| in all| listed| recorded)?$"
)
ARE_THERE = re.compile(r"^(?:are|is|were) there\b\s*")
END_THERE = re.compile(r"\s+(?:are|is|were) there(?: in total)?$|\s+(?:do|did) we have$|\s+exist$|\s+in total$")
NO_THAT = words(
    "above across after aged along among at before below between born by called containing costing from having in "
    "including into located made named older on over that under using which who whom whose with within without "
    "younger taller heavier longer larger working living for of to"
)
"""Words before which a relative clause needs no `that`."""


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
