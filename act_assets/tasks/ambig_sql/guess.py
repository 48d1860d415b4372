"""Guesses at the SQL that a request may mean, from its words and the schema alone.

The tables and columns that share words with the request are taken for the ones that it names; what it says of counting,
grouping and ordering chooses the shape of the query. Each guess can be parsed and names nothing the schema lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from act_assets.tasks.ambig_sql.phrases import COUNTED, stems
from act_assets.tasks.ambig_sql.spider import Column, Table, quoted
from act_assets.tasks.rules import Draw

_AGGREGATES = (
    ("avg", re.compile(r"\b(?:average|mean)\b", re.IGNORECASE)),
    ("sum", re.compile(r"\b(?:total|sum)\b", re.IGNORECASE)),
    ("max", re.compile(r"\b(?:maximum|max|highest|largest|oldest|longest|latest|biggest|greatest)\b", re.IGNORECASE)),
    ("min", re.compile(r"\b(?:minimum|min|lowest|smallest|youngest|shortest|earliest|least)\b", re.IGNORECASE)),
)
_EACH = re.compile(r"\b(?:each|every|per|groups?)\b", re.IGNORECASE)
_ORDER = re.compile(r"\b(?:order\w*|sort\w*|alphabetical\w*|ascending|descending|rank\w*)\b", re.IGNORECASE)
_FIRST = re.compile(r"\b(?:most|least|fewest|top|(?:first|last)(?! names?\b)|\w{2,}est)\b", re.IGNORECASE)
_LITERAL = re.compile(r"\"([^\"]+)\"|(?<!\w)'([^']+)'(?!\w)|“([^”]+)”|\b(\d+(?:\.\d+)?)\b")
_LARGER = re.compile(r"\b(?:more|above|over|older|larger|longer|higher|greater|after|at least)\b", re.IGNORECASE)
_SMALLER = re.compile(r"\b(?:below|under|younger|smaller|shorter|lower|less|before|fewer)\b", re.IGNORECASE)


def guesses(request: str, tables: Sequence[Table], draw: Draw) -> Iterator[str]:
    """Queries in the order in which they fit; many of them, none twice."""
    ranked = [t for t in by_overlap(request, tables, draw) if t.columns]
    seen: set[str] = set()
    for sql in (sql for table in ranked for group in _of_table(request, table, ranked, draw) for sql in group):
        if sql not in seen:
            seen.add(sql)
            yield sql


def by_overlap(request: str, tables: Sequence[Table], draw: Draw) -> list[Table]:
    """The tables by the words that they share with a request: those of their name count most."""
    said = stems(request)

    def rank(table: Table) -> tuple[float, float, str]:
        named = 3 * len(said & stems(table.natural)) / max(1, len(stems(table.natural)))
        held = len(said & set().union(*(stems(c.natural) for c in table.columns)))
        return -(named + held), draw.unit(f"table|{table.name}"), table.name

    return sorted(tables, key=rank)


def same_query(one: str, other: str) -> bool:
    """Whether two texts are the same query but for case, spaces and quotes."""
    plain = lambda text: re.findall(r"\w+|[^\w\s\"'`;]", text.lower())  # noqa: E731
    return plain(one) == plain(other)


def _of_table(request: str, table: Table, tables: Sequence[Table], draw: Draw) -> list[list[str]]:
    """Queries about one table by shape; the shape that the request suggests comes first."""
    source = quoted(table.name)
    said = stems(request)
    columns = sorted(
        table.columns, key=lambda c: (-len(said & stems(c.natural)), draw.unit(f"column|{table.name}|{c.name}"), c.name)
    )
    named = [c for c in columns if stems(c.natural) & said][:3]
    shown = [c for c in columns if c.name not in _keys(table)] or columns
    numbers = [c for c in shown if c.type == "number"] or [c for c in columns if c.type == "number"]
    picked = named or shown[: 1 + int(draw.unit("more columns") < 0.5)]
    listed = ", ".join(quoted(c.name) for c in picked)
    where = _where(request, shown, draw)
    aggregates = [name for name, pattern in _AGGREGATES if pattern.search(request)]
    key = quoted((named or shown)[0].name)
    by = quoted((numbers or shown)[0].name)

    counted = [_select("count(*)", source, where)]
    grouped = [_select(f"{key}, count(*)", source, f"{where} GROUP BY {key}")]
    measured = [
        _select(f"{name}({quoted(c.name)})", source, where)
        for name in (aggregates or draw.shuffled("aggregate", ["avg", "max", "min", "sum"])[:1])
        for c in numbers[:2]
    ]
    # Every other direction is a guess as good as the first.
    down = " DESC" if draw.unit("direction") < 0.6 else ""
    first = [_select(listed, source, f"{where} ORDER BY {by}{down} LIMIT 1")]
    ordered = [_select(listed, source, f"{where} ORDER BY {by}{down}")]
    plain = [_select(listed, source, where), _select("*", source, where)]
    joined = list(islice(_joins(table, tables, picked, draw), 2))
    plain = [*joined, *plain] if joined and draw.unit("join") < 0.25 else [*plain, *joined]

    suggested = [
        (bool(aggregates) and not _FIRST.search(request), measured),
        (bool(_EACH.search(request)), grouped),
        (bool(COUNTED.search(request)), counted),
        (bool(_FIRST.search(request)), first),
        (bool(_ORDER.search(request)), ordered),
    ]
    # One guess in four passes over what the request suggests, as an assistant may that has not understood it.
    fits = [group for fit, group in suggested if fit] if draw.unit("suggested") < 0.75 else []
    others = [group for _, group in suggested if group not in fits]
    others.sort(key=lambda group: draw.unit(group[0] if group else ""))
    return [*fits, plain, *others]


def _keys(table: Table) -> set[str]:
    return {*table.primary_key, *(k.column for k in table.foreign_keys)}


def _where(request: str, columns: Sequence[Column], draw: Draw) -> str:
    """A condition with a value that the request quotes, or a number of it; often none."""
    literals = [next(filter(None, groups)) for groups in _LITERAL.findall(request)]
    if not literals or not columns:
        return ""
    value = draw.shuffled("value", literals)[0]
    kind = "number" if re.fullmatch(r"\d+(?:\.\d+)?", value) else "text"
    fitting = [c for c in columns if c.type == kind]
    if not fitting:
        return ""
    if kind == "text":
        text = value.replace("'", "''")
        return f" WHERE {quoted(fitting[0].name)} = '{text}'"
    sign = ">" if _LARGER.search(request) else "<" if _SMALLER.search(request) else "="
    return f" WHERE {quoted(fitting[0].name)} {sign} {value}"


def _joins(table: Table, tables: Sequence[Table], picked: Sequence[Column], draw: Draw) -> Iterator[str]:
    """Queries that add a column of a table that this one refers to."""
    by_name = {t.name: t for t in tables}
    for key in table.foreign_keys:
        other = by_name.get(key.table)
        if other is None or other is table:
            continue
        columns = [c for c in other.columns if c.name not in _keys(other)] or list(other.columns)
        added = min(columns, key=lambda c: draw.unit(f"joined|{other.name}|{c.name}"))
        shown = ", ".join([f"T2.{quoted(added.name)}", *(f"T1.{quoted(c.name)}" for c in picked)])
        joined = f"{quoted(table.name)} AS T1 JOIN {quoted(other.name)} AS T2"
        yield _select(shown, joined, f" ON T1.{quoted(key.column)} = T2.{quoted(key.target)}")


def _select(shown: str, source: str, rest: str) -> str:
    return " ".join(("SELECT", shown, "FROM", source)) + rest
