"""The embedded provider's rules for AmbigSQL: clarifying questions in the form of the gold ones, guesses at the SQL.

The generator reads the schema, what was said, and the references only so as not to repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from act_assets.conversation import ANSWER, CLARIFY, ClearRequest, TurnState, Utterance
from act_assets.tasks.ambig_sql.guess import by_overlap, guesses, same_query
from act_assets.tasks.ambig_sql.perturbation import perturb
from act_assets.tasks.ambig_sql.phrases import COUNTED, SchemaNames, plural, stem
from act_assets.tasks.ambig_sql.presentation import ORDER_QUESTIONS
from act_assets.tasks.ambig_sql.spider import Table, parse_tables, tables_of
from act_assets.tasks.ambig_sql.strategy import Perturbed, perturbation_text
from act_assets.tasks.rules import Draw, Rules, one_line, words

STOCK_QUESTION = "Could you say more precisely what you want to know?"
"""Beside a request that no rule could mask: the pipeline drops twins that equal their original."""


class AmbigSqlRules(Rules):
    """A response that takes the wanted action and is not the reference; a user who says the clear request."""

    def generate(self, turn: TurnState, action: str, seed: int) -> str | None:
        tables = tables_of(turn.context)
        draw = Draw(f"{turn.turn_id}|{seed}")
        references = (turn.response.text, turn.goal.text)
        if tables and action == CLARIFY.name:
            said = {*references, *(m.content for m in turn.history)}
            return next((q for q in _questions(turn.request, tables, draw) if q not in said), None)
        if tables and action == ANSWER.name:
            candidates = guesses(turn.request, tables, draw)
            return next((c for c in candidates if not any(same_query(c, r) for r in references)), None)
        return None

    def reply(self, turn: TurnState, intent: str, utterances: Sequence[Utterance]) -> str | None:
        """The clear request, the first line of the intent, whatever was asked and however often."""
        return one_line(intent.strip().partition("\n")[0]) or None

    def perturb(self, clear: ClearRequest) -> str | None:
        """The two lines that a model is asked for; the clear request itself where no rule can mask it."""
        names = names_of(parse_tables(clear.grounding.splitlines()))
        try:
            twin = perturb(clear.request, clear.target, clear.strategy, names)
        except ValueError:  # a target that cannot be parsed, which the task reports
            twin = None
        return perturbation_text(twin or Perturbed(clear.request, STOCK_QUESTION))


def names_of(tables: Sequence[Table]) -> SchemaNames:
    return SchemaNames(tuple(t.natural for t in tables), tuple(c.natural for t in tables for c in t.columns))


# Clarifying questions of the three strategies. What a request says of its presentation decides which may be asked.

_RANKS = re.compile(r"\b(?:most|least|fewest|top|rank\w*|(?:first|last)(?! names?\b)|\w{2,}est)\b", re.IGNORECASE)
_GROUPS = re.compile(r"\b(?:each|every|per|groups?|grouped)\b", re.IGNORECASE)
_ORDERS = re.compile(r"\b(?:order\w*|sort\w*|alphabetical\w*|ascending|descending)\b", re.IGNORECASE)
_PRONOUN = re.compile(r"\b(?:ones|one|them|they|it)\b", re.IGNORECASE)


def _questions(request: str, tables: Sequence[Table], draw: Draw) -> Iterator[str]:
    nouns = [_plural_in(request, t) for t in by_overlap(request, tables, draw)[:3]]
    presents = any(p.search(request) for p in (_RANKS, _GROUPS, _ORDERS))
    information = [
        f"What would you like to know about the {nouns[0]}?",
        f"What exactly do you want to know about these {nouns[0]}?",
        f"Which information about the {nouns[0]} do you want?",
        f"Which details of the {nouns[0]} are you interested in?",
        f"Which details of the {nouns[0]} are you interested in, or is it a figure over them that you need?",
    ]
    subject = ["What are you asking about?", "Who or what are you asking about?", "Which table are you referring to?"]
    if pronoun := _PRONOUN.search(request):
        said = pronoun[0].lower()
        subject += [f'Who or what do you mean by "{said}"?', f'What does "{said}" refer to?']
    if COUNTED.search(request):
        subject += ["What would you like to count?", "What should be counted?"]
    subject.append(f"Are you asking about the {nouns[0]}?")
    if len(nouns) > 1:
        subject.append(f"Do you mean the {nouns[0]} or the {nouns[1]}?")
    groups = [information, subject]
    if draw.unit("strategy") < 0.5:
        groups.reverse()
    # A clear request has an ambiguous twin that leaves its presentation open where there is any to leave open.
    groups.insert(0 if draw.unit("presentation") < (0.8 if presents else 0.05) else 2, _presentation(request, nouns[0]))
    for i, group in enumerate(groups):
        yield from draw.shuffled(f"form {i}", group)


def _presentation(request: str, noun: str) -> list[str]:
    if _GROUPS.search(request) and not _ORDERS.search(request):
        return [
            f"By what should the {noun} be grouped?",
            f"What would you like to group the {noun} by?",
            "Which groups do you have in mind?",
            "What makes up a group here?",
        ]
    if _RANKS.search(request):
        return [
            f"By what should the {noun} be ranked?",
            f"What should the {noun} be ranked by, and which end comes first?",
            f"What decides which of the {noun} come first?",
            "What should the ranking be based on?",
        ]
    return list(ORDER_QUESTIONS)


_NO_PLURAL = words("aircraft equipment faculty furniture news people personnel series sheep software staff")


def _plural_in(request: str, table: Table) -> str:
    """A table's name in the plural, as the request writes it where it does."""
    *first, last = table.natural.split()
    said = [w for w in re.findall(r"[A-Za-z]+", request) if stem(w) == stem(last) and w.lower() != stem(last)]
    several = last if last.endswith("s") or last in _NO_PLURAL else plural(last)
    return " ".join([*first, said[0].lower() if said else several])
