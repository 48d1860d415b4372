"""Ambiguous twins of requests to a database, by rule (appendix C of the paper, where a language model writes them).

The question is taken apart (phrases.py) and one part of it is masked: what is wanted (here), about whom
(population.py), or how the results are presented (presentation.py). Where no rule is sure of the English, there is no
twin.
"""

from __future__ import annotations

import re

from act_assets.tasks.ambig_sql.phrases import (
    ARE_THERE,
    AUXILIARY,
    END_THERE,
    NO_THAT,
    THERE,
    Reading,
    SchemaNames,
    broken,
    capital,
    known_nouns,
    read,
    stem,
)
from act_assets.tasks.ambig_sql.population import mask_population
from act_assets.tasks.ambig_sql.presentation import mask_presentation
from act_assets.tasks.ambig_sql.strategy import Perturbed, QueryFacts, query_facts
from act_assets.tasks.rules import Draw, same_text, words


def perturb(question: str, query: str, strategy: str, names: SchemaNames) -> Perturbed | None:
    """The twin of a clear request in which `strategy` names what is left open; None where no rule is sure.

    Raises ValueError where the strategy is unknown or the query cannot be parsed.
    """
    masks = {"information": _mask_information, "population": mask_population, "presentation": mask_presentation}
    if strategy not in masks:
        raise ValueError(f"unknown strategy {strategy!r}")
    facts = query_facts(query)
    question = " ".join(question.split())
    if re.search(r"\b(\w+) \1\b(?! \d)", question, re.IGNORECASE):
        return None  # `the the`
    twin = masks[strategy](question, facts, names, Draw(question))
    return None if twin is None or same_text(twin.request, question) else twin


# Information: the noun with everything that restricts it stays, what is wanted of it goes.

_OPENINGS = ("Tell me about", "Give me information about", "I want to know about", "Show me details about")


def _mask_information(question: str, facts: QueryFacts, names: SchemaNames, draw: Draw) -> Perturbed | None:
    reading = read(question, facts, names)
    if reading is None or broken(reading.noun):
        return None
    noun = reading.noun
    rest = _as_clause(reading)
    # `Show the carriers that ...`: of the values of a column there is little to know but themselves.
    tables = known_nouns((*names.tables, *facts.tables))
    column = known_nouns(facts.selected) - tables
    # `these names` or `the names of ...` as a population would still hold what is wanted.
    *_, last = parts = [stem(w) for w in noun.head.split()[-2:]]
    if reading.form in ("listed", "which") and (column.intersection(parts) or last in _ATTRIBUTES):
        return None
    # Who asks for all columns is answered by `tell me about`.
    if rest is None or not (facts.selected or facts.aggregates):
        return None
    article = "the" if noun.determiner in ("", "any", "some", "a", "an", "any of the") else noun.determiner
    opening = draw.shuffled("opening", _OPENINGS)[0]
    request = f"{opening} {article} {noun.phrase} {rest}".strip().rstrip(" ,") + "."
    this = "these" if noun.plural else "this"
    head = noun.head.lower()
    figure = ", or do you need a figure about them" if noun.plural else ""
    questions = (
        f"What would you like to know about the {head}?",
        f"What exactly do you want to know about {this} {head}?",
        f"Which information about the {head} do you want?",
        f"Which details of the {head} are you interested in{figure}?",
    )
    return Perturbed(capital(request), draw.shuffled("question", questions)[0])


_ATTRIBUTES = words("age amount code date description detail email id name number phone price title year")


def _as_clause(reading: Reading) -> str | None:
    """What follows the noun, such that it restricts it: `play football` becomes `that play football`."""
    rest = reading.noun.rest
    if reading.form in ("asked", "listed", "counted"):
        return rest
    if reading.form == "how many" and (not rest or THERE.match(rest.lower())):
        return ""
    if reading.form == "how many" and ARE_THERE.match(rest):
        return ARE_THERE.sub("", rest)
    if not rest:
        return None
    first = rest.split()[0].lower()
    closed = END_THERE.sub("", rest)
    if first in NO_THAT or (first.endswith(("ed", "ing")) and closed != rest):
        # `students in room 1 have a pet`: the verb comes later, and the words before it are no clause of their own
        return closed if closed != rest and not _verbs(closed) else None
    if first in ("do", "does", "did") and rest.split()[1:2] not in (["not"], ["n't"]):
        match = re.fullmatch(r"(?:does|did|do) (the .+|each .+|\"?[A-Z].+) have", rest)
        return f"of {match.group(1)}" if match and not _verbs(match.group(1)) else None
    if re.match(r"(?:is|are|was|were) (?:the|there)\b", rest):
        return None
    return f"that {closed}"


def _verbs(text: str) -> bool:
    return bool(set(text.lower().split()) & (AUXILIARY | words("who that which live work")))
