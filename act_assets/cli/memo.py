"""`act memo`: look at the paid answers, share them, delete them, check that they are whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from act_assets.cli.text import (
    answer_text,
    counted,
    explanation_text,
    pruned_text,
    say,
    show_stats,
    size_text,
    verdict_text,
)
from resources.errors import ActError

if TYPE_CHECKING:
    from resources.llm.memo.explain import Explanation, Miss
    from resources.llm.memo.memo import Memo
    from resources.llm.memo.report import Filters

memo_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The memo of paid LLM answers: none is paid for twice.\n\n"
    "Examples:\n\n"
    "  act memo stats --by asset,partition\n\n"
    "  act memo why-miss 3f9a1c\n\n"
    "  act memo export answers.parquet --role generator\n\n"
    "  act memo prune --model gpt-4o --older-than 90d\n\n"
    "  act memo verify",
)

JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document")]
KeyOption = Annotated[list[str] | None, typer.Option("--key", help="a key or its beginning; may be given repeatedly")]
ModelOption = Annotated[list[str] | None, typer.Option("--model", help="only of this model; repeatable")]
RoleOption = Annotated[list[str] | None, typer.Option("--role", help="only of this role; repeatable")]
AssetOption = Annotated[list[str] | None, typer.Option("--asset", help="only asked for this asset; repeatable")]
PartitionOption = Annotated[
    list[str] | None, typer.Option("--partition", help="only asked for this partition, for example pacific|50")
]
AgeOption = Annotated[str | None, typer.Option("--older-than", help="only older ones: 90d (days) or 36h (hours)")]


@memo_app.command(epilog="Example: act memo path")
def path(as_json: JsonOption = False) -> None:
    """Print the memo's folder."""
    folder = _folder()
    if as_json:
        _document({"path": str(folder), "exists": folder.is_dir()})
    else:
        say(str(folder))


@memo_app.command(epilog="Example: act memo stats --by asset,partition")
def stats(
    by: Annotated[str, typer.Option(help="any of model, role, asset, partition, with commas")] = "model,role",
    as_json: JsonOption = False,
) -> None:
    """Show what was paid, what came from the memo, and what that saved."""
    from resources.llm.memo.report import Stats, grouping
    from resources.llm.memo.report import stats as stats_of

    names = grouping(by)
    with _memo(as_json) as memo:
        found = stats_of(memo, names) if memo else Stats(names)
    if as_json:
        _document(found.to_json())
    else:
        show_stats(found)


@memo_app.command(epilog="Example: act memo show 3f9a1c")
def show(
    key: Annotated[str, typer.Argument(help="a key, or 6 or more digits that it begins with")],
    as_json: JsonOption = False,
) -> None:
    """Show one question, its answer, and earlier answers."""
    from resources.llm.memo.report import checked_prefix, shown_json
    from resources.llm.memo.report import show as shown_of

    checked_prefix(key)
    with _memo(as_json) as memo:
        found = shown_of(memo, key) if memo else []
    if as_json:
        _document(shown_json(found) if found else None)
    elif found:
        say(*answer_text(found))


