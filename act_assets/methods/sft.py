"""SFT: supervised fine-tuning on the gold responses (section 4.3); what contrastive methods start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from act_assets.methods.base import Method, Trained
from act_assets.profile import Profile
from act_assets.run import Run, conversations_of, train_subset, turns_of
from act_assets.training.base_policy import base_policy_source
from act_assets.training.sft import train_sft


def settings(profile: Profile) -> Any:
    """Without what only rollouts read of the policy."""
    policy = profile.policy.model_dump(mode="json", exclude={"lora", "max_new_tokens"})
    lora = profile.policy.lora
    return {"policy": policy, "lora": lora if lora is not None and lora.sft else None, "sft": profile.sft}


def train(run: Run, folder: Path) -> Trained:
    """Each learning rate of the profile; the epoch with the lowest validation loss is kept."""
    return train_sft(
        run.task,
        turns_of(run, train_subset(run)),
        turns_of(run, conversations_of(run, "validation")),
        base_policy_source(run.inputs["base_policy"].path),
        run.profile,
        run.seed,
        folder,
        run.work,
    )


METHOD = Method(
    name="sft",
    title="SFT",
    full_name="supervised fine-tuning",
    summary="Supervised fine-tuning on the gold responses (section 4.3).",
    section="4.3",
    paper_approach="SFT",
    starts_from="base_policy",
    loss="cross-entropy on the tokens of the gold response",
    settings=settings,
    optimisation=lambda profile: profile.sft,
    train=train,
    version=2,
)
