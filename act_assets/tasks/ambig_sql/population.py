"""Masking whom or what a request is about: `How many are there?`, `List the names of the ones with id 3.`

What restricts the population stays only where it does not give the population away: of the tables of a database often
one alone has players, prices or a stay in a hospital. Elsewhere the restrictions go with the noun.
"""

from __future__ import annotations

import re
from dataclasses import replace

from act_assets.tasks.ambig_sql.phrases import (
    ARE_THERE,
    END_THERE,
    LEAD,
    NO_THAT,
    THERE,
    Noun,
    Reading,
    SchemaNames,
    broken,
    capital,
    known_nouns,
    plain_modifiers,
    read,
    stem,
    stems,
    unquoted,
)
from act_assets.tasks.ambig_sql.strategy import Perturbed, QueryFacts
from act_assets.tasks.rules import STOP_WORDS, Draw, words


def mask_population(question: str, facts: QueryFacts, names: SchemaNames, draw: Draw) -> Perturbed | None:
    """The twin of a request in which whom or what it is about is left open; None where no rule is sure."""
    if len(names.tables) < 2:
        return None
    if twin := _mask_owner(question, facts, names, draw):
        return twin
    reading = read(question, facts, names)
    if reading is None:
        return None
    noun = reading.noun
    # `documents with document type code 3` names the documents twice, the second time for nothing
    owner = rf"\b{re.escape(stem(noun.head.split()[-1]))} (?=(?:code|id|name|number|type)\b)"
    reading = replace(reading, noun=replace(noun, rest=re.sub(owner, "", noun.rest)))
    starts_with_of = re.match(r"(?:of|for)\b", noun.rest, re.IGNORECASE)
    kept = _tells_nothing(reading.noun, names) and not broken(noun) and not starts_with_of
    request = _open(_with_restrictions(reading), reading, facts, names) if kept else None
    if request is None:
        kept = not noun.rest and plain_modifiers(noun)
        request = _open(_without_restrictions(reading, draw), reading, facts, names)
    return Perturbed(request, _question(reading, request, kept, draw)) if request else None


def _open(text: str | None, reading: Reading, facts: QueryFacts, names: SchemaNames) -> str | None:
    """`text` as a request, where it does leave the population open."""
    if text is None:
        return None
    extra = without(reading.extra, reading.noun) or ""
    sentences = [text] if extra in ("", text) else [text, extra]
    if reading.extra and not extra:
        return None
    request = " ".join(
        capital(s) + ("?" if re.match(r"(?:how|which|what|who|wat)\b", s, re.IGNORECASE) else ".") for s in sentences
    )
    masked = {stem(w) for w in reading.noun.head.split()}
    told = any(s == m or (s.startswith(m) and len(m) > 3) for s in stems(request) for m in masked)
    if told or re.search(r"\b(?:it|itself)\b|[A-Za-z]_[A-Za-z]| \.", request):
        return None
    asked = " ".join(without(text, reading.noun) or "" for text in (reading.asked, reading.extra))
    return request if _shared(asked, names) and _fits_several(request, masked, facts, names) else None


# Whether restrictions give the population away

_PALE = STOP_WORDS | words(
    "named called name contain contains containing start starts starting begin begins beginning end ends ending with "
    "letter word substring string equal less more than above below between over under greater smaller higher lower "
    "larger longer shorter value either not no contain include includes including first last one two"
)
_PLACES = words("address city country county location place region state town")
_PLACED = words("live lives living located from in at")


def _tells_nothing(noun: Noun, names: SchemaNames) -> bool:
    """Whether the restrictions name only columns that several tables have, if any."""
    if not plain_modifiers(noun):
        return False
    if not noun.rest or THERE.match(noun.rest.lower()):
        return True
    columns = [stems(name) for name in names.columns]
    several = {w for column in columns for w in column if sum(w in other for other in columns) > 1}
    plain = re.sub(r"\b(?!(?:Which|Who)\b)[A-Z]\S*|\S*\d\S*", " ", unquoted(noun.rest))
    said = {stem(w) for w in re.findall(r"[A-Za-z]+", plain)} - {stem(w) for w in _PALE}
    if said & known_nouns(names.tables):
        return False
    placed = said & _PLACED or {w.lower() for w in plain.split()} & _PLACED
    in_places = bool(placed) and sum(bool(column & _PLACES) for column in columns) > 1
    rest = said - several - _PLACED
    named = not placed and stems(plain) & (several | words("name id named called"))
    return not rest and bool(in_places or named)


