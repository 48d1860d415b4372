"""An ACT_HOME with checkpoints that are up to date, only to be read: nothing was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from act_assets.evaluation.evaluate import EvaluationReport, Metric, write_report
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.profile import ScratchModel
from act_assets.run import Run, make_run

TINY = Path(__file__).resolve().parent / "tiny.yaml"
DATA = ("raw_dataset", "ambiguous_requests", "conversations", "action_labels", "evaluation_intents", "train_subset")
REST = ("validation_pairs", "base_policy", "intent_summaries", "contrastive_pairs", "sft_checkpoint", "act_checkpoint")
REPORT = EvaluationReport(
    method="act",
    task="pacific",
    train_size=50,
    seed=0,
    profile="tiny",
    policy="/home/someone/weights",
    simulator="openai (/srv/models/user)",
    classifier="rule",
    judge="DROP F1",
    side="validation",
    action_supervision="gold",
    actions=("CLARIFY", "ANSWER"),
    confusion=((1, 2), (3, 4)),
    metrics=(
        Metric("accuracy", 0.5, 10),
        Metric("macro F1", 0.46286, 10, 0.4525, 0.4737),
        Metric("trajectory official", 0.125, 10),
        Metric("post-clarification official", None, 0),
    ),
    breakdown=(),
    notes=("10 turns of 3 conversations",),
)


def fill(tokenizer: Any) -> None:
    """In ACT_HOME: data as the stages make them, random policies, and REPORT for ACT alone."""
    run = make_run(str(TINY), 0, "pacific", 50, launch=lambda job: write_policy(json.loads(job.read_text()), tokenizer))
    for name in (*DATA, *REST):
        run_stage(STAGES, name, run)
    reported = replace(STAGES["evaluation_act"], build=write_evaluation)  # of the same identity
    run_stage({**STAGES, "evaluation_act": reported}, "evaluation_act", run)


def write_evaluation(run: Run, folder: Path) -> dict[str, Any]:
    write_report(folder / "report.json", REPORT)
    return {}


def write_policy(job: dict[str, Any], tokenizer: Any) -> None:
    """What a training leaves: `model/`, seeded by the stage's name, `adapter/` for ACT, facts."""
    import torch

    from act_assets.training.base_policy import build_model
    from act_assets.training.chat_template import ChatFormat
    from act_assets.training.policy import save_model

    folder, policy = Path(job["folder"]), job["profile"]["policy"]
    scratch = ScratchModel.model_validate(policy["scratch"])
    model = build_model(
        scratch, len(tokenizer), policy["max_length"], ChatFormat(tokenizer), crc32(job["stage"].encode())
    )
    # With small weights and tied embeddings, every text would be its prompt's last token again.
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(20.0)
    facts: dict[str, Any] = {"steps": 6, "version_torch": "2"}
    if job["stage"] == "base_policy":
        facts["parameters"] = sum(p.numel() for p in model.parameters())
    if job["stage"] == "act_checkpoint":
        facts |= {"pairs": 355, "kept_epoch": 1.0, "reward_margin": -0.0846, "losers_replaced": 352}
        write_adapter(folder, model, tokenizer)
    save_model(model, tokenizer, folder / "model")
    (folder / "logs" / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def write_adapter(folder: Path, model: Any, tokenizer: Any) -> None:
    """A LoRA adapter of another model of the same shape, saved as peft saves it."""
    import copy

    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    wrapped.save_pretrained(folder / "adapter")
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": "/home/someone/sft/model"}
    path.write_text(json.dumps(config), encoding="utf-8")
    tokenizer.save_pretrained(folder / "adapter")
