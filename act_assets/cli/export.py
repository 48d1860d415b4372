"""`act export`: the subset or its pairs as JSONL, or a checkpoint as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_assets.cli.options import CheckpointOption, ProfileOption, SeedOption, SizeOption, TaskOption, check_options
from act_assets.cli.text import size_text
from act_assets.conversation import Conversation, PreferencePair
from act_assets.methods.registry import DEFAULT, get_method
from act_assets.release.exports import messages_rows, preference_rows, write_jsonl
from act_assets.rows import read_rows
from act_assets.run import make_run
from resources.artifacts import Key
from resources.errors import ActError


def export(
    what: Annotated[str, typer.Argument(help="messages, preferences or model")],
    to: Annotated[Path, typer.Option("--out", help="the JSONL file to write; of a model, a new folder")],
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
    method: CheckpointOption = DEFAULT,
    adapter: Annotated[bool, typer.Option("--adapter", help="of a model: its LoRA adapter alone")] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="of a model: to the hub as well; needs HF_TOKEN")
    ] = None,
) -> None:
    """Write the subset or its pairs in the published code's JSONL formats, or a checkpoint as a folder with a card.

    transformers and vLLM load the folder of a model as it is.
    """
    if what not in ("messages", "preferences", "model"):
        raise ActError(f"cannot export {what!r}", todo="choose messages or preferences (JSONL), or model (a folder)")
    if what != "model" and (adapter or push):
        raise ActError("--adapter and --push are of a model", todo="act export model --out FOLDER ...")
    check_options(task, train_size, profile)
    chosen, to = get_method(method), to.expanduser().absolute()
    run = make_run(profile, seed, task, train_size)
    if what == "messages":
        subset = run.store.require(Key("train_subset", task, train_size))
        rows = messages_rows(run.task, read_rows(subset.file("train.parquet"), Conversation))
        typer.echo(f"{write_jsonl(to, rows)} lines in {to}")
        return
    if what == "preferences":
        pairs = run.store.require(Key("contrastive_pairs", task, train_size))
        lines = write_jsonl(to, preference_rows(read_rows(pairs.file("pairs.parquet"), PreferencePair)))
        typer.echo(f"{lines} lines in {to}")
        return
    from act_assets.release.publish import export_model  # huggingface_hub

    card = export_model(run, chosen.name, to, adapter=adapter, push=push)
    sizes = [path.stat().st_size for path in to.iterdir()]
    typer.echo(f"{len(sizes)} files, {size_text(sum(sizes))} in {to}")
    if not card.data.get("eval_results"):
        typer.echo("the model card has no figures: the evaluation is missing or not up to date (act run)")
    if push:
        typer.echo(f"pushed to https://huggingface.co/{push} (a new repository is private)")
    elif not adapter:
        typer.echo(f"vllm serve {to}, or AutoModelForCausalLM.from_pretrained: README.md there says how")