def _shared(asked: str, names: SchemaNames) -> bool:
    """Whether every column that `asked` names by its natural name is, word by word, one of several columns.

    Of several columns at once (`names and buildings`) no more is known than whether each is there twice; only names and
    ids are taken to come together in more than one table.
    """
    said = stems(asked)
    if re.search(r",|\band\b", asked) and not said - _TOGETHER <= STOP_WORDS:
        return False
    schema = [stems(name) for name in names.columns]
    for column in schema:
        told = column - _TOLD_NOTHING
        if told and told <= said and sum(column <= other for other in schema) < 2:
            return False
    # `fname` and `stuid` hold a name and an id. A word of no column (`longitude` for `long`) tells nobody knows what.
    ended = {word: sum(any(w.endswith(word) for w in column) for column in schema) for word in said}
    return all(ended[word] != 1 and (ended[word] or word in _SAID) for word in said - STOP_WORDS)


_TOGETHER = words("name names id ids first last full find list show give tell return me")
_SAID = _TOGETHER | words(
    "all average count date description detail different display distinct information maximum mean minimum number "
    "report select sum title total type"
)
_TOLD_NOTHING = words("a and by code date detail description id name number of or the title type")


def _fits_several(request: str, masked: set[str], facts: QueryFacts, names: SchemaNames) -> bool:
    """Whether what the request still names belongs to more than one table, as far as column names tell.

    A column of the masked table of which the request holds words must not be the schema's only one with these words.
    """
    said = stems(request)
    schema = [stems(name) for name in names.columns]
    own = {table for table in facts.tables if known_nouns([table]) & masked}
    for table, column in facts.columns:
        # Columns of other tables say what the masked one is related to, not what it is.
        if table and table not in own and (own or column not in facts.selected):
            continue
        if re.search(r"(?:^|_|[a-z])ids?$", column, re.IGNORECASE):
            continue  # a key is named after what it points to
        held = known_nouns([column]) & said
        if held and sum(held <= other for other in schema) < 2:
            return False
    return True


# Requests that keep the restrictions


def _with_restrictions(reading: Reading) -> str | None:
    noun = reading.noun
    if reading.form == "how many":
        return _how_many(noun) if noun.plural else None
    if reading.form == "which":
        if noun.determiner or re.match(r"(?:is|are|was|were) the\b|$", noun.rest):
            return None
        one = "ones" if noun.plural else "one"
        return None if noun.rest.split()[0].lower() in NO_THAT else f"Which {one} {noun.rest}"
    if reading.form == "counted":
        counted = replace(noun, rest=re.sub(r"^(?:in total|there are)$", "", noun.rest))
        return f"Count {_ones(counted)}" if noun.plural else None
    if reading.form == "listed":
        lead = reading.lead if noun.rest or "what" not in reading.lead.lower() else "List"
        lead = re.sub(r"(?i)^who (?:are|were)", "List", lead)
        told = re.match(r"(?:who|that|which|whose|where|with)\b", noun.rest) and noun.determiner == "the"
        return f"{lead} {_ones(noun)}" if noun.plural or told else None
    asked = without(reading.asked, noun)
    # `the names of the dorm`: whether it is one or several is not sure
    if asked is None or (not noun.plural and re.search(r"\b(?:names|ids|titles)\b", asked)):
        return None
    return f"{_agreeing(reading.lead, asked)} {asked} {reading.link} {_ones(noun)}"


def _ones(noun: Noun) -> str:
    """What stands for the noun, with its restrictions: `the ones who sing`, `all of them`."""
    rest = f"called {noun.rest}" if re.match("[A-Z\"'“‘]", noun.rest) else noun.rest
    rest = re.sub(r"^who\b", "that", rest)  # `who` would say that it is about people
    if not rest:
        return "each of them" if noun.determiner in ("each", "every") else "all of them" if noun.plural else "it"
    if noun.determiner in ("each", "every"):
        return f"each one {rest}"
    return f"{'all the ' if noun.determiner.startswith('all') else 'the '}{'ones' if noun.plural else 'one'} {rest}"


def _how_many(noun: Noun) -> str | None:
    rest = noun.rest
    if not rest or rest in ("in total", "total"):
        return "How many are there"
    if THERE.match(rest.lower()):
        return f"How many {rest if rest.lower().startswith(('are', 'do', 'were')) else 'are there'}"
    first = rest.split()[0].lower()
    if first in NO_THAT or first in ("named", "called"):
        return f"How many ones {rest}" if END_THERE.search(rest) else None
    if ARE_THERE.match(rest):
        return f"How many {rest}"
    if re.match(r"(?:is|are|was|were) the\b", rest) or re.search(r"\b(?:from|in|at|to|on|for|with|by|of)$", rest):
        return None  # `How many countries are the climbers from`
    if first in ("do", "does", "did") and rest.split()[1:2] != ["not"]:
        return None if rest.endswith((" has", " had", " took")) else f"How many {rest}"  # `does the course has`
    return f"How many of them {rest}"


