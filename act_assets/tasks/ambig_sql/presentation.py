"""Masking how results are presented: by what they are ordered, by what they are grouped, what comes first.

What is masked leaves a word behind (`in a particular order`, `for each group`, `ranks first`): a total without its
`for each country` would be another clear request.
"""

from __future__ import annotations

import re

from act_assets.tasks.ambig_sql.phrases import (
    AUXILIARY,
    EITHER_NUMBER,
    SchemaNames,
    capital,
    is_plural,
    known_nouns,
    plural,
    stem,
    stems,
)
from act_assets.tasks.ambig_sql.strategy import Perturbed, QueryFacts
from act_assets.tasks.rules import Draw, words


def mask_presentation(question: str, facts: QueryFacts, names: SchemaNames, draw: Draw) -> Perturbed | None:
    """The twin of a request whose query orders, groups or limits; None where no rule is sure."""
    if re.search(r"\bgroups?\b", " ".join((*names.tables, *names.columns)), re.IGNORECASE) and not facts.ordered:
        return None  # `for each group` would name something there
    # A column `rank` would settle what ranks first.
    comes = "come" if re.search(r"\brank", " ".join(names.columns), re.IGNORECASE) else "rank"
    nouns = known_nouns(names.tables) | known_nouns(facts.selected)
    text = re.sub(r"\s+([,.?;])", r"\1", " ".join(question.split()))
    text = re.sub(r"[\s?.!]+$", "", text)
    if facts.limit is not None and facts.ordered:
        return _mask_superlative(text, nouns, comes, facts.limit, draw)
    if facts.ordered:
        return _mask_order(text, draw)
    if facts.grouped:
        return _mask_group(text, draw)
    return None


_ASKS = re.compile(
    r"(?:for each group, |in |for |at |on |to |with |by |of )?(?:what|which|who|whose|whom|when|where|how|wat)\b",
    re.IGNORECASE,
)


def _finished(text: str) -> str:
    text = re.sub(r"\s+([,.?;])", r"\1", " ".join(text.split())).strip(" ,;")
    last = re.split(r"(?<=[?.!])\s+(?=[A-Z])", capital(text))[-1]
    return capital(text) + ("?" if _ASKS.match(last) else ".")


# Ordering

_DIRECTION = (
    r"(?:ascending|descending|increasing|decreasing|alphabetical|alphabetic|chronological|lexicographical|reverse)"
)
_KEYED = r"(?:by|in|on|from|according to|alphabetically|chronologically|ascending|descending|with|based on|starting)"
_BY = r"(?:,? (?:of|by|for|according|based|from|with|using)\b.*)?"
_ORDER = re.compile(
    r"(?:,?\s+and)?,?\s+(?:(?:that is|that are|which are|are|is|being)\s+)?"
    rf"(?:(?:ordered|sorted|ordering|listed|ranked|arranged|order|sort)\s+(?:\w+\s+)?{_KEYED}\b.*"
    rf"|(?:in|by)\s+(?:the\s+|an?\s+)?(?:order (?:of|by)\b.*|(?:{_DIRECTION}[\s,]+(?:and\s+)?)+(?:\w+\s+)?order\b{_BY}"
    rf"|(?:{_DIRECTION}\s+)(?:number|count|amount|age|price|year)\b.*)"
    r"|from (?:the )?\w+est to (?:the )?\w+est|from (?:most|least|high|low)\b.*"
    r"|(?:alphabetically|chronologically)(?: ascending| descending)?"
    r"|(?:ascending|descending)(?:ly)?|in order (?:of|by|from)\b.*)$",
    re.IGNORECASE,
)
_SORT_SENTENCE = re.compile(
    r"[.?!,]\s+(?:and )?(?:please )?(?:sort|order|rank|arrange|list|show|give|return)\s+"
    r"(?:(?:them|it|the (?:list|results?|output|rows|names?|records|answers?|\w+))\s+)?"
    r"(?:alphabetically|in\b.*\border\b.*|by\b.*|from\b.*|according to\b.*)$",
    re.IGNORECASE,
)
_SORT_FIRST = re.compile(
    r"^(?P<verb>sort|order|rank|arrange)\s+(?P<what>.+?),?\s+(?:in|by|according to|from|alphabetically)\b.*$",
    re.IGNORECASE,
)
_LIST_IN_ORDER = re.compile(
    rf"^(?P<verb>list|show|give|return|display|find)\s+in\s+(?:{_DIRECTION}\s+)+order\s+(?:of \w+\s+)?(?P<what>.+)$",
    re.IGNORECASE,
)
ORDER_QUESTIONS = (
    "In which order should the results be listed?",
    "By what should the results be sorted, and in which direction?",
    "What should the results be ordered by, and which end comes first?",
    "How should the results be sorted?",
)
_ORDERS = ("in a particular order", "in a certain order", "in sorted order", "in the right order")

