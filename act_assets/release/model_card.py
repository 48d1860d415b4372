"""The model card of an exported checkpoint: `README.md` with the front matter that the hub reads.

    model_card(run, artifact, "act").save("README.md")

A card states what was measured and what is not known. It names no folder of the machine that it was
written on. There is no `datasets:` in the front matter: it takes ids of the hub, and the tasks'
data come from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from act_assets.evaluation.evaluate import Metric, read_report
from act_assets.evaluation.leaderboard import show
from act_assets.methods.base import Method
from act_assets.methods.registry import get_method, lineage
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import up_to_date
from act_assets.profile import Profile, profile_names
from act_assets.roles.build import describe_labels
from act_assets.run import Run
from act_assets.tasks import is_own
from act_assets.tasks.catalog import Published, load_catalog
from act_assets.training.base_policy import SOURCE
from resources.artifacts import Artifact, Key

CARD = "README.md"
_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC BY-SA 4.0": "cc-by-sa-4.0"}
_PERMISSIVE = {"apache-2.0", "mit"}  # nothing but attribution: the base model's licence stands
_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/|)'\"`]+/)*(?=[^\s/|)'\"`])")
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


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What training started from. `hub_id` and `commit` where it is a model of the hub; `licence`
    as its card names it, None where that is not known.
    """

    name: str
    hub_id: str | None = None
    commit: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The task's data. `official`: they are the published files, by git's ids of their content."""

    name: str
    origin: str
    official: bool = False
    licence: str | None = None
    citation: str = ""


def model_card(
    run: Run,
    artifact: Artifact,
    method: str,
    *,
    adapter: bool = False,
    push: str | None = None,
    hub: HfApi | None = None,
) -> ModelCard:
    """All that is known of a checkpoint: identity, data, settings, facts, figures, licences.

    `push` is the hub's name for the model, where it gets one; `hub` is asked for what is not on
    this machine.
    """
    known: dict[Key, Artifact | None] = {}
    of, line = get_method(method), lineage(get_method(method))
    raw, start, *trained = (
        up_to_date(STAGES, n, run, known) for n in ("raw_dataset", "base_policy", *(m.checkpoint for m in line))
    )
    found = up_to_date(STAGES, of.evaluation, run, known)
    assert raw is not None and start is not None, "a checkpoint is made from them"
    base, data = _base(run.profile, start, hub), _data(run, raw)
    report = None if found is None else read_report(found.file("report.json"))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=report.task,
            dataset_name=data.name,
            dataset_split=report.side,
            metric_type="f1" if metric.name == "macro F1" else re.sub(r"\W+", "_", metric.name.lower()),
            metric_name=metric.name,
            metric_value=round(metric.value, 4),
        )
        for metric in (report.metrics if report else ())
        if report and metric.value is not None
    ]
    licence, licence_name = hub_licence(base.licence, data.licence)
    title = f"{of.title}{' adapter' if adapter else ''} for {data.name}"
    meta = ModelCardData(
        license=licence,
        license_name=licence_name,
        base_model=base.hub_id,
        base_model_relation=("adapter" if adapter else "finetune") if base.hub_id else None,
        pipeline_tag="text-generation",
        library_name="peft" if adapter else "transformers",
        language=["en"] if is_own(run.task.name) else None,
        tags=["clarifying-questions", "conversational", method, run.task.name],
        model_name=title,
        eval_results=results or None,
    )
    templates = Environment(  # noqa: S701  (markdown, not HTML)
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["plain"] = without_paths
    templates.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    text = templates.get_template("model_card.md.j2").render(
        title=title,
        run=run,
        trained_by=", after ".join(m.full_name for m in reversed(line)),
        start=line[-2] if len(line) > 1 else None,
        adapter=adapter,
        base=base,
        data=data,
        permissive=_HUB_LICENCES.get(data.licence or "") in _PERMISSIVE,
        identity=[
            ("artifact identity", f"`{artifact.identity_hash}`"),
            ("content", f"`{artifact.content_hash}`"),
            ("made", artifact.created_at),
            ("made by", f"`{run_command(run, method)}`"),
            ("seed", run.seed),
            ("profile", f"{run.profile.name}, settings `{run.profile.digest()}`"),
            *((f"made from {name}", f"`{digest[:16]}`") for name, digest in artifact.identity["inputs"].items()),
        ],
        training=_training(run, list(zip(line, [*trained[:-1], artifact], strict=True)), start),
        report=report,
        figures=[(m.name, _figure(m), f"{m.count:,}") for m in report.metrics] if report else [],
        system=json.dumps(run.task.reader.system_message(()), ensure_ascii=False),
        name=push or "FOLDER",
    )
    return ModelCard(f"---\n{meta.to_yaml()}\n---\n\n{text}\n")


def run_command(run: Run, method: str) -> str:
    """What makes a checkpoint of these settings; a profile that is not shipped is a file."""
    profile = run.profile.name if run.profile.name in profile_names() else f"{run.profile.name}.yaml"
    return (
        f"act run --task {run.task.name} --train-size {run.train_size} --method {method} --profile {profile} "
        f"--seed {run.seed}"
    )


def without_paths(text: str) -> str:
    """A text in which absolute paths are cut to their last part."""
    return _PATH.sub("", text)


def hub_licence(base: str | None, data: str | None) -> tuple[str, str | None]:
    """The hub's `license`, and the `license_name` of `other`, of weights from a base and data.

    It is the base model's where the data ask for no more than attribution.
    """
    base, data = (None if name is None else _HUB_LICENCES.get(name, name) for name in (base, data))
    if base and base != "other" and (base == data or data in _PERMISSIVE):
        return base, None
    parts = (part or "unknown" for part in dict.fromkeys((base, data)))
    return "other", "-and-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()) for part in parts)


def _figure(metric: Metric) -> str:
    known = metric.low is not None and metric.high is not None
    return show(metric.value) + (f" [{metric.low:.3f}, {metric.high:.3f}]" if known else "")


def _base(profile: Profile, artifact: Artifact, hub: HfApi | None) -> BaseModel:
    """The hub is asked for a licence only where something is pushed: an export needs no network."""
    if profile.policy.scratch is not None:
        parameters = artifact.facts.get("parameters")
        size = f", {parameters:,} parameters" if parameters else ""
        return BaseModel(f"Llama architecture from scratch{size}", licence="Apache-2.0")
    model = profile.policy.model
    local = Path(model).expanduser()
    if local.is_dir():
        return BaseModel(
            f"{local.resolve().name}, a local folder", licence=_licence(lambda: metadata_load(local / CARD))
        )
    commit = json.loads(artifact.file(SOURCE).read_text(encoding="utf-8")).get("commit")
    cached = try_to_load_from_cache(model, CARD, revision=commit)
    licence = _licence(lambda: metadata_load(cached)) if isinstance(cached, str) else None
    if licence is None and hub is not None:
        licence = _licence(lambda: hub.model_info(model, revision=commit).card_data)
    return BaseModel(model, model, commit, licence)


def _licence(front_matter: Callable[[], Any]) -> str | None:
    """What a model's own card names as its licence; None where it cannot be read."""
    try:
        meta = front_matter()
        licence, name = meta.get("license"), meta.get("license_name")
    except Exception:  # a file of others, or no network: no licence is named there
        return None
    if not isinstance(licence, str) or not licence:
        return None
    return f"other ({name})" if licence == "other" and isinstance(name, str) else licence


