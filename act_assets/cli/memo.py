"""`act memo`: look at the paid answers, share them, delete them, check that they are whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from act_assets.home import memo_folder
from resources.errors import ActError
from resources.llm.memo import explain, import_export, maintain, report
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import key_of
from resources.llm.memo.report import Filters, age_s, checked_prefix, consult, has_answers, key_in

if TYPE_CHECKING:
    from resources.llm.memo.explain import Miss
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

NOTHING_YET = "nothing has been kept yet in"

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
    folder = memo_folder()
    _tell(as_json, {"path": str(folder), "exists": folder.is_dir()}, str(folder))


@memo_app.command(epilog="Example: act memo stats --by asset,partition")
def stats(
    by: Annotated[str, typer.Option(help="any of model, role, asset, partition, with commas")] = "model,role",
    as_json: JsonOption = False,
) -> None:
    """Show what was paid, what came from the memo, and what that saved."""
    names = report.grouping(by)
    with _memo(as_json) as memo:
        found = report.stats(memo, names) if memo else report.Stats(names)
    _tell(as_json, found.to_json())
    if not as_json:
        show_stats(found)


@memo_app.command(epilog="Example: act memo show 3f9a1c")
def show(
    key: Annotated[str, typer.Argument(help="a key, or 6 or more digits that it begins with")],
    as_json: JsonOption = False,
) -> None:
    """Show one question, its answer, and earlier answers."""
    report.checked_prefix(key)
    with _memo(as_json) as memo:
        found = report.show(memo, key) if memo else []
    _tell(as_json, report.shown_json(found) if found else None, *(answer_text(found) if found else ()))


@memo_app.command("why-miss", epilog="Example: act memo why-miss 3f9a1c, or act memo why-miss --request question.json")
def why_miss(
    key: Annotated[str | None, typer.Argument(help="the key that offline mode did not find, or its beginning")] = None,
    request: Annotated[
        typer.FileBinaryRead | None, typer.Option(help="a file with a question as JSON, - for standard input")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why the memo does not hold a question: the nearest one that it holds, and the fields that differ."""
    if (key is None) == (request is None):
        raise ActError("one question is needed", todo="give a key, or --request with a file")
    miss: Miss | None = None
    if request is not None:
        question, role, label = explain.read_question(request.read()), "", ""
    else:
        miss = explain.find_miss(memo_folder(), str(key))
        question, role, label = (miss.question, miss.role, miss.label) if miss else ("", "", "")
    with _memo(as_json) as memo:
        if memo is None:
            found = explain.Explanation(key_of(question) if question else str(key), empty=True)
        elif question:
            found = explain.why_miss(memo, question, role, label)
        else:  # no offline run has missed it
            try:
                held = report.consult(memo, lambda connection: report.key_in(connection, str(key)))
            except ActError as error:
                raise ActError(
                    f"{error.what}, and no offline run has missed one", todo="give the question itself with --request"
                ) from error
            found = explain.Explanation(held, held=True)
    _tell(as_json, found.to_json(), *explanation_text(found, miss))


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
    with _memo(as_json) as memo:
        filters = _filters(memo, older_than, key, model, role, asset, partition)
        found = import_export.export(memo, to, filters, history) if memo else import_export.Exported()
    what = f"{counted(found.answers, found.history)} in {to}, {size_text(found.bytes)}; prompts and answers in clear"
    _tell(as_json, asdict(found), *([what] if memo else ()))


@memo_app.command("import", epilog="Example: act memo import answers.parquet")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file that act memo export has written")],
    as_json: JsonOption = False,
) -> None:
    """Add a file's answers to the memo. Every row is checked; unsound ones are left out, and the exit code is 1."""
    if not file.is_file():
        raise ActError(f"no such file: {file}", todo="give a file that act memo export has written")
    with closing(Memo(memo_folder())) as memo:
        found = import_export.import_(memo, file)
    what = f"{found.added:,} added, {found.present:,} there already, {found.to_history:,} older than what is there"
    rejected = [f"{found.rejected:,} rows rejected:", *(f"  {reason}" for reason in found.reasons)]
    _tell(as_json, asdict(found), what, *(rejected if found.rejected else ()))
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
    with _memo(as_json) as memo:
        filters = _filters(memo, older_than, key, model, role, asset, partition)
        if not filters and not history:
            raise ActError("nothing is chosen to be deleted", todo="give a filter, for example --older-than 90d")
        dry = maintain.Pruned(not yes)
        found = maintain.prune(memo, filters, history_only=history, dry_run=not yes) if memo else dry
    _tell(as_json, asdict(found), *(pruned_text(found) if memo else ()))


@memo_app.command(epilog="Example: act memo verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="make the database and the archive whole again")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything that the memo has on disk; problems end with exit code 1."""
    there = report.has_answers(memo_folder())
    found = maintain.verify(memo_folder(), repair) if there else maintain.Verdict()
    lines = verdict_text(found) if there else [f"{NOTHING_YET} {memo_folder()}"]
    _tell(as_json, {"sound": not found.problems, **asdict(found)}, *lines)
    if found.problems:
        raise typer.Exit(1)


@contextmanager
def _memo(as_json: bool) -> Iterator[Memo | None]:
    """The memo; None, and nothing is created, where nothing has been kept yet."""
    if not has_answers(memo_folder()):
        if not as_json:
            say(f"{NOTHING_YET} {memo_folder()}")
        yield None
        return
    with closing(Memo(memo_folder())) as memo:
        yield memo


def _filters(memo: Memo | None, older_than: str | None, keys: list[str] | None, *others: list[str] | None) -> Filters:
    """What the options choose, in the order of `Filters`; the beginnings of keys become keys. Raises ActError."""
    found = tuple(checked_prefix(key) for key in keys or ())
    if memo and found:
        found = consult(memo, lambda connection: tuple(key_in(connection, key) for key in found))
    before = time.time() - age_s(older_than) if older_than else None
    models, roles, assets, partitions = (tuple(chosen or ()) for chosen in others)
    return Filters(found, models, roles, assets, partitions, before)


def _tell(as_json: bool, document: Any, *lines: str) -> None:
    """Prints what was found, as a JSON document or in words."""
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        say(*lines)
