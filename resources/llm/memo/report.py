"""All that a memo holds, for people: the database's rows, and those that are only in journals so
far.

`consult` gives a connection that has both; `stats` sums up what was paid and saved, `show` has one
answer with all that is known of it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from resources.errors import ActError
from resources.llm.memo.database import connect
from resources.llm.memo.journal import records_in
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import ANSWER_FIELDS, Answer, Use
from resources.llm.memo.schema import ANSWERS, USES, answers_of, migrate, to_arrow

PORTION = 4_000  # rows read at a time where all are wanted
COLUMNS = ", ".join(ANSWER_FIELDS)
MIN_PREFIX = 6  # hex digits
T = TypeVar("T")

# What is in a journal and in the database was folded while we looked.
_VIEWS = """
    CREATE TEMP TABLE fresh AS SELECT DISTINCT ON (key, id) *
      FROM unfolded_answers ANTI JOIN answers USING (key, id) ANTI JOIN history USING (key, id);
    CREATE TEMP TABLE ahead AS
      SELECT n.key, n.id FROM (
        SELECT * FROM fresh QUALIFY row_number() OVER (PARTITION BY key ORDER BY created_at DESC, id DESC) = 1
      ) n LEFT JOIN answers a ON a.key = n.key
      WHERE a.key IS NULL OR (n.created_at, n.id) > (a.created_at, a.id);
    CREATE TEMP VIEW current_answers AS
      SELECT * FROM answers ANTI JOIN ahead USING (key)
      UNION ALL SELECT * FROM fresh SEMI JOIN ahead USING (key, id);
    CREATE TEMP VIEW past_answers AS
      SELECT * FROM history
      UNION ALL SELECT * FROM answers SEMI JOIN ahead USING (key)
      UNION ALL SELECT * FROM fresh ANTI JOIN ahead USING (key, id);
    CREATE TEMP TABLE fresh_uses AS SELECT DISTINCT ON (id) * FROM unfolded_uses ANTI JOIN uses USING (id);
    CREATE TEMP VIEW every_use AS SELECT * FROM uses UNION ALL SELECT * FROM fresh_uses;
"""


def consult(memo: Memo, ask: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """What `ask` makes of a read-only connection that has, beside the tables (schema.py), these:

        current_answers     the answer of every key
        past_answers        those that a later one replaced
        every_use           the ledger
        fresh, fresh_uses   the rows of the above that are only in journals

    Nobody can write to the database meanwhile. `ask` is called again where the database turns out to be damaged.
    """
    unfolded = records_in(memo.journal_folder)  # before the database: what is folded meanwhile is in both, not in none

    def work(connection: duckdb.DuckDBPyConnection | None) -> T:
        if connection is None:
            with connect() as empty:
                migrate(empty, str(memo.database.path))
                return work(empty)
        connection.register("unfolded_answers", to_arrow([r for r in unfolded if isinstance(r, Answer)], ANSWERS))
        connection.register("unfolded_uses", to_arrow([r for r in unfolded if isinstance(r, Use)], USES))
        connection.execute(_VIEWS)
        return ask(connection)

    return memo.database.ask(work)


def has_answers(folder: Path) -> bool:
    """Whether anything has ever been kept in a memo folder; creates nothing."""
    return any(any(folder.glob(pattern)) for pattern in ("memo.duckdb*", "archive/*", "journal/*"))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows: those of one of the keys, of one of the models and so on; what is empty does not
    filter. `before`: created earlier than this, in seconds since 1970."""

    keys: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    before: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) not in ((), None) for f in fields(self))

    def where(self) -> tuple[str, list[Any]]:
        """A condition in SQL, and its parameters."""
        conditions = ["true"]
        parameters: list[Any] = []
        for column in ("key", "model", "role", "asset", "partition"):
            if chosen := getattr(self, column + "s"):
                conditions.append(f"{column} IN (SELECT unnest(?::VARCHAR[]))")
                parameters.append(list(chosen))
        if self.before is not None:
            conditions.append("created_at < make_timestamp(?::BIGINT)")
            parameters.append(round(self.before * 1e6))
        return " AND ".join(conditions), parameters


def age_s(text: str) -> float:
    """Seconds of an age like 90d or 36h. Raises ActError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([dh])", text.strip())
    if not match:
        raise ActError(f"{text!r} is not an age", todo="write a number with d (days) or h (hours), for example 90d")
    return float(match[1]) * {"d": 86_400, "h": 3_600}[match[2]]


def portions(connection: duckdb.DuckDBPyConnection, source: str, filters: Filters) -> Iterator[pa.Table]:
    """The rows of `source` (a table, or a query in brackets) that pass, oldest first, a few thousand at a time.

    One sorted query would need the memory, or the disk, for all rows at once.
    """
    condition, parameters = filters.where()
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE chosen AS
          SELECT created_at, id, key,
                 (row_number() OVER (ORDER BY created_at, id, key) - 1) // {PORTION} AS portion
          FROM {source} WHERE {condition}
        """,  # noqa: S608 (names and conditions of ours)
        parameters,
    )
    bounds = connection.execute(
        "SELECT portion, min(created_at), max(created_at) FROM chosen GROUP BY portion ORDER BY portion"
    ).fetchall()
    for portion, first, last in bounds:
        rows = connection.sql(
            f"""
            SELECT {COLUMNS} FROM {source} s
            SEMI JOIN (SELECT key, id FROM chosen WHERE portion = ?) USING (key, id)
            WHERE created_at BETWEEN ? AND ? ORDER BY created_at, id, key
            """,  # noqa: S608 (names of ours)
            params=[portion, first, last],
        )
        yield rows.to_arrow_table().cast(ANSWERS)


