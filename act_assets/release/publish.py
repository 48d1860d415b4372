"""A checkpoint as a folder for people: weights, tokenizer, generation settings and a model card.

    export_model(run, "act", Path("exported"))   # transformers and `vllm serve` load it

The files of the artifact are copied as they are; what is added says how to decode and what it is.
`--push` sends the finished folder to the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from act_assets.methods.registry import get_method
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import stage_key, up_to_date
from act_assets.profile import Profile
from act_assets.release.model_card import CARD, model_card, run_command
from act_assets.run import Run
from act_assets.training.chat_template import ChatFormat
from resources.artifacts import Artifact
from resources.errors import ActError
from resources.files import atomic_dir
from resources.llm.keys import api_keys, redact

TOKEN = "HF_TOKEN"  # noqa: S105  (the variable's name)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
# Where libraries write a folder of this machine.
_ORIGINS = ("_name_or_path", "name_or_path", "base_model_name_or_path")


def checkpoint_of(run: Run, method: str) -> Artifact:
    """The checkpoint that is up to date for a run. Raises ActError saying what makes it."""
    stage = STAGES[get_method(method).checkpoint]
    found = up_to_date(STAGES, stage.name, run)
    if found is None:
        old = run.store.require(stage_key(stage, run))
        raise ActError(
            f"{old.key} is not up to date: settings, prompts or data have changed since it was made",
            where=str(old.path),
            todo=f"rebuild it ({run_command(run, method)}), or undo the change",
        )
    return found


def export_model(run: Run, method: str, folder: Path, *, adapter: bool = False, push: str | None = None) -> ModelCard:
    """Writes `folder`, whole or not at all, and pushes it to the private repository `push`, if any.

    Returns the card, whose `eval_results` are the figures of the evaluation that is up to date.

    Raises ActError where the checkpoint is not there or not up to date, where `folder` is not empty
    or cannot be written, and where the hub cannot be used.
    """
    hub = None if push is None else _hub(push)
    artifact = checkpoint_of(run, method)
    source = artifact.file("adapter" if adapter else "model")
    if adapter and not source.is_dir():
        raise ActError(
            f"{artifact.key} has no adapter: it was trained with all its weights",
            where=str(artifact.path),
            todo="export it without --adapter; train it with policy.lora in the profile",
        )
    try:
        if any(folder.iterdir()) if folder.is_dir() else folder.exists():
            raise ActError(
                "--out is there already and is not an empty folder",
                where=str(folder),
                todo="choose a new folder, or remove this one",
            )
        card = model_card(run, artifact, method, adapter=adapter, push=push, hub=hub)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_dir(folder) as beside:
            _copy(source, beside)
            if not adapter:
                _write_json(beside / "generation_config.json", generation_config(beside, run.profile))
            card.save(beside / CARD)
    except OSError as error:
        raise ActError(
            f"the model cannot be exported: {error.strerror or error}",
            where=str(folder),
            todo="check the disk (df -h), or choose another --out",
        ) from error
    if hub and push:
        _push(hub, push, folder, f"{card.data.get('model_name')}, seed {run.seed}")
    return card


def generation_config(folder: Path, profile: Profile) -> dict[str, Any]:
    """Decoding as in the evaluation, for the tokenizer in `folder`. What the base model ships (a
    repetition penalty, say) is left out: it was not evaluated.

    Greedy decoding names no temperature: transformers calls one beside `do_sample: false` a
    mistake, and refuses to save it again.
    """
    from transformers import AutoTokenizer

    chat = ChatFormat(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    temperature = profile.evaluation.temperature
    return {
        "do_sample": temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        "eos_token_id": chat.end_id,
        "max_new_tokens": profile.policy.max_new_tokens,
        "pad_token_id": chat.pad_id,
        "use_cache": True,
    }


def _hub(repository: str) -> HfApi:
    """The hub with the environment's token. Raises ActError for a wrong name or without it."""
    try:
        validate_repo_id(repository)
        _, _ = repository.split("/")
    except ValueError as error:  # the hub's own HFValidationError is one
        raise ActError(
            f"not a repository of the hub: {repository!r}", todo="write it as user/name, or organisation/name"
        ) from error
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ActError(
            f"{TOKEN} is not set in the environment: nothing was written",
            where=f"repository {repository}",
            todo=f"make a token with the right to write at https://huggingface.co/settings/tokens and export {TOKEN}",
        )
    return HfApi(token=token)


def _push(hub: HfApi, repository: str, folder: Path, message: str) -> None:
    """Uploads a folder to a repository of the hub, made private where it is new."""
    try:
        hub.create_repo(repository, private=True, exist_ok=True, repo_type="model")
        hub.upload_folder(repo_id=repository, folder_path=folder, repo_type="model", commit_message=message)
    except Exception as error:  # the client's own, its HTTP library's and its uploader's
        raise ActError(
            f"the model was not pushed: {redact(str(error) or type(error).__name__, *api_keys(TOKEN))}",
            where=f"repository {repository}; the folder {folder} is whole",
            todo=f"check the network and that {TOKEN} may write to {repository.split('/')[0]}, then push the folder "
            f"(hf upload {repository} {folder}), or remove it and run again",
        ) from None  # the library's own traceback holds the request


def _copy(source: Path, folder: Path) -> None:
    """A model's files without a library's own card, a folder of this machine, or a pickle."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != CARD and path.suffix not in _PICKLES:
            shutil.copyfile(path, folder / path.name)
    for path in folder.glob("*config.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        local = [k for k in _ORIGINS if isinstance(settings.get(k), str) and PurePath(settings[k]).is_absolute()]
        if local:
            _write_json(path, {**settings, **dict.fromkeys(local)})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