def _data(run: Run, raw: Artifact) -> TrainingData:
    """Where the data come from, by git's ids and the catalog; never the folder they lay in."""
    name = run.task.title.split(":")[0]
    entry = load_catalog().get(run.task.name) if is_own(run.task.name) else None
    if entry is None:
        return TrainingData(name, "files of the task's own package")
    ids = {f.name: f.blob for f in entry.files} if isinstance(entry, Published) else {}
    blobs = {f["name"]: f["git_blob"] for f in raw.facts.get("files", ())}
    official = bool(blobs) and all(ids.get(PurePath(file).name) == blob for file, blob in blobs.items())
    bundled = raw.facts.get("origin") == "bundled sample"
    source = "this project's bundled sample, made from " if bundled else "files in the layout of "
    return TrainingData(name, ("" if official else source) + entry.origin, official, entry.licence, entry.citation)


def _training(run: Run, line: Sequence[tuple[Method, Artifact | None]], base: Artifact) -> list[tuple[str, str]]:
    """Settings of the training, and facts of what came of it; without those that do not apply."""
    profile, policy = run.profile, run.profile.policy
    rows: list[tuple[str, Any]] = []
    for method, trained in line:
        if method.optimisation is not None:
            settings, facts = method.optimisation(profile), trained.facts if trained else {}
            rows += [
                (f"{method.title} epochs", settings.epochs),
                (f"{method.title} learning rate", facts.get("learning_rate", settings.learning_rate)),
                (f"{method.title} batch size", settings.batch_size),
                (f"{method.title} weight decay, warm-up", f"{settings.weight_decay:g}, {settings.warm_up_ratio:g}"),
                *((f"{method.title} {name}", facts.get(key)) for key, name in _FACTS.items()),
            ]
        rows += method.details(run)
    artifact = line[-1][1]
    assert artifact is not None
    versions = sorted((k, v) for k, v in artifact.facts.items() if k.startswith("version_"))
    rows += [
        ("actions in training", describe_labels(profile)),
        (
            "prompt, new and all tokens at most",
            f"{policy.max_prompt_tokens:,}, {policy.max_new_tokens:,}, {policy.max_length:,}",
        ),
        ("parameters", base.facts.get("parameters")),
        ("libraries", ", ".join(f"{k.removeprefix('version_')} {v}" for k, v in versions)),
    ]
    return [(name, without_paths(_shown(value))) for name, value in rows if value not in (None, "")]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