def key_in(connection: duckdb.DuckDBPyConnection, prefix: str) -> str:
    """The one key of the memo that begins so. Raises ActError where none or several do."""
    rows = connection.execute(
        "SELECT DISTINCT key FROM (SELECT key FROM current_answers UNION ALL SELECT key FROM past_answers) "
        "WHERE starts_with(key, ?) ORDER BY key LIMIT 5",
        [checked_prefix(prefix)],
    ).fetchall()
    return the_one([row[0] for row in rows], prefix, "look at act memo stats; act memo why-miss explains a question")


def checked_prefix(prefix: str) -> str:
    """A key or the beginning of one, in small letters. Raises ActError where it cannot be one."""
    wanted = prefix.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", wanted):
        raise ActError(f"{prefix!r} is not a key", todo=f"give {MIN_PREFIX} to 64 hex digits: a key or its beginning")
    return wanted


def the_one(keys: list[str], prefix: str, todo: str) -> str:
    """The only one of the keys that were found. Raises ActError where there are none or several."""
    if not keys:
        raise ActError(f"no key begins with {prefix}", todo=todo)
    if len(keys) > 1:
        named = ", ".join(key[:16] for key in keys[:4]) + (" ..." if len(keys) > 4 else "")
        raise ActError(f"several keys begin with {prefix}: {named}", todo="give more digits")
    return keys[0]


# --- sums -----------------------------------------------------------------------------------------------------------

GROUPINGS = ("model", "role", "asset", "partition")


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """What the calls of one model, role and so on came to (`of`, by the names of the grouping).

    `answers` are paid calls, replaced answers among them; tokens and `cost_usd` include what failed
    calls were charged. `unpriced` answers and `unpriced_hits` have no known price and are in no sum
    of dollars; where nothing has a known price, the sum is None.
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

    def to_json(self) -> dict[str, Any]:
        """The sums as plain JSON."""
        return {**{k: v for k, v in asdict(self).items() if k != "of"}, "hit_rate": self.hit_rate}


@dataclass(frozen=True, slots=True)
class Stats:
    """The groups, dearest first, and the whole. Times in seconds since 1970; `unfolded` are records
    that are only in journals so far; `database_bytes` is the size of the database's file."""

    by: tuple[str, ...]
    groups: tuple[UsageGroup, ...] = ()
    total: UsageGroup = UsageGroup(())
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
            "groups": [{**dict(zip(self.by, g.of, strict=True)), **g.to_json()} for g in self.groups],
            "total": self.total.to_json(),
            "answers": self.answers,
            "history": self.history,
            "database_bytes": self.database_bytes,
            "unfolded_records": self.unfolded,
            "oldest_answer": utc(self.oldest),
            "newest_answer": utc(self.newest),
        }


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
        answers, history, *others = counted
        path = memo.database.path
        size = path.stat().st_size if path.exists() else 0
        total = _groups(connection, ()) or (UsageGroup(()),)
        return Stats(names, _groups(connection, names), total[0], answers, history, size, *others)

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
    SELECT {by}, coalesce(answers, 0) AS paid_answers, coalesce(hits, 0) AS free_hits, coalesce(failures, 0),
           coalesce(prompt_tokens, 0) + coalesce(lost_prompt_tokens, 0) AS prompt,
           coalesce(output_tokens, 0) + coalesce(lost_output_tokens, 0) AS output,
           CASE WHEN cost_usd IS NOT NULL OR lost_usd > 0 OR prompt + output + paid_answers = 0
                THEN coalesce(cost_usd, 0.0) + coalesce(lost_usd, 0.0) END,
           CASE WHEN saved_usd <> 0 OR free_hits > coalesce(unpriced_hits, 0) OR free_hits = 0
                THEN coalesce(saved_usd, 0.0) END,
           coalesce(unpriced, 0), coalesce(unpriced_hits, 0)
    FROM bought FULL JOIN noted USING ({by})
    ORDER BY cost_usd DESC NULLS LAST, answers DESC NULLS LAST, {by}
"""


def _groups(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> tuple[UsageGroup, ...]:
    columns = ("one", *names)
    rows = connection.execute(_GROUPS.format(by=", ".join(columns))).fetchall()
    return tuple(UsageGroup(row[1 : len(columns)], *row[len(columns) :]) for row in rows)


def show(memo: Memo, key_or_prefix: str) -> list[Answer]:
    """The answer to one question, and the earlier ones, newest first. Raises ActError as `key_in`."""

    def ask(connection: duckdb.DuckDBPyConnection) -> list[Answer]:
        key = key_in(connection, key_or_prefix)
        found: list[Answer] = []
        for source in ("current_answers", "past_answers"):
            sql = f"SELECT {COLUMNS} FROM {source} WHERE key = ? ORDER BY created_at DESC, id DESC"  # noqa: S608 (ours)
            found += answers_of(connection.sql(sql, params=[key]).to_arrow_table())
        return found

    return consult(memo, ask)


def shown_json(answers: Sequence[Answer]) -> dict[str, Any]:
    """What `show` has found, as plain JSON; times are texts (UTC)."""
    facts = [{**asdict(answer), "created_at": utc(answer.created_at)} for answer in answers]
    (key, *_), (question, *_) = zip(*((f.pop("key"), f.pop("question")) for f in facts), strict=True)
    return {"key": key, "request": json.loads(question), "answer": facts[0], "history": facts[1:]}


def utc(seconds: float | None) -> str | None:
    """A time as text, in UTC to the second."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
