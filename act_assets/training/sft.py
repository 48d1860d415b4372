"""Supervised fine-tuning on the gold responses (section 4.3): the initial policy pi_theta_0 of ACT.

One example per turn: the prompt carries no loss, the response with its end-of-turn token does. The checkpoint
kept is the epoch with the lowest loss on the gold responses of the validation side.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from act_assets.conversation import TurnState, once_per_prompt
from act_assets.errors import TrainingError
from act_assets.profile import Profile
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.chat import ChatFormat
from act_assets.training.history import History, TrainingPoint
from act_assets.training.policy import PromptEncoder, load_model, pick_device, save_model
from act_assets.training.supervised import TokenRow, fit


def response_row(turn: TurnState, prompts: PromptEncoder, chat: ChatFormat, max_length: int) -> TokenRow:
    """Prompt and gold response as tokens. Raises TrainingError, naming the turn, where they do not fit."""
    prompt, response = prompts.ids(turn), chat.response_ids(turn.response.text)
    if len(prompt) + len(response) > max_length:
        raise too_long(turn, len(prompt), len(response), max_length)
    return TokenRow((*prompt, *response), (0,) * len(prompt) + (1,) * len(response))


def too_long(turn: TurnState, prompt: int, response: int, max_length: int) -> TrainingError:
    """A response is never cut: what cannot fit is an error."""
    return TrainingError(
        f"a prompt of {prompt} tokens and a response of {response} exceed max_length {max_length}",
        where=turn.where,
        todo="raise policy.max_length or lower policy.max_prompt_tokens in the profile",
    )


def train_sft(
    task: Task,
    turns: Sequence[TurnState],
    validation: Sequence[TurnState],
    base: tuple[str, str | None],
    profile: Profile,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Writes the kept epoch to `folder/model`; `base` is a path or id and a commit. Returns facts and curves."""
    model, chat = load_model(*base)
    prompts = PromptEncoder(task, chat, profile.policy.max_prompt_tokens)
    rows, held_out = (
        # A request with several readings has one prompt and one response: it is learnt once.
        [response_row(t, prompts, chat, profile.policy.max_length) for t in once_per_prompt(side)]
        for side in (turns, validation)
    )
    history = History("sft", f"task {task.name}, {len(rows)} turns")
    best: list[TrainingPoint] = []
    model = model.to(pick_device())

    def keep_best(point: TrainingPoint) -> None:
        if not best or point.loss < best[-1].loss:
            best.append(point)
            shutil.rmtree(folder / "model", ignore_errors=True)
            save_model(model, chat.tokenizer, folder / "model")

    fit(
        model,
        chat.pad_id,
        rows,
        held_out,
        profile.sft,
        derive_seed(seed, "sft"),
        history,
        mixed_precision=profile.policy.mixed_precision,
        on_validation=keep_best,
    )
    facts = {
        "turns": len(rows),
        "steps": history.points[-1].step,
        "kept_epoch": best[-1].epoch,
        "validation_loss": best[-1].loss,
        "loss_tokens_per_epoch": sum(sum(r.loss_mask) for r in rows),
        "tokens_per_epoch": sum(len(r.token_ids) for r in rows),
    }
    return facts, history.points
