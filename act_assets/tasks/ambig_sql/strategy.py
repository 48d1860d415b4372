"""Which ambiguity an AmbigSQL twin gets, what the rules need to know about a query, and how a model's twin is read.

Appendix C of the paper: for queries that manipulate the presentation of results the presentation is masked; otherwise
either the requested information or the population, at random.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from act_assets.seeds import derive_seed

if TYPE_CHECKING:
    from sqlglot import exp

Strategy = Literal["information", "population", "presentation"]


@dataclass(frozen=True, slots=True)
class Perturbed:
    """The ambiguous twin of a request, and the question that asks for what was masked."""

    request: str
    clarifying_question: str


@dataclass(frozen=True, slots=True)
class QueryFacts:
    """What a query says, by the names it uses, without aliases of tables.

    `selected` are the column names of the outermost select, `columns` the columns of the whole query as (table, name);
    the table is "" where the query leaves it to the schema. `tables` are the tables of the outermost FROM and its
    joins. `ordered`, `grouped` and `limit` are the clauses of the outermost select.
    """

    selected: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    tables: tuple[str, ...]
    aggregates: bool
    counts: bool
    ordered: bool
    grouped: bool
    limit: int | None

    @property
    def presents(self) -> bool:
        """Whether the outermost select orders, groups or limits its rows."""
        return self.ordered or self.grouped or self.limit is not None


def query_facts(query: str) -> QueryFacts:
    """Reads a query in SQLite's dialect. Raises ValueError where it is none.

    Of a set operation (UNION, say) the ORDER BY and LIMIT count, not the clauses of its operands.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    # Spider writes some comparisons with a space inside.
    text = re.sub(r"([<>!])\s+=", r"\1=", query)
    try:
        root = sqlglot.parse_one(text, dialect="sqlite")
    except SqlglotError as error:
        message = re.sub(r"\x1b\[\d+m", "", str(error))  # sqlglot underlines the place for terminals
        raise ValueError(f"the query cannot be parsed: {' '.join(message.split())[:200]}") from error
    if not isinstance(root, exp.Query):
        raise ValueError(f"the query is no SELECT: {' '.join(query.split())[:80]!r}")
    first: exp.Expr = root
    while isinstance(first, exp.SetOperation):
        first = first.left
    limit = root.args.get("limit")
    rows = None if limit is None else limit.args.get("expression")
    select = first if isinstance(first, exp.Select) else exp.Select()
    return QueryFacts(
        selected=tuple(c.name for item in select.expressions for c in item.find_all(exp.Column)),
        columns=tuple(dict.fromkeys((_table(c), c.name) for c in root.find_all(exp.Column))),
        tables=tuple(table.name for table in _tables(select)),
        aggregates=any(item.find(exp.AggFunc) is not None for item in select.expressions),
        counts=any(item.find(exp.Count) is not None for item in select.expressions),
        ordered=root.args.get("order") is not None,
        grouped=isinstance(root, exp.Select) and root.args.get("group") is not None,
        # 0 where it is no plain number
        limit=None if limit is None else int(rows.name) if rows is not None and rows.name.isdigit() else 0,
    )


def strategy_of(query: str, request_id: str, seed: int) -> Strategy:
    """The strategy for a request (appendix C); the random half depends on the seed and the request's id alone.

    Raises ValueError where the query cannot be parsed.
    """
    if query_facts(query).presents:
        return "presentation"
    return "population" if derive_seed(seed, "strategy", request_id) % 2 else "information"


_REQUEST, _QUESTION = "ambiguous request", "clarifying question"
_LINE = re.compile(rf"^[\s>*_#-]*({_REQUEST}|{_QUESTION})[\s*_]*:[\s*_]*(.*?)[\s*_]*$", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "`": "`"}


def perturbation_text(twin: Perturbed) -> str:
    """A twin as a model is asked to write it; `read_perturbation` reads it back."""
    return f"{_REQUEST.capitalize()}: {twin.request}\n{_QUESTION.capitalize()}: {twin.clarifying_question}"


def read_perturbation(text: str) -> Perturbed | None:
    """A twin from a model's two lines, `Ambiguous request: ...` and `Clarifying question: ...`.

    Quotes around a text, bold markers and leading dashes are taken off. None where a line is missing, empty or there
    twice, or where the clarifying question holds no question mark.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            name = match.group(1).lower()
            if name in found:
                return None
            said = " ".join(match.group(2).split())
            while len(said) > 1 and _QUOTES.get(said[0]) == said[-1] and said[0] not in said[1:-1]:
                said = said[1:-1].strip()
            found[name] = said
    request, question = found.get(_REQUEST, ""), found.get(_QUESTION, "")
    if not re.search(r"\w", request) or not re.search(r"\w.*\?", question):
        return None
    return Perturbed(request, question)


def _tables(select: exp.Select) -> list[exp.Table]:
    """The tables of a FROM and its joins."""
    from sqlglot import exp

    parts = [select.args.get("from_") or select.args.get("from"), *(select.args.get("joins") or [])]
    return [part.this for part in parts if part is not None and isinstance(part.this, exp.Table)]


def _table(column: exp.Column) -> str:
    """The table of a column: that of its qualifier, or the only one of its select."""
    from sqlglot import exp

    select = column.find_ancestor(exp.Select)
    while isinstance(select, exp.Select):
        tables = _tables(select)
        if not column.table:
            return tables[0].name if len(tables) == 1 else ""
        for table in tables:
            if table.alias_or_name.lower() == column.table.lower():
                return table.name
        select = select.find_ancestor(exp.Select)
    return ""
