"""What the memo holds and what it saved, and one answer with all that is known of it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from resources.errors import ActError
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import ANSWER_FIELDS, Answer
from resources.llm.memo.schema import answers_of
from resources.llm.memo.view import COLUMNS, consult, key_in

GROUPINGS = ("model", "role", "asset", "partition")


@dataclass(frozen=True, slots=True)
class Group:
    """What the calls of one model, role and so on came to (`of`, by the names of the grouping).

    `answers` are paid calls, replaced answers among them; tokens and `cost_usd` include what failed calls were
    charged. `unpriced` answers and `unpriced_hits` have no known price and are in no sum of dollars; where nothing
    has a known price, the sum is None.
    """

    of: tuple[str, ...]
    answers: int = 0
    hits: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    saved_usd: float | None = 0.0
    unpriced: int = 0
    unpriced_hits: int = 0

    @property
    def hit_rate(self) -> float | None:
        """The share of answers that came from the memo, 0 to 1; None where there are none."""
        asked = self.hits + self.answers
        return self.hits / asked if asked else None


@dataclass(frozen=True, slots=True)
class Stats:
    """The groups, dearest first, and the whole. Times in seconds since 1970; `unfolded` are records that are only in
    journals so far; `database_bytes` is the size of the database's file."""

    by: tuple[str, ...]
    groups: tuple[Group, ...] = ()
    total: Group = Group(())
    answers: int = 0
    history: int = 0
    database_bytes: int = 0
    unfolded: int = 0
    oldest: float | None = None
    newest: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; times are texts (UTC)."""
        return {
            "by": list(self.by),
            "groups": [{**dict(zip(self.by, g.of, strict=True)), **_measures(g)} for g in self.groups],
            "total": _measures(self.total),
            "answers": self.answers,
            "history": self.history,
            "database_bytes": self.database_bytes,
            "unfolded_records": self.unfolded,
            "oldest_answer": utc(self.oldest),
            "newest_answer": utc(self.newest),
        }


def _measures(group: Group) -> dict[str, Any]:
    return {**{k: v for k, v in asdict(group).items() if k != "of"}, "hit_rate": group.hit_rate}


def grouping(text: str) -> tuple[str, ...]:
    """The names in a text like `model,role`. Raises ActError for others."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if wrong := [name for name in names if name not in GROUPINGS]:
        raise ActError(f"cannot group by {', '.join(wrong)}", todo=f"choose among {', '.join(GROUPINGS)}")
    return names


def stats(memo: Memo, by: Sequence[str] = ("model", "role")) -> Stats:
    """What was paid, saved and lost, by any of GROUPINGS; answers that are still in journals included."""
    memo.fold()
    names = grouping(",".join(by))

    def ask(connection: duckdb.DuckDBPyConnection) -> Stats:
        counted = connection.execute(
            """
            SELECT (SELECT count(*) FROM current_answers), (SELECT count(*) FROM past_answers),
                   (SELECT count(*) FROM fresh) + (SELECT count(*) FROM fresh_uses),
                   epoch_us(min(created_at)) / 1e6, epoch_us(max(created_at)) / 1e6
            FROM (SELECT created_at FROM current_answers UNION ALL SELECT created_at FROM past_answers)
            """
        ).fetchall()[0]
        answers, history, unfolded, oldest, newest = counted
        path = memo.database.path
        size = path.stat().st_size if path.exists() else 0
        total = _groups(connection, ()) or (Group(()),)
        return Stats(names, _groups(connection, names), total[0], answers, history, size, unfolded, oldest, newest)

    return consult(memo, ask)