_STILL_ORDERED = re.compile(
    r"\b(?:order(?:ed)? by|sort(?:ed)? by|ascending|descending|alphabetical\w*)\b"
    r"|(?:\band|,|\bin|\bthe|\bby|\bof|\bgrouped)$",
    re.IGNORECASE,
)


def _mask_order(text: str, draw: Draw) -> Perturbed | None:
    phrase = draw.shuffled("order", _ORDERS)[0]
    sentence = _SORT_SENTENCE.search(text)
    if sentence:
        kept = text[: sentence.start()]
        request = f"{_finished(kept)} Sort the results."
    elif match := _SORT_FIRST.match(text):
        kept = f"{match.group('verb')} {match.group('what')}"
        request = _finished(kept)
    elif match := _LIST_IN_ORDER.match(text):
        kept = f"{match.group('verb')} {match.group('what')}"
        request = _finished(f"{kept} {phrase}")
    elif match := _ORDER.search(text):
        kept = text[: match.start()]
        request = _finished(f"{kept}, {phrase}" if "," in match.group()[:2] else f"{kept} {phrase}")
    else:
        return None
    if not sentence and _TRAILS.search(text[len(kept) :].lstrip(" ,.?;")):
        return None
    if len(kept.split()) < 3 or re.search(r"\bthe each\b|\w[.?] ", kept) or _STILL_ORDERED.search(kept):
        return None
    return Perturbed(request, draw.shuffled("question", ORDER_QUESTIONS)[0])


# Grouping

_COUNT_OF = (
    r"(?:corresponding |total )?(?:number|numbers|count|amount|average|total|sum|maximum|minimum|max|min|mean)\b"
)
_EACH_TAIL = re.compile(
    r",?\s+(?P<link>for|in|of|by|per|on|at|from|to|with|across|within)\s+"
    r"(?:the\s+)?(?:each|every|different|all different|each of the|all the different)\s+(?:of the )?"
    r"(?:different |distinct )?(?P<key>[\w -]+)$",
    re.IGNORECASE,
)
_PER_TAIL = re.compile(
    r",?\s+per\s+(?P<key>[\w ]+)$|,?\s+(?:and )?(?:grouped|group|broken down) by\s+(?P<by>[\w ]+)$", re.IGNORECASE
)
_EACH_FIRST = re.compile(r"^(?:for|in)\s+(?:each|every)\s+(?P<key>[\w' -]+?),\s*(?P<what>.+)$", re.IGNORECASE)
_KEY_AND_COUNT = re.compile(
    r"^(?P<lead>(?:please )?(?:show|list|find|give|return|display|report|get|tell)(?: me)?(?: a list of)?"
    r"|what (?:are|is))\s+"
    r"(?P<key>(?:(?!\bnumber\b|\bcount\b|\bhow\b)[\w' -])+?),?\s+"
    r"(?:and|with|along with|as well as|together with|and also)\s+"
    rf"(?P<count>(?:the |their |its )?{_COUNT_OF}.+)$",
    re.IGNORECASE,
)
_KEY_AND_HOW_MANY = re.compile(
    r"^(?:what are|show|list|find|give|return) (?P<key>[\w' -]+?),? and "
    r"(?:how many|for each,? how many|what is the number of) (?P<what>(?:[a-z]+ )?[a-z]+s) "
    r"(?:(?:do|does|did|are|is|was|were|have|has|use|belong|live)\b (?:\w+ )*?)?"
    r"(?:each|them)(?: of (?:these|them|those))?(?: \w+)?$",
    re.IGNORECASE,
)
# The end of `the number of companies in each headquarter`, `the number of tracks that they contain`
_OF_EACH = re.compile(
    r"^(?P<kept>.*?\bof\b.*?),?\s+(?:(?:in|of|for|with|from|at|on|that|which|having|under|by|to)\s+(?:\w+\s+)??)?"
    r"(?:each|every|that|those|these|them|the corresponding|their|corresponding|it|there)\b(?:\s+[a-z]+){0,3}$",
    re.IGNORECASE,
)
_HOW_MANY_EACH = re.compile(
    r"^how many (?P<what>[\w ]+?) (?:does|do|did|has|have) (?:each|every) (?P<key>[\w ]+?)"
    r"(?: (?:have|has|own|contain|include|offer|had))?(?:[.?] (?:list|show|give|find|return).+)?$",
    re.IGNORECASE,
)


_LIVE_IN = re.compile(
    r"^(how many (?:[a-z]+ )?[a-z]+s) (?:live|are|work|study|come|belong) (?:in|to|from|for)$", re.IGNORECASE
)


