"""The model card of an exported checkpoint: `README.md` with the front matter that the Hugging Face hub reads.

    text = card_text(card)

A card states what was measured and what is not known. It names no folder of the machine that it was written on.
There is no `datasets:` in the front matter: it takes ids of the hub, and the tasks' data come from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from act_assets.evaluation.evaluate import EvaluationReport, Metric

UNKNOWN_LICENCE = "other: see the base model"
_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC BY-SA 4.0": "cc-by-sa-4.0"}
_PERMISSIVE = {"apache-2.0", "mit"}  # nothing but attribution: the base model's licence stands for the whole
_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/|)'\"`]+/)*(?=[^\s/|)'\"`])")
_PAPER = "https://arxiv.org/abs/2406.00222"
_METHODS = {
    "sft": "supervised fine-tuning on the gold responses",
    "act": "Action-Based Contrastive Self-Training, after supervised fine-tuning",
}


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What training started from. `hub_id` and `commit` where it is a model of the hub; `licence` as its card names it,
    None where that is not known."""

    name: str
    hub_id: str | None = None
    commit: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The task's data. `official`: whether they are the published files, by git's ids of their content."""

    name: str
    origin: str
    official: bool
    licence: str | None
    citation: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """All that a card says. `training` are (name, value) in order; `made_from` content hashes by asset;
    `system_message` is the first message of a prompt without its grounding; `repository` the hub's name for the model,
    where it gets one."""

    task: str
    actions: tuple[str, ...]
    method: Literal["sft", "act"]
    adapter: bool
    train_size: int
    seed: int
    profile: str
    profile_digest: str
    identity: str
    content: str
    created_at: str
    made_from: Mapping[str, str]
    base: BaseModel
    data: TrainingData
    training: tuple[tuple[str, str], ...]
    evaluation: EvaluationReport | None
    system_message: str
    max_new_tokens: int
    temperature: float
    language: str | None = "en"
    repository: str | None = None

    @property
    def title(self) -> str:
        return f"{self.method.upper()}{' adapter' if self.adapter else ''} for {self.data.name}"


def card_text(card: ModelCard) -> str:
    """The whole `README.md`."""
    front = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        f"# {card.title}",
        _what(card),
        "## Data\n\n" + _data(card),
        "## Identity\n\n" + _identity(card),
        "## Training\n\n" + _table(("setting or fact", "value"), card.training),
        "## Metrics\n\n" + _metrics(card.evaluation),
        "## Limits\n\n" + _limits(card),
        "## Use\n\n" + _use(card),
        "## Licence\n\n" + _licence(card),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def front_matter(card: ModelCard) -> dict[str, Any]:
    """What the hub reads. The licence is the base model's where the data ask for no more than attribution."""
    meta: dict[str, Any] = _hub_licence(card)
    if card.base.hub_id:
        meta["base_model"] = card.base.hub_id
        meta["base_model_relation"] = "adapter" if card.adapter else "finetune"
    meta["pipeline_tag"] = "text-generation"
    meta["library_name"] = "peft" if card.adapter else "transformers"
    if card.language:
        meta["language"] = [card.language]
    meta["tags"] = ["clarifying-questions", "conversational", card.method, card.task]
    measured = [m for m in card.evaluation.metrics if m.value is not None] if card.evaluation else []
    if card.evaluation and measured:
        dataset = {"name": card.data.name, "type": card.task, "split": card.evaluation.side}
        result = {
            "task": {"type": "text-generation"},
            "dataset": dataset,
            "metrics": [
                {"type": _metric_type(m.name), "name": m.name, "value": round(m.value or 0.0, 4)} for m in measured
            ],
        }
        meta["model-index"] = [{"name": card.title, "results": [result]}]
    return meta


def without_paths(text: str) -> str:
    """A text in which absolute paths are cut to their last part."""
    return _PATH.sub("", text)


def hub_licence(name: str | None) -> str | None:
    """A licence by the name that the hub has for it; as it stands where it is not one of ours."""
    return None if name is None else _HUB_LICENCES.get(name, name)


def _hub_licence(card: ModelCard) -> dict[str, Any]:
    base, data = hub_licence(card.base.licence), hub_licence(card.data.licence)
    if base and base != "other" and (base == data or data in _PERMISSIVE):
        return {"license": base}
    parts = [part or "unknown" for part in dict.fromkeys((base, data))]
    return {"license": "other", "license_name": "-and-".join(re.sub(r"[^a-z0-9.]+", "-", p.lower()) for p in parts)}


