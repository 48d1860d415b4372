"""`act export`: the subset or its pairs as JSONL, or a checkpoint as a folder."""

from __future__ import annotations

from pathlib import Path

import typer

from act_assets.cli.text import size_text
from act_assets.conversation import Conversation, PreferencePair
from act_assets.pipeline.stage import StageRun
from act_assets.release import check_method
from act_assets.release.exports import messages_rows, preference_rows, write_jsonl
from act_assets.rows import read_rows
from resources.artifacts import Key


def export_rows(run: StageRun, what: str, to: Path) -> None:
    """`act export messages` and `act export preferences`."""
    if what == "messages":
        subset = run.store.require(Key("train_subset", run.task.name, run.train_size))
        rows = messages_rows(run.task, read_rows(subset.file("train.parquet"), Conversation))
        lines = write_jsonl(to, rows)
    else:
        pairs = run.store.require(Key("contrastive_pairs", run.task.name, run.train_size))
        lines = write_jsonl(to, preference_rows(read_rows(pairs.file("pairs.parquet"), PreferencePair)))
    typer.echo(f"{lines} lines in {to}")


def export_checkpoint(run: StageRun, method: str, folder: Path, *, adapter: bool, push: str | None) -> None:
    """`act export model`: writes the folder and says what to do with it."""
    check_method(method)
    from act_assets.release.publish import export_model  # huggingface_hub

    folder = folder.expanduser()
    card = export_model(run, method, folder, adapter=adapter, push=push)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    typer.echo(f"{len(sizes)} files, {size_text(sum(sizes))} in {folder}")
    if not card.data.get("eval_results"):
        typer.echo("the model card has no figures: the evaluation is missing or not up to date (act run)")
    if push:
        typer.echo(f"pushed to https://huggingface.co/{push} (a new repository is private)")
    elif not adapter:
        typer.echo(f"vllm serve {folder}, or AutoModelForCausalLM.from_pretrained: README.md there says how")