def _mask_group(text: str, draw: Draw) -> Perturbed | None:
    about = ""
    if match := _HOW_MANY_EACH.match(text):
        key, about = match["key"], re.sub(r"^(?:different|distinct|total) ", "", match["what"])
        request = f"How many {match['what']} are there in each group"
    elif match := _EACH_FIRST.match(text):
        key, request = match["key"], f"For each group, {match['what']}"
    elif match := _KEY_AND_HOW_MANY.match(text):
        key, about = match["key"], match["what"]
        request = f"How many {about} are there in each group"
    elif match := _KEY_AND_COUNT.match(text):
        key = re.sub(r"^(?:the |all |each |every )*(?:different |distinct )?", "", match["key"])
        count = _OF_EACH.sub(r"\g<kept>", match["count"])
        count = re.sub(r"^(?:the |their |its )?(?:corresponding )?", "the ", count)
        if re.search(rf"\b{_COUNT_OF}", key, re.IGNORECASE):  # `the average and minimum age`
            return None
        if re.search(r"\b(?:who|that|which|where)\b", count) or not re.search(r" of (?!times)\w.*(?<!ing)$", count):
            return None
        lead = "What is" if match["lead"].lower().startswith("what") else match["lead"]
        request = f"{lead} {count} for each group"
    elif match := _PER_TAIL.search(text):
        key, request = match["key"] or match["by"], f"{text[: match.start()]} per group"
    elif match := _EACH_TAIL.search(text):
        key, kept, link = match["key"], text[: match.start()], match["link"].lower()
        if link == "of" and re.search(r"\bthere$", kept):
            link = "in"
        link = "for" if link in ("with", "across", "of", "per") else link
        request = _LIVE_IN.sub(r"\1 are there in", f"{kept} {link}") + " each group"
    else:
        return None
    request = _finished(request)
    masked = {stem(w) for w in key.split()} - _UNTOLD
    if not masked or masked & stems(request.replace("group", "")):
        return None
    if _REFERS_BACK.search(re.sub(r"(?:each|per) group", "", request)):
        return None
    if len(key.split()) > 6 or set(key.lower().split()) & (AUXILIARY | _CLAUSE):
        return None
    what = f"the {about}" if about else "the results"
    questions = (
        f"By what should {what} be grouped?",
        f"What would you like to group {what} by?",
        "Which groups do you mean?",
    )
    return Perturbed(request, draw.shuffled("question", questions)[0])


_UNTOLD = words("a all an and by code codes different distinct each id ids in name names of number the type types")
_REFERS_BACK = re.compile(
    r"\b(?:each|every|its?|he|she|they|his|her|their|them|there[.?]?$|those|these|per|corresponding)\b", re.IGNORECASE
)
_CLAUSE = words("who that which whose where when how many")


# Superlatives: what comes first, and by what

_MOST = (
    r"(?:the\s+)?(?:(?:single|one|two|three|four|five|ten|\d+|top \w+)\s+)?"
    r"(?:most|least|fewest|highest|lowest|largest|biggest|smallest|greatest|longest|shortest|oldest|youngest|latest|"
    r"earliest|maximum|minimum|max|min|best|worst|newest|cheapest|tallest|heaviest|closest|fastest|slowest|busiest|"
    r"furthest|farthest|strongest|richest|lightest|hottest|coldest|majority)\b"
)
_MOST_WORD = re.compile(_MOST, re.IGNORECASE)
_CLAUSE_OR_WITH = re.compile(r"\s+(?:with|having|who|that|which|whose|in which|for which|where|of)\s+", re.IGNORECASE)
_ADJECTIVE = re.compile(
    r"\bthe\s+(?P<n>(?:top\s+)?(?:\d+|two|three|four|five|ten)\s+)?"
    r"(?P<sup>(?:most|least)\s+(?:[a-z]+ly\s+)?[a-z]+|[a-z]{2,}est(?:\s+[a-z]+ed)?)\s+"
    r"(?P<noun>[a-z]+(?:\s+[a-z]+)?)\b",
    re.IGNORECASE,
)
_WHICH_MOST = re.compile(
    r"^(?P<which>which|what)\s+(?P<noun>[a-z]+(?:\s+[a-z]+)?)\s+"
    r"(?P<verb>(?:has|have|had|is|are|was|were|got|made|[a-z]+s|[a-z]+ed)"
    rf"(?:\s+(?:been|had|the|a|by|in|used|made|[a-z]+ed))*)\s*{_MOST}.*$",
    re.IGNORECASE,
)


_BOTH = words("aircraft faculty series staff")


