"""What is known of a checkpoint, gathered for its model card: identity, data, settings, facts, licences, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol

from act_assets.evaluation.evaluate import read_report
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import up_to_date
from act_assets.profile import Optimisation, Profile
from act_assets.release.model_card import BaseModel, ModelCard, TrainingData, without_paths
from act_assets.roles.build import describe, describe_labels
from act_assets.run import Run
from act_assets.tasks import is_own
from act_assets.tasks.catalog import Published, load_catalog
from act_assets.training.base_policy import SOURCE
from resources.artifacts import Artifact, Key

Method = Literal["sft", "act"]
CARD = "README.md"


class ModelInfo(Protocol):
    """What is asked of the hub: `huggingface_hub.HfApi` has it."""

    def model_info(self, repo_id: str, *, revision: str | None) -> Any: ...


def card_of(
    run: Run,
    artifact: Artifact,
    method: Method,
    *,
    adapter: bool = False,
    push: str | None = None,
    hub: ModelInfo | None = None,
) -> ModelCard:
    """Everything that is known of a checkpoint that is up to date; `hub` is asked for what is not on this machine."""
    known: dict[Key, Artifact | None] = {}
    raw, base, sft = (up_to_date(STAGES, n, run, known) for n in ("raw_dataset", "base_policy", "sft_checkpoint"))
    report = up_to_date(STAGES, f"evaluation_{method}", run, known)
    assert raw is not None and base is not None and sft is not None, "a checkpoint is made from them"
    assert run.train_size is not None
    return ModelCard(
        task=run.task.name,
        actions=run.task.action_names,
        method=method,
        adapter=adapter,
        train_size=run.train_size,
        seed=run.seed,
        profile=run.profile.name,
        profile_digest=run.profile.digest(),
        identity=artifact.identity_hash,
        content=artifact.content_hash,
        created_at=artifact.created_at,
        made_from=dict(artifact.identity["inputs"]),
        base=_base(run.profile, base, hub),
        data=_data(run, raw),
        training=_training(run, artifact, sft, base, method),
        evaluation=None if report is None else read_report(report.file("report.json")),
        system_message=run.task.reader.system_message(()),
        max_new_tokens=run.profile.policy.max_new_tokens,
        temperature=run.profile.evaluation.temperature,
        language="en" if is_own(run.task.name) else None,
        repository=push,
    )


def _base(profile: Profile, artifact: Artifact, hub: ModelInfo | None) -> BaseModel:
    if profile.policy.scratch is not None:
        parameters = artifact.facts.get("parameters")
        size = f", {parameters:,} parameters" if parameters else ""
        return BaseModel(f"Llama architecture from scratch{size}", licence="Apache-2.0")
    model = profile.policy.model
    local = Path(model).expanduser()
    if local.is_dir():
        return BaseModel(f"{local.resolve().name}, a local folder", licence=_licence_in(local / CARD))
    commit = json.loads(artifact.file(SOURCE).read_text(encoding="utf-8")).get("commit")
    return BaseModel(model, model, commit, _licence_in(_cached(model, commit)) or _licence_at(hub, model, commit))


def _cached(model: str, commit: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, CARD, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _licence_in(card: Path | None) -> str | None:
    """What a model's own card names as its licence; None where it cannot be read."""
    from huggingface_hub import metadata_load

    try:
        meta = metadata_load(card) if card and card.is_file() else None
    except Exception:  # a foreign file: whatever is wrong with it, it names no licence
        return None
    return _named(meta.get("license"), meta.get("license_name")) if isinstance(meta, dict) else None


def _licence_at(hub: ModelInfo | None, model: str, commit: str | None) -> str | None:
    """The hub's own record, asked only where something is pushed: an export alone needs no network."""
    if hub is None:
        return None
    try:
        data = hub.model_info(model, revision=commit).card_data
        return None if data is None else _named(data.get("license"), data.get("license_name"))
    except Exception:  # no network, no such model: the licence stays unknown, and the push itself says why
        return None