def _what(card: ModelCard) -> str:
    actions = " or ".join(card.actions)
    base = f"[{card.base.hub_id}](https://huggingface.co/{card.base.hub_id})" if card.base.hub_id else card.base.name
    commit = f", commit `{card.base.commit}`" if card.base.commit else ""
    lines = [
        f"A language model that, given a grounding and a request, takes one of the actions {actions}: it asks a "
        "clarifying question where the request is ambiguous, and answers where it is not. Trained by "
        f"{_METHODS[card.method]} ([Chen, Sun, Pfister, Arik, ICLR 2025]({_PAPER})). This is no model of the paper's "
        "authors.",
        f"- base model: {base}{commit}",
        f"- task: `{card.task}`, {card.train_size} training conversations",
    ]
    if card.adapter:
        lines.append(
            "- this is the LoRA adapter alone; its base is the SFT checkpoint of the same run, not the base model"
        )
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _data(card: ModelCard) -> str:
    data = card.data
    if data.official:
        whether = "the official files, verified by their git ids"
    else:
        whether = "not verified to be the official files; figures on them are no figures of the benchmark"
    citation = f"\n- please cite: {data.citation}" if data.citation else ""
    licence = data.licence or "not known"
    return f"- {data.name}: {data.origin} ({whether})\n- licence of the data: {licence}{citation}"


def _identity(card: ModelCard) -> str:
    rows = [
        ("artifact identity", f"`{card.identity}`"),
        ("content", f"`{card.content}`"),
        ("made", card.created_at),
        ("seed", str(card.seed)),
        ("profile", f"{card.profile}, settings `{card.profile_digest}`"),
        *((f"made from {name}", f"`{digest[:16]}`") for name, digest in card.made_from.items()),
    ]
    return _table(("", ""), rows)


def _metrics(report: EvaluationReport | None) -> str:
    if report is None:
        return "This checkpoint has no evaluation that is up to date."
    rows = [(m.name, _value(m), f"{m.count:,}") for m in report.metrics]
    parts = (
        f"Side `{report.side}`; metric of the task: {without_paths(report.judge)}; user played by "
        f"{without_paths(report.simulator)}, actions named by {without_paths(report.classifier)}; trained on "
        f"{without_paths(report.action_supervision)} actions. Fractions from 0 to 1; [ ]: 95 % bootstrap interval over "
        "conversations; –: no example.",
        _table(("metric", "value", "examples"), rows),
        "\n".join(f"- {note}" for note in report.notes),
    )
    return "\n\n".join(part for part in parts if part)


def _limits(card: ModelCard) -> str:
    where = f"the {card.evaluation.side} side of {card.data.name}" if card.evaluation else "nothing"
    lines = [
        f"- It has been evaluated on {where}, with a simulated user, and not by people. It is not a product.",
        "- It knows one kind of grounding and one form of prompt; on others nothing has been measured.",
        "- Its answers may be wrong and its questions needless. Check every figure it names against the source.",
        "- One training run with one seed: differences smaller than the intervals above say nothing.",
    ]
    return "\n".join(lines)


def _use(card: ModelCard) -> str:
    name = card.repository or "FOLDER"
    system = json.dumps(card.system_message, ensure_ascii=False)
    messages = (
        f'messages = [{{"role": "system", "content": {system}}},  # with the grounding in its place\n'
        '            {"role": "user", "content": "What were the sales?"}]\n'
    )
    if card.adapter:
        return (
            "The base is the SFT checkpoint of the same run (`act export model --method sft`, here SFT):\n\n"
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("SFT"), "{name}")\n```\n\n'
            f"    vllm serve SFT --enable-lora --lora-modules {card.task}={name}"
        )
    greedy = card.temperature == 0
    how = "greedily" if greedy else f"at temperature {card.temperature:g}"
    override = " --override-generation-config '{\"temperature\": 0.0}'" if greedy else ""
    serve = (
        "vLLM samples at temperature 1 where the request and generation_config.json name none; the option makes greedy "
        "decoding its default. "
        if greedy
        else ""
    )
    measured = "The figures above were measured in float32 with transformers; " if card.evaluation else ""
    return (
        f"`generation_config.json` decodes as in the evaluation: {how}, at most {card.max_new_tokens} new tokens, "
        "stop at the end of the turn.\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer  # 5 or newer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f"{messages}"
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)\n"
        'output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]\n'
        "print(tokenizer.decode(output, skip_special_tokens=True))\n```\n\n"
        f"    vllm serve {name} --dtype float32{override}\n\n"
        f"{serve}{measured}vLLM has not been tried with this checkpoint."
    )


def _licence(card: ModelCard) -> str:
    data = card.data.licence or "not known: see where the data come from"
    lines = [
        f"- base model ({card.base.name}): {card.base.licence or UNKNOWN_LICENCE}",
        f"- training data ({card.data.name}): {data}",
    ]
    tail = "Both apply: the weights were made from both."
    if hub_licence(card.data.licence) not in _PERMISSIVE:
        tail += " Read the licence of the data before the weights are passed on."
    return "\n".join(lines) + "\n\n" + tail


def _value(metric: Metric) -> str:
    if metric.value is None:
        return "–"
    interval = f" [{metric.low:.3f}, {metric.high:.3f}]" if metric.low is not None and metric.high is not None else ""
    return f"{metric.value:.3f}{interval}"


def _metric_type(name: str) -> str:
    return "f1" if name == "macro F1" else re.sub(r"\W+", "_", name.lower())


def _table(head: tuple[str, ...], rows: Any) -> str:
    cells = lambda row: "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in row) + " |"  # noqa: E731
    return "\n".join([cells(head), cells(("---",) * len(head)), *(cells(row) for row in rows)])