def _mask_superlative(text: str, nouns: set[str], comes: str, limit: int, draw: Draw) -> Perturbed | None:
    sentences = re.split(r"(?<=[?.!])\s+(?=[A-Z])", text)
    first = re.sub(r"[\s?.!]+$", "", sentences[0])
    if re.match(r"(?:of|among|when|where|how|in|at|for)\b", first, re.IGNORECASE):
        return None
    extra = " ".join(sentences[1:])
    if len(sentences) > 2 or not re.match(r"(?:list|show|give|return|find|please|tell)\b|$", extra, re.IGNORECASE):
        return None
    found = _first_ranked(first, nouns, comes)
    if found is None:
        return None
    request, masked, noun, many = found
    last = noun.split()[-1]
    if stem(last) == "rank" or (stem(last) in EITHER_NUMBER and re.search(r"\bnames\b|\bare\b", first)):
        return None
    content = {w for w in stems(masked) if len(w) > 3} - {stem(w) for w in noun.split()} - _PALE
    if content & stems(extra) or _MOST_WORD.search(request) or re.search(r"\b(?:each|every|most)\b", request):
        return None
    request = _finished(request) + (f" {extra.rstrip('.?')}." if extra else "")
    several = "people" if last == "person" else noun if many or last in _BOTH else plural(noun)
    questions = [
        f"By what should the {several} be ranked?",
        f"What should the {several} be ranked by, and which end comes first?",
        f"What decides which of the {several} {comes if many else comes + 's'} first?",
        "What should the ranking be based on?",
    ]
    if re.search(rf"\b{re.escape(noun)} (?:type|code|name|id)", request):
        questions = questions[-1:]  # what is ranked are types, not things
    if limit > 1 and not _NUMBER.search(request):
        # the number was masked as well
        questions = [
            f"By what should the {several} be ranked, and how many of them do you want?",
            f"How many {several} do you want, and what should they be ranked by?",
        ]
    return Perturbed(request, draw.shuffled("question", questions)[0])


_NUMBER = re.compile(r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)
_PALE = words("number most least highest lowest total with have been that which number amount average count")

_LAST_NOUN = re.compile(
    r"\b(?:the|a|an|all|of|for|find|list|show|return|give|top|\d+|two|three|five|ten)\s+((?:[a-z]+\s+)?[a-z]+)$",
    re.IGNORECASE,
)


def _first_ranked(text: str, nouns: set[str], comes: str) -> tuple[str, str, str, bool] | None:
    """(the request with `ranks first`, the words masked, the noun that is ranked, whether it is a plural)."""
    most = _MOST_WORD.search(text)
    if match := _WHICH_MOST.match(text):
        noun = match.group("noun")
        if stem(noun.split()[-1]) in nouns and not _TRAILS.search(text[match.start("verb") :]):
            many = is_plural(noun)
            request = f"{match.group('which')} {noun} {comes if many else comes + 's'} first"
            return request, text[match.start("verb") :], noun, many
    for cut in reversed(list(_CLAUSE_OR_WITH.finditer(text))):
        if most is None or cut.end() > most.start() + 1 or _TRAILS.search(text[cut.start() :]):
            continue
        if cut.group().strip().lower() == "of":
            continue
        head = _LAST_NOUN.search(text[: cut.start()])
        if head is None or stem(head.group(1).split()[-1]) not in nouns:
            return None
        noun = head.group(1) if all(stem(w) in nouns for w in head.group(1).split()) else head.group(1).split()[-1]
        many = is_plural(noun)
        kept = text[: cut.start()]
        if not re.search(r"\btop\b", kept, re.IGNORECASE):  # `the top 3 singers` need nothing more
            kept += f" that {comes if many else comes + 's'} first"
        return kept, text[cut.start() :], noun, many
    if adjective := _ADJECTIVE.search(text):
        noun = adjective.group("noun")
        parts = noun.split()
        if stem(parts[0]) in nouns and (len(parts) == 1 or stem(parts[-1]) not in nouns):
            noun = parts[0]
        if stem(noun.split()[-1]) not in nouns or _TRAILS.search(text[adjective.end("noun") :]):
            return None
        many = is_plural(noun)
        number = re.sub(r"(?i)\btop\s+", "", adjective.group("n") or "")
        if set(noun.lower().split()) & (_CLAUSE | words("of number amount date on in at by for to")):
            return None
        top = f"the top {number}{noun}"
        after = text[adjective.start("noun") + len(noun) :]
        return f"{text[: adjective.start()]}{top}{after}", adjective.group("sup"), noun.lower(), many
    return None


_TRAILS = re.compile(
    r",|\b(?:and|as well as|along with|together with)\s+(?:also\s+)?"
    r"(?:the|their|its|his|her|what|how|list|show|give|return|when|where)\b"
    r"|\bas well as\b|\balong with\b|\btogether with\b|[?.]\s|\bcalled$|\bfrom$",
    re.IGNORECASE,
)