# A hit has a known price where any answer of its model has one: the ledger keeps sums, and 0 dollars may be unknown.
_GROUPS = """
    WITH paid AS (
      SELECT 1 AS one, * FROM current_answers UNION ALL SELECT 1 AS one, * FROM past_answers
    ), priced AS (
      SELECT DISTINCT provider, base_url, model FROM paid WHERE cost_usd IS NOT NULL
    ), used AS (
      SELECT 1 AS one, u.*, p.model IS NULL AS unknown
      FROM every_use u LEFT JOIN priced p ON (u.provider, u.base_url, u.model) = (p.provider, p.base_url, p.model)
    ), bought AS (
      SELECT {by}, count(*) AS answers, sum(prompt_tokens) AS prompt_tokens, sum(output_tokens) AS output_tokens,
             sum(cost_usd) AS cost_usd, count(*) FILTER (cost_usd IS NULL) AS unpriced
      FROM paid GROUP BY {by}
    ), noted AS (
      SELECT {by}, sum(hits) AS hits, sum(failures) AS failures, sum(lost_prompt_tokens) AS lost_prompt_tokens,
             sum(lost_output_tokens) AS lost_output_tokens, sum(lost_usd) AS lost_usd, sum(saved_usd) AS saved_usd,
             sum(hits) FILTER (unknown AND saved_usd = 0) AS unpriced_hits
      FROM used GROUP BY {by}
    )
    SELECT {by}, coalesce(answers, 0), coalesce(hits, 0), coalesce(failures, 0),
           coalesce(prompt_tokens, 0) + coalesce(lost_prompt_tokens, 0),
           coalesce(output_tokens, 0) + coalesce(lost_output_tokens, 0),
           cost_usd, coalesce(lost_usd, 0), coalesce(saved_usd, 0), coalesce(unpriced, 0), coalesce(unpriced_hits, 0)
    FROM bought FULL JOIN noted USING ({by})
    ORDER BY cost_usd DESC NULLS LAST, answers DESC NULLS LAST, {by}
"""


def _groups(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> tuple[Group, ...]:
    columns = ("one", *names)
    rows = connection.execute(_GROUPS.format(by=", ".join(columns))).fetchall()
    return tuple(_group(row[1 : len(columns)], *row[len(columns) :]) for row in rows)


def _group(
    of: tuple[str, ...],
    answers: int,
    hits: int,
    failures: int,
    prompt_tokens: int,
    output_tokens: int,
    cost: float | None,
    lost: float,
    saved: float,
    unpriced: int,
    unpriced_hits: int,
) -> Group:
    known = cost is not None or lost > 0 or not prompt_tokens + output_tokens + answers
    return Group(
        of,
        answers,
        hits,
        failures,
        prompt_tokens,
        output_tokens,
        (cost or 0.0) + lost if known else None,
        saved if saved or hits > unpriced_hits or not hits else None,
        unpriced,
        unpriced_hits,
    )


@dataclass(frozen=True, slots=True)
class Shown:
    """One question: its answer, and earlier ones, newest first."""

    key: str
    answer: Answer
    history: tuple[Answer, ...]

    @property
    def request(self) -> dict[str, Any]:
        """What was asked: messages, model, parameters."""
        parsed: dict[str, Any] = json.loads(self.answer.question)
        return parsed

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "key": self.key,
            "request": self.request,
            "answer": _facts(self.answer),
            "history": [_facts(a) for a in self.history],
        }


def _facts(answer: Answer) -> dict[str, Any]:
    """An answer without its question, which is the key's."""
    facts = {name: getattr(answer, name) for name in ANSWER_FIELDS if name not in ("key", "question")}
    return {**facts, "created_at": utc(answer.created_at)}


def show(memo: Memo, key_or_prefix: str) -> Shown:
    """All that is known of one question. Raises ActError for a prefix of no key, or of several."""

    def ask(connection: duckdb.DuckDBPyConnection) -> Shown:
        key = key_in(connection, key_or_prefix)
        found: list[Answer] = []
        for source in ("current_answers", "past_answers"):
            rows = connection.sql(
                f"SELECT {COLUMNS} FROM {source} WHERE key = ? ORDER BY created_at DESC, id DESC",  # noqa: S608 (ours)
                params=[key],
            )
            found += answers_of(rows.to_arrow_table())
        return Shown(key, found[0], tuple(found[1:]))

    return consult(memo, ask)


def utc(seconds: float | None) -> str | None:
    """A time as text, in UTC to the second."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
