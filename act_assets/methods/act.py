"""ACT: Action-Based Contrastive Self-Training (Algorithms 1 and 2, sections 3.2.1 to 3.2.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from act_assets.conversation import PreferencePair
from act_assets.methods.base import Method, Trained
from act_assets.profile import Profile
from act_assets.roles.build import describe, usage_facts
from act_assets.rows import read_rows
from act_assets.run import (
    Run,
    conversations_of,
    equipped_task,
    intents_in,
    judge_identity,
    roles_of,
    train_subset,
    turns_of,
)
from act_assets.training.act_trainer import train_act


def settings(profile: Profile) -> Any:
    return {
        "act": profile.act.model_dump(mode="json", exclude={"beta", "tolerance"}),
        "engine": profile.engine.name,
        "policy": profile.policy,
        "simulator": profile.roles.simulator,
        "classifier": profile.roles.classifier,
        "in_context": profile.roles.in_context_conversations,
    }


def fingerprint(run: Run) -> Any:
    """The judge, beta and epsilon: the task's own, which hold where the profile has none."""
    act, task = run.profile.act, run.task
    return [
        judge_identity(run),
        act.beta.get(task.name, task.beta),
        task.judge.tolerance if act.tolerance is None else act.tolerance,
    ]


def details(run: Run) -> list[tuple[str, Any]]:
    """Lines of the model card."""
    act, roles, lora, task = run.profile.act, run.profile.roles, run.profile.policy.lora, run.task
    _, beta, tolerance = fingerprint(run)
    quantized = ", base in 4 bits" if lora and lora.quantized else ""
    return [
        ("ACT beta", beta),
        ("ACT tolerance epsilon", f"{tolerance:g} ({task.judge.metric_name})"),
        ("ACT sampling temperature", act.temperature),
        ("ACT clarifications at most", act.max_clarifications),
        ("losing responses of phase 1 by", describe(roles.generator)),
        ("user simulated by", describe(roles.simulator)),
        ("actions named by", describe(roles.classifier.llm, roles.classifier.source)),
        ("LoRA", f"r {lora.r}, alpha {lora.alpha}{quantized}" if lora else None),
    ]


def train(run: Run, folder: Path) -> Trained:
    """Algorithm 2 on the pairs of Algorithm 1, from the SFT checkpoint."""
    subset, roles = train_subset(run), roles_of(run)
    classifier, simulator = roles.classifier(subset), roles.simulator()
    pairs, held_out = (
        read_rows(run.inputs[asset].file("pairs.parquet"), PreferencePair)
        for asset in ("contrastive_pairs", "validation_pairs")
    )
    facts, points = train_act(
        equipped_task(run),
        {t.turn_id: t for t in turns_of(run, subset)},
        pairs,
        {t.turn_id: t for t in turns_of(run, conversations_of(run, "validation"))},
        held_out,
        intents_in(run.inputs["intent_summaries"]),
        classifier,
        simulator,
        run.inputs[METHOD.start].file("model"),
        run.profile,
        run.seed,
        folder,
        run.work,
    )
    return {**facts, **usage_facts(classifier.usage + simulator.usage)}, points


METHOD = Method(
    name="act",
    title="ACT",
    full_name="action-based contrastive self-training",
    summary="ACT (Algorithm 2): DPO on pairs kept up to date by simulated trajectories.",
    section="3.2",
    paper_approach="ACT",
    starts_from="sft",
    pairs="gold responses against generated ones of another action, then the policy's own trajectories",
    loss="DPO (equation 1)",
    needs=("intent_summaries", "contrastive_pairs", "validation_pairs", "raw_dataset"),
    asks=("simulator", "classifier"),
    settings=settings,
    optimisation=lambda profile: profile.act,
    details=details,
    fingerprint=fingerprint,
    rollout_epochs=lambda profile: profile.act.epochs,
    train=train,
    version=2,
)