def _named(licence: Any, name: Any) -> str | None:
    if not isinstance(licence, str) or not licence:
        return None
    return f"other ({name})" if licence == "other" and isinstance(name, str) else licence


def _data(run: Run, raw: Artifact) -> TrainingData:
    """Where the data come from: by git's ids where the catalog has them, never by the folder they lay in."""
    name = run.task.title.split(":")[0]
    bundled = raw.facts.get("origin") == "bundled sample"
    entry = load_catalog().get(run.task.name) if is_own(run.task.name) else None
    if entry is None:
        return TrainingData(name, "files of the task's own package", False, None, "")
    ids = {f.name: f.blob for f in entry.files} if isinstance(entry, Published) else {}
    blobs = {f["name"]: f["git_blob"] for f in raw.facts.get("files", ())}
    official = bool(blobs) and all(ids.get(PurePath(file).name) == blob for file, blob in blobs.items())
    source = "this project's bundled sample, made from " if bundled else "files in the layout of "
    return TrainingData(name, ("" if official else source) + entry.origin, official, entry.licence, entry.citation)


def _training(
    run: Run, artifact: Artifact, sft: Artifact, base: Artifact, method: Method
) -> tuple[tuple[str, str], ...]:
    profile, task = run.profile, run.task
    rows = _optimisation("SFT", profile.sft, sft.facts)
    if method == "act":
        act, roles = profile.act, profile.roles
        rows += _optimisation("ACT", act, artifact.facts)
        tolerance = task.judge.tolerance if act.tolerance is None else act.tolerance
        rows += [
            ("ACT beta", act.beta.get(task.name, task.beta)),
            ("ACT tolerance epsilon", f"{tolerance:g} ({without_paths(task.judge.metric_name)})"),
            ("ACT sampling temperature", act.temperature),
            ("ACT clarifications at most", act.max_clarifications),
            ("losing responses of phase 1 by", without_paths(describe(roles.generator))),
            ("user simulated by", without_paths(describe(roles.simulator))),
            ("actions named by", without_paths(describe(roles.classifier.llm, roles.classifier.source))),
        ]
        if profile.policy.lora:
            quantized = ", base in 4 bits" if profile.policy.lora.quantized else ""
            rows.append(("LoRA", f"r {profile.policy.lora.r}, alpha {profile.policy.lora.alpha}{quantized}"))
    rows += [
        ("actions in training", without_paths(describe_labels(profile))),
        ("prompt, new and all tokens at most", _lengths(profile)),
        ("parameters", base.facts.get("parameters")),
        ("libraries", _versions(artifact.facts)),
    ]
    return tuple((name, _shown(value)) for name, value in rows if value not in (None, ""))


_FACTS = {
    "turns": "turns",
    "pairs": "pairs",
    "steps": "updates",
    "kept_epoch": "kept epoch",
    "validation_loss": "validation loss of the kept epoch",
    "reward_margin": "reward margin of the kept epoch",
    "reward_accuracy": "reward accuracy of the kept epoch",
    "winners_replaced": "winners replaced by a sample",
    "losers_replaced": "losers replaced by a sample",
    "rollouts_wrong_action": "losers: wrong action",
    "rollouts_bad_outcome": "losers: bad outcome",
    "rollouts_good_outcome": "winners: good outcome",
}


def _optimisation(stage: str, settings: Optimisation, facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (f"{stage} epochs", settings.epochs),
        (f"{stage} learning rate", facts.get("learning_rate", settings.learning_rate)),
        (f"{stage} batch size", settings.batch_size),
        (f"{stage} weight decay, warm-up", f"{settings.weight_decay:g}, {settings.warm_up_ratio:g}"),
        *((f"{stage} {name}", facts.get(key)) for key, name in _FACTS.items()),
    ]


def _lengths(profile: Profile) -> str:
    policy = profile.policy
    return f"{policy.max_prompt_tokens:,}, {policy.max_new_tokens:,}, {policy.max_length:,}"


def _versions(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{k.removeprefix('version_')} {v}" for k, v in sorted(facts.items()) if k.startswith("version_"))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
