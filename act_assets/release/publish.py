"""A checkpoint as a folder that people can use: weights, tokenizer, generation settings and a model card.

    export_model(run, "act", Path("exported"))        # transformers and `vllm serve` load the folder

The files of the artifact are copied as they are; what is added says how to decode and what it is. `--push` sends the
finished folder to the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import StageRun, stage_key, up_to_date
from act_assets.profile import Profile
from act_assets.release.card_facts import CARD, Method, ModelInfo, card_of
from act_assets.release.model_card import card_text
from resources.artifacts import Artifact
from resources.errors import ActError
from resources.files import sync
from resources.llm.keys import api_keys, redact

TOKEN = "HF_TOKEN"  # noqa: S105  (the variable's name)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_ORIGINS = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
)  # where libraries write a folder of this machine
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Hub(ModelInfo, Protocol):
    """What is needed of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool, repo_type: str) -> Any: ...
    def upload_folder(self, *, repo_id: str, folder_path: Path, repo_type: str, commit_message: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to. `url` where it was pushed."""

    folder: Path
    files: int
    bytes: int
    evaluated: bool
    url: str | None = None


def hub_api(token: str) -> Hub:
    """The real hub."""
    from huggingface_hub import HfApi

    api: Hub = HfApi(token=token)
    return api


def checkpoint_of(run: StageRun, method: str) -> Artifact:
    """The checkpoint that is up to date for a run. Raises ActError saying what makes it."""
    stage = STAGES[f"{method}_checkpoint"]
    found = up_to_date(STAGES, stage.name, run)
    if found is None:
        old = run.store.require(stage_key(stage, run))
        raise ActError(
            f"{old.key} is not up to date: settings, prompts or data have changed since it was made",
            where=str(old.path),
            todo=f"make it anew (act run --task {run.task.name} --train-size {run.train_size} --method {method} "
            f"--profile ... --seed {run.seed}), or undo the change",
        )
    return found


def generation_settings(end_id: int, pad_id: int, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """`generation_config.json`: decoding as in the evaluation. What the base model ships (a repetition penalty, say) is
    left out: it was not evaluated.

    Greedy decoding names no temperature: transformers calls one beside `do_sample: false` a mistake, and refuses to
    save it again.
    """
    settings: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    return settings | {
        "eos_token_id": end_id,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": pad_id,
        "use_cache": True,
    }


def export_model(
    run: StageRun,
    method: Method,
    folder: Path,
    *,
    adapter: bool = False,
    push: str | None = None,
    hub: Callable[[str], Hub] = hub_api,
) -> Exported:
    """Writes `folder`, whole or not at all, and pushes it to the private repository `push` where one is named.

    Raises ActError where the checkpoint is not there or not up to date, where `folder` is not empty or cannot be
    written, and where the hub cannot be used.
    """
    api = _hub(push, hub)
    _refuse_full(folder)
    artifact = checkpoint_of(run, method)
    source = artifact.file("adapter" if adapter else "model")
    if adapter and not source.is_dir():
        raise ActError(
            f"{artifact.key} has no adapter: it was trained with all its weights",
            where=str(artifact.path),
            todo="export it without --adapter"
            + ("; --method act with policy.lora in the profile trains one" if method == "sft" else ""),
        )
    card = card_of(run, artifact, method, adapter=adapter, push=push, hub=api)
    beside = folder.parent / f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        beside.mkdir(parents=True)
        _copy(source, beside)
        if not adapter:
            _write_json(beside / "generation_config.json", _generation(beside, run.profile))
        (beside / CARD).write_text(card_text(card), encoding="utf-8")
        files = [p for p in beside.iterdir() if p.is_file()]
        size = sum(p.stat().st_size for p in files)
        for path in [*files, beside]:
            sync(path)
        beside.rename(folder)
    except OSError as error:
        raise ActError(
            f"the model cannot be exported: {error.strerror or error}",
            where=str(folder),
            todo="check the disk (df -h), or choose another --out",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    url = push_folder(folder, push, api, f"{card.title}, seed {card.seed}") if push and api else None
    return Exported(folder, len(files), size, card.evaluation is not None, url)


def push_folder(folder: Path, repository: str, api: Hub, message: str) -> str:
    """Uploads a folder to a repository of the hub, made private where it is new. Returns its address."""
    try:
        api.create_repo(repository, private=True, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="model", commit_message=message)
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of its uploader
        raise ActError(
            f"the model was not pushed: {redact(str(error) or type(error).__name__, *api_keys(TOKEN))}",
            where=f"repository {repository}; the folder {folder} is whole",
            todo=f"check the network and that {TOKEN} may write to {repository.split('/')[0]}, then push the folder "
            f"(hf upload {repository} {folder}), or remove it and run again",
        ) from None  # the library's own traceback holds the request
    return f"https://huggingface.co/{repository}"


def _hub(push: str | None, hub: Callable[[str], Hub]) -> Hub | None:
    if push is None:
        return None
    if not _REPOSITORY.fullmatch(push) or len(push) > 96 or "--" in push or ".." in push:
        raise ActError(f"not a repository of the hub: {push!r}", todo="write it as user/name, or organisation/name")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ActError(
            f"{TOKEN} is not set in the environment: nothing was written",
            where=f"repository {push}",
            todo=f"make a token with the right to write at https://huggingface.co/settings/tokens and export {TOKEN}",
        )
    return hub(token)


def _refuse_full(folder: Path) -> None:
    try:
        full = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise ActError(
            f"--out cannot be read: {error.strerror}", where=str(folder), todo="choose another --out"
        ) from error
    if full:
        raise ActError(
            "--out is there already and is not an empty folder",
            where=str(folder),
            todo="choose a new folder, or remove this one",
        )


def _copy(source: Path, folder: Path) -> None:
    """The files of a model as they are, without a library's own card, a folder of this machine, or a pickle."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != CARD and path.suffix not in _PICKLES:
            shutil.copyfile(path, folder / path.name)
    for path in folder.glob("*config.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        local = [k for k in _ORIGINS if isinstance(settings.get(k), str) and PurePath(settings[k]).is_absolute()]
        if local:
            _write_json(path, {**settings, **dict.fromkeys(local)})


def _generation(folder: Path, profile: Profile) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from act_assets.training.chat_template import ChatFormat

    chat = ChatFormat(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    return generation_settings(chat.end_id, chat.pad_id, profile.policy.max_new_tokens, profile.evaluation.temperature)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
