"""What is read off the text of an SQL query, and rewritten in it, before SQLite sees it.

The rules are those of the Spider / CoSQL test-suite evaluator (Zhong et al. 2020, exec_eval.py), applied to
tokens: never inside string literals, quoted identifiers or comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_SQL_BYTES = 1 << 20
"""Of one query as UTF-8: OURS. SQLite's own limit is 10^9; the longest query of Spider has about 600."""

# One alternative a token, none of which can match in two ways, so reading takes linear time. A doubled quote reads
# as two literals side by side, and a literal or comment that is not closed ends with the text: SQLite judges those.
_SPACE = r"[ \t\n\f\r\ufeff]"
_WORD = r"[0-9A-Za-z_$\x80-\U0010ffff]"
_TOKEN = re.compile(
    rf"""(?P<blank>{_SPACE}+|--[^\n]*|/\*.*?(?:\*/|\Z))
       |(?P<quoted>'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?)
       |(?P<this_year>year{_SPACE}*\({_SPACE}*curdate{_SPACE}*\({_SPACE}*\){_SPACE}*\))
       |(?P<word>[@:\#?]?{_WORD}+)
       |(?P<comparison>[<>!][ ]=)
       |(?P<end>;)
       |(?P<other>[()*,+=%&|~]+|.)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)

# The first words of every SQLite statement that is no query.
_STATEMENTS = {
    *("alter", "analyze", "attach", "begin", "commit", "create", "delete", "detach", "drop", "end", "explain"),
    *("insert", "pragma", "reindex", "release", "replace", "rollback", "savepoint", "update", "vacuum"),
}


@dataclass(frozen=True)
class Query:
    """One query as it is run, or why it is not run."""

    sql: str
    ordered: bool
    """Whether ORDER BY stands anywhere in it."""
    problem: str | None
    """Why it cannot be a query; None where SQLite may judge it."""


def read_query(text: str, *, ignore_distinct: bool) -> Query:
    """Rewrite a query as the evaluator does before it runs one; never fails, takes time linear in the text.

    `> =`, `< =` and `! =` are joined, `YEAR(CURDATE())` becomes 2020, and with `ignore_distinct` DISTINCT goes,
    in COUNT(DISTINCT x) too, but not in `IS [NOT] DISTINCT FROM`, an operator that the evaluator breaks. What
    follows the statement's semicolon (blanks, comments, further semicolons) is cut off.
    """
    problem = _unreadable(text)
    if problem:
        return Query("", False, problem)
    kept: list[str] = []
    first, last, before_last, ended, ordered = "", "", "", False, False
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token[0]
        if kind == "end":
            ended = True
            continue
        if kind == "blank":
            kept.append("" if ended else value)
            continue
        if ended:
            return Query("", False, "it has more than one statement")
        word = value.lower() if kind == "word" else value
        first = first or word
        ordered = ordered or (word == "by" and last == "order")
        if kind == "comparison":
            value = value.replace(" ", "")
        elif kind == "this_year":
            value = "2020 "  # the blank keeps it apart from a word that follows the parenthesis
        elif word == "distinct" and ignore_distinct:
            # It stays in IS [NOT] DISTINCT FROM, and as the `distinct` of t.distinct.
            value = value if last in ("is", ".") or (before_last, last) == ("is", "not") else " "
        kept.append(value)
        before_last, last = last, word
    if not first:
        problem = "it is empty"
    elif first in _STATEMENTS:
        problem = f"not allowed: {first.upper()}"
    return Query("".join(kept), ordered, problem)


def _unreadable(text: str) -> str | None:
    """Why a text is no SQL whatever it says; None where it may be."""
    try:
        # A character has at least one byte, so a huge text is not encoded to be found too long.
        if len(text) > MAX_SQL_BYTES or len(text.encode()) > MAX_SQL_BYTES:
            return f"it is longer than {MAX_SQL_BYTES:,} bytes"
    except UnicodeEncodeError:
        return "it holds a lone surrogate, which is no character"
    return "it holds a NUL character" if "\0" in text else None