def _agreeing(lead: str, asked: str) -> str:
    """`What are` with one thing that is asked for is `What is`."""
    single = r"(?:the )?(?:(?!and\b|all\b)[a-z]+ )*(?:name|id|title|date|type|number)"
    return "What is" if lead.lower() == "what are" and re.fullmatch(single, asked, re.IGNORECASE) else lead


def without(text: str, noun: Noun) -> str | None:
    """`student ids` as `ids` where the noun is students, and without `of the students` at its end."""
    head = stem(noun.head.split()[-1])
    text = re.sub(rf"\s+(?:of|for) (?:the|these|those|all) {re.escape(noun.head)}$", "", text, flags=re.IGNORECASE)
    found = text.split()
    kept = [
        word
        for i, word in enumerate(found)
        if not (stem(word) == head and i + 1 < len(found) and found[i + 1].lower() not in ("and", "or", "of", "with"))
    ]
    return " ".join(kept) if kept and head not in {stem(w.rstrip(",")) for w in kept} else None


# Requests that lose them

_COUNTS = ("How many are there", "How many do we have", "How many of them are there", "How many do you have on record")


def _without_restrictions(reading: Reading, draw: Draw) -> str | None:
    noun = reading.noun
    if reading.form == "how many":
        return draw.shuffled("count", _COUNTS)[0]
    if reading.form == "counted":
        return "Count all of them" if draw.unit("count") < 0.5 else draw.shuffled("count", _COUNTS)[0]
    if reading.form == "which":
        return without(reading.extra, noun)
    if reading.form == "listed":
        lead = reading.lead if re.match(r"[flsgrd]", reading.lead, re.IGNORECASE) else "List"
        return f"{lead} all of them" if noun.plural else None
    asked = without(reading.asked, noun)
    if asked is None or (not noun.plural and re.search(r"\b(?:names|ids|titles)\b", asked)):
        return None
    lead = _agreeing(reading.lead, asked)
    if lead.lower() == "what is" and re.fullmatch(r"(?:the )?(?:[a-z]+ )*[a-z]+(?<!s)s", asked, re.IGNORECASE):
        return None  # `What is ids`
    several = noun.plural and re.search(r"s\b", asked) and draw.unit("of") < 0.5
    return f"{lead} {asked} of all of them" if several else f"{lead} {asked}"


_OWNED = re.compile(
    r"(?P<all>(?:(?:all|the|different|distinct|every) )*)(?P<owner>[a-z]+(?: [a-z]+)?) "
    r"(?P<owned>(?:(?:first|last|full|and) )*(?:names?|ids?|titles?|codes?|descriptions?|details|addresses|dates))",
    re.IGNORECASE,
)


def _mask_owner(question: str, facts: QueryFacts, names: SchemaNames, draw: Draw) -> Perturbed | None:
    """`List all the names.` for `List all the donor names.`"""
    text = re.sub(r"[\s?.!]+$", "", question)
    lead = LEAD.match(text)
    match = lead and _OWNED.fullmatch(text[lead.end() :])
    tables = known_nouns((*names.tables, *facts.tables))
    if not lead or not match or not stems(match.group("owner")) <= tables:
        return None
    ending = "?" if re.match(r"w", text, re.IGNORECASE) else "."
    request = capital(f"{lead.group('lead')} {match.group('all') or 'the '}{match.group('owned')}{ending}")
    masked = stems(match.group("owner"))
    if masked & stems(request) or not _fits_several(request, masked, facts, names):
        return None
    owned = match.group("owned").lower()
    questions = (
        f"Which {owned} are you asking about?" if owned.endswith("s") else "What are you asking about?",
        "Who or what are you asking about?",
        "Which table are you referring to?",
    )
    return Perturbed(request, draw.shuffled("question", questions)[0])


def _question(reading: Reading, request: str, kept: bool, draw: Draw) -> str:
    """Asks for the population; that it is a certain table (`Are you asking about the singers?`) only where nothing else
    was masked."""
    pronouns = [w for w in ("ones", "one", "them", "their") if re.search(rf"\b{w}\b", request)]
    questions = ["What are you asking about?", "Who or what are you asking about?"]
    questions.append("Which table are you referring to?" if kept else "Which entries of the database do you mean?")
    if pronouns:
        questions += [f'Who or what do you mean by "{pronouns[0]}"?', f'What does "{pronouns[0]}" refer to?']
    if reading.form in ("how many", "counted"):
        questions += ["What would you like to count?", "What should be counted?"]
    if kept and reading.noun.plural and draw.unit("closed") < 0.3:
        head = " ".join(w if w.isupper() else w.lower() for w in reading.noun.head.split())
        return f"Are you asking about the {head}?"
    return draw.shuffled("question", questions)[0]
