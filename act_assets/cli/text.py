"""What `act memo` says in words and tables. Texts of others are shown with their control characters escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resources.llm.memo.explain import visible
from resources.llm.memo.report import utc

if TYPE_CHECKING:
    from resources.llm.memo.explain import Explanation, Miss
    from resources.llm.memo.maintain import Pruned, Verdict
    from resources.llm.memo.records import Answer
    from resources.llm.memo.report import Stats, UsageGroup

PIPE_WIDTH = 160  # characters of a table, where no terminal shows it
VALUE_WIDTH = 120  # characters of a shown value

out = Console()


def say(*lines: str) -> None:
    """Plain lines; what a terminal would obey is escaped."""
    for line in lines:
        out.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def counted(answers: int, history: int) -> str:
    """How many answers."""
    return f"{answers:,} answers" + (f" and {history:,} earlier ones" if history else "")


def size_text(number: int) -> str:
    """A number of bytes."""
    for size, unit in ((2**30, "GB"), (2**20, "MB"), (2**10, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def dollars(amount: float | None, unpriced: int) -> str:
    """US dollars; what has no known price is a question mark."""
    if amount is None:
        return "?"
    known = f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.4f}"
    known = "<0.0001" if 0 < amount < 0.0001 else known
    return f"{known} + ?" if unpriced else known


def show_stats(stats: Stats) -> None:
    """A table of the groups and the whole."""
    table = Table(box=None, header_style="")
    for name in stats.by:
        table.add_column(name, overflow="fold")
    for name in ("answers", "hits", "hit rate", "failed", "tokens in", "out", "US$", "saved US$"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in stats.groups:
        table.add_row(*(escape(name) or "-" for name in group.of), *_cells(group))
    if stats.by and len(stats.groups) != 1:
        table.add_row("all", *[""] * (len(stats.by) - 1), *_cells(stats.total))
    (out if out.is_terminal else Console(width=PIPE_WIDTH)).print(table)
    total = stats.total
    if total.unpriced or total.unpriced_hits:
        say(f"?: no price is known for {total.unpriced:,} answers and {total.unpriced_hits:,} hits; no sum has them")
    unfolded = f", {stats.unfolded:,} records in journals" if stats.unfolded else ""
    say(f"{counted(stats.answers, stats.history)}, database {size_text(stats.database_bytes)}{unfolded}")
    if stats.oldest is not None and stats.newest is not None:
        say(f"from {_time(stats.oldest)} to {_time(stats.newest)}")


def _cells(group: UsageGroup) -> list[str]:
    rate = "-" if group.hit_rate is None else f"{group.hit_rate:.1%}"
    counts = [f"{group.answers:,}", f"{group.hits:,}", rate, f"{group.failures:,}"]
    tokens = [f"{group.prompt_tokens:,}", f"{group.output_tokens:,}"]
    return [*counts, *tokens, dollars(group.cost_usd, group.unpriced), dollars(group.saved_usd, group.unpriced_hits)]


def answer_text(answers: Sequence[Answer]) -> list[str]:
    """One question and its answers, the newest first."""
    answer, *history = answers
    request = json.loads(answer.question)
    lines = [f"key          {answer.key}", *_facts(answer)]
    for name in sorted(request.keys() - {"messages", "provider", "model", "key_version"}):
        lines.append(f"{name:<12} {json.dumps(request[name], sort_keys=True)}")
    for message in request.get("messages", []):
        lines += ["", f"[{message.get('role')}]", *str(message.get("content")).split("\n")]
    lines += ["", "[answer]", *answer.text.split("\n")]
    for earlier in history:
        lines += ["", f"[earlier answer] {_time(earlier.created_at)}", *_facts(earlier), *earlier.text.split("\n")]
    return lines


def _facts(answer: Answer) -> list[str]:
    cost = "price not known" if answer.cost_usd is None else f"US$ {answer.cost_usd:.6f}"
    asset, run = f"asset {answer.asset or '-'} {answer.partition}".rstrip(), f"run {answer.run or '-'}"
    return [
        f"model        {answer.model} at {answer.provider} (reported: {answer.reported_model})",
        f"asked by     {answer.role}, {answer.label}, {asset}, {run}",
        f"answered     {_time(answer.created_at)}, after {answer.latency_s:.1f} s",
        f"tokens       {answer.prompt_tokens:,} in, {answer.output_tokens:,} out, {cost}",
    ]


def explanation_text(found: Explanation, miss: Miss | None) -> list[str]:
    """Why a question is not in the memo."""
    asked = f", asked by {miss.role} for {miss.label} at {_time(miss.at)}" if miss else ""
    lines = [f"key {found.key[:16]}{asked}"]
    if found.held:
        return [*lines, "the memo holds it: act memo show has the answer"]
    near = found.nearest
    if near is None:
        return [*lines, "the memo does not hold it: it is empty"]
    how = {
        "same messages": "it has the same messages",
        "same example": f"of the same example; its messages are {found.similarity:.0%} alike",
        "similar messages": f"its messages are the most alike, {found.similarity:.0%}",
    }[found.how]
    asker = f"{near.role}, {near.label}, asset {near.asset or '-'}, {_time(near.created_at)}"
    lines += ["the memo does not hold it", f"nearest: {near.key[:16]}, {how}", f"  {near.model}, {asker}"]
    if found.unsearched:
        lines.append(f"  {found.unsearched:,} older questions were not compared in full, for want of time")
    for one in found.differences:
        if one.diff:
            lines += [f"{one.path}: - stored, + asked", *(f"    {line}" for line in one.diff)]
        else:
            lines.append(f"{one.path}: asked {_value(one.asked)}, stored {_value(one.stored)}")
    return lines


def pruned_text(pruned: Pruned) -> list[str]:
    """What was deleted, or would be."""
    what = "would delete" if pruned.dry_run else "deleted"
    unknown = f" ({pruned.unpriced:,} of them of unknown price)" if pruned.unpriced else ""
    cost = "" if pruned.cost_usd is None else f", US$ {dollars(pruned.cost_usd, 0)} paid"
    tokens = f"{pruned.prompt_tokens:,} tokens in, {pruned.output_tokens:,} out"
    lines = [f"{what} {counted(pruned.answers, pruned.history)}: {tokens}{cost}{unknown}"]
    if pruned.restored:
        lines.append(f"{pruned.restored:,} earlier answers are current again")
    if pruned.unfolded:
        lines.append(f"{pruned.unfolded:,} that match are in journals of running processes and stay: run again later")
    if pruned.aside:
        lines.append(f"files set aside as damaged may hold deleted answers: {', '.join(pruned.aside)}")
    if pruned.dry_run and pruned.answers + pruned.history:
        lines.append("nothing was changed; --yes deletes them")
    return lines


def verdict_text(verdict: Verdict) -> list[str]:
    """What a check found."""
    groups = (("done", verdict.repaired), ("problem", verdict.problems), ("note", verdict.notes))
    lines = [f"{mark:<8}{line}" for mark, found in groups for line in found]
    state = "not sound" if verdict.problems else "sound"
    files = f"{verdict.segments} files of the archive, {verdict.journals} journals"
    return [*lines, f"{state}: {counted(verdict.answers, verdict.history)}, {files}"]


def _time(seconds: float) -> str:
    return (utc(seconds) or "").replace("T", " ").replace("Z", " UTC")


def _value(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= VALUE_WIDTH else f"{value[:VALUE_WIDTH]}..."