@memo_app.command("why-miss", epilog="Example: act memo why-miss 3f9a1c, or act memo why-miss --request question.json")
def why_miss(
    key: Annotated[str | None, typer.Argument(help="the key that offline mode did not find, or its beginning")] = None,
    request: Annotated[
        typer.FileBinaryRead | None, typer.Option(help="a file with a question as JSON, - for standard input")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why the memo does not hold a question: the nearest one that it holds, and the fields that differ."""
    from resources.llm.memo.explain import Explanation, find_miss, read_question
    from resources.llm.memo.explain import why_miss as explain
    from resources.llm.memo.records import key_of

    if (key is None) == (request is None):
        raise ActError("one question is needed", todo="give a key, or --request with a file")
    miss: Miss | None = None
    if request is not None:
        question, role, label = read_question(request.read()), "", ""
    else:
        miss = find_miss(_folder(), str(key))
        question, role, label = (miss.question, miss.role, miss.label) if miss else ("", "", "")
    with _memo(as_json) as memo:
        if question:
            found = explain(memo, question, role, label) if memo else Explanation(key_of(question), empty=True)
        else:
            found = _never_missed(memo, str(key))
    if as_json:
        _document(found.to_json())
    else:
        say(*explanation_text(found, miss))


def _never_missed(memo: Memo | None, key: str) -> Explanation:
    """For a key that no offline run has missed. Raises ActError where the memo does not hold it either."""
    from resources.llm.memo.explain import Explanation
    from resources.llm.memo.report import consult, key_in

    if memo is None:
        return Explanation(key, empty=True)
    try:
        return Explanation(consult(memo, lambda connection: key_in(connection, key)), held=True)
    except ActError as error:
        raise ActError(
            f"{error.what}, and no offline run has missed one", todo="give the question itself with --request"
        ) from error


@memo_app.command(epilog="Example: act memo export answers.parquet --role generator --history")
def export(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="the .parquet or .jsonl file to write")],
    key: KeyOption = None,
    model: ModelOption = None,
    role: RoleOption = None,
    asset: AssetOption = None,
    partition: PartitionOption = None,
    older_than: AgeOption = None,
    history: Annotated[bool, typer.Option("--history", help="earlier answers too")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write answers to a file, for others to import. Prompts and answers are in it in clear."""
    from resources.llm.memo.import_export import Exported
    from resources.llm.memo.import_export import export as export_of

    with _memo(as_json) as memo:
        filters = _filters(memo, key, model, role, asset, partition, older_than)
        found = export_of(memo, to, filters, history) if memo else Exported(0, 0, 0)
    if as_json:
        _document(asdict(found))
    elif memo:
        number = counted(found.answers, found.history)
        say(f"{number} in {to}, {size_text(found.bytes)}; prompts and answers in clear")


@memo_app.command("import", epilog="Example: act memo import answers.parquet")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file that act memo export has written")],
    as_json: JsonOption = False,
) -> None:
    """Add a file's answers to the memo. Every row is checked; unsound ones are left out, and the exit code is 1."""
    from resources.llm.memo.import_export import import_ as import_of
    from resources.llm.memo.memo import Memo

    if not file.is_file():
        raise ActError(f"no such file: {file}", todo="give a file that act memo export has written")
    memo = Memo(_folder())
    try:
        found = import_of(memo, file)
    finally:
        memo.close()
    if as_json:
        _document(asdict(found))
    else:
        say(f"{found.added:,} added, {found.present:,} there already, {found.to_history:,} older than what is there")
        if found.rejected:
            say(f"{found.rejected:,} rows rejected:", *(f"  {reason}" for reason in found.reasons))
    if found.rejected:
        raise typer.Exit(1)


@memo_app.command(epilog="Example: act memo prune --model gpt-4o --older-than 90d --yes")
def prune(
    key: KeyOption = None,
    model: ModelOption = None,
    role: RoleOption = None,
    asset: AssetOption = None,
    partition: PartitionOption = None,
    older_than: AgeOption = None,
    history: Annotated[bool, typer.Option("--history", help="only earlier answers, not the current ones")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only say what would be deleted")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete answers for good: those that match all of the filters, of which at least one is needed."""
    from resources.llm.memo.maintain import Pruned
    from resources.llm.memo.maintain import prune as prune_of

    with _memo(as_json) as memo:
        filters = _filters(memo, key, model, role, asset, partition, older_than)
        if not filters and not history:
            raise ActError("nothing is chosen to be deleted", todo="give a filter, for example --older-than 90d")
        found = prune_of(memo, filters, history_only=history, dry_run=not yes) if memo else Pruned(not yes)
    if as_json:
        _document(asdict(found))
    elif memo:
        say(*pruned_text(found))


@memo_app.command(epilog="Example: act memo verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="make the database and the archive whole again")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything that the memo has on disk; problems end with exit code 1."""
    from resources.llm.memo.maintain import Verdict
    from resources.llm.memo.maintain import verify as verify_of
    from resources.llm.memo.report import has_answers

    there = has_answers(_folder())
    found = verify_of(_folder(), repair) if there else Verdict()
    if as_json:
        _document({"sound": not found.problems, **asdict(found)})
    else:
        say(*(verdict_text(found) if there else [_nothing_yet()]))
    if found.problems:
        raise typer.Exit(1)


def _folder() -> Path:
    from act_assets.home import memo_folder

    return memo_folder()


def _nothing_yet() -> str:
    return f"nothing has been kept yet in {_folder()}"


@contextmanager
def _memo(as_json: bool) -> Iterator[Memo | None]:
    """The memo; None, and nothing is created, where nothing has been kept yet."""
    from resources.llm.memo.memo import Memo
    from resources.llm.memo.report import has_answers

    if not has_answers(_folder()):
        if not as_json:
            say(_nothing_yet())
        yield None
        return
    memo = Memo(_folder())
    try:
        yield memo
    finally:
        memo.close()


def _filters(
    memo: Memo | None,
    keys: list[str] | None,
    models: list[str] | None,
    roles: list[str] | None,
    assets: list[str] | None,
    partitions: list[str] | None,
    older_than: str | None,
) -> Filters:
    """What the options choose; the beginnings of keys become keys. Raises ActError."""
    from resources.llm.memo.report import Filters, age_s, checked_prefix, consult, key_in

    found = tuple(checked_prefix(key) for key in keys or ())
    if memo and found:
        found = consult(memo, lambda connection: tuple(key_in(connection, key) for key in found))
    before = time.time() - age_s(older_than) if older_than else None
    return Filters(found, tuple(models or ()), tuple(roles or ()), tuple(assets or ()), tuple(partitions or ()), before)


def _document(value: Any) -> None:
    print(json.dumps(value, indent=1))
