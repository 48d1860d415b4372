"""Supervised fine-tuning on the gold responses (section 4.3): the initial policy pi_theta_0 of ACT.

One example per turn: the prompt carries no loss, the response with its end-of-turn token does. Of all epochs of all
learning rates the one with the lowest loss on the gold responses of the validation side is kept (J.2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from act_assets.conversation import TurnState, once_per_prompt
from act_assets.profile import Lora, Profile
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.adapters import publish, with_adapter
from act_assets.training.chat_template import ChatFormat
from act_assets.training.checkpoint import RunFolder
from act_assets.training.logging import TrainingLog, TrainingPoint
from act_assets.training.optimizer import free_memory, is_first_process
from act_assets.training.packing import TokenRow
from act_assets.training.policy import PromptEncoder, load_model
from act_assets.training.supervised import Supervised
from resources.errors import TrainingError
from resources.files import atomic_file

FINISHED = "finished.json"


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
    work: Path,
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Writes the kept model to `folder/model`; `base` is a path or id and a commit. Returns facts and curves.

    `work` keeps what a resumed run starts from: each learning rate that is finished, and states of the one under way.
    """
    lora = profile.policy.lora
    lora = lora if lora is not None and lora.sft else None  # the adapter that SFT trains; None: all weights
    tries: list[dict[str, Any]] = []
    for number, rate in enumerate(profile.sft.candidates, 1):
        of = work / f"rate-{number}"
        if not (of / FINISHED).is_file():
            _try(task, turns, validation, base, profile, lora, seed, rate, of, folder / "logs")
            free_memory()
        tries.append(json.loads((of / FINISHED).read_text(encoding="utf-8")))
    best = min(range(len(tries)), key=lambda i: tries[i]["best"]["loss"])
    chosen = tries[best]
    if is_first_process():
        publish(work / f"rate-{best + 1}" / chosen["kept"], base, folder / "model", adapted=lora is not None)
    facts = {
        "steps": chosen["points"][-1]["step"],
        "kept_epoch": chosen["best"]["epoch"],
        "validation_loss": chosen["best"]["loss"],
        "learning_rate": chosen["learning_rate"],
        "tried_learning_rates": [[t["learning_rate"], t["best"]["loss"]] for t in tries],
        **chosen["figures"],
    }
    return facts, [TrainingPoint(**p) for p in chosen["points"]]


def _try(
    task: Task,
    turns: Sequence[TurnState],
    validation: Sequence[TurnState],
    base: tuple[str, str | None],
    profile: Profile,
    lora: Lora | None,
    seed: int,
    rate: float,
    work: Path,
    logs: Path,
) -> None:
    """Trains with one learning rate, and leaves `finished.json` beside the kept model."""
    where, seed = f"task {task.name}, {len(turns)} turns, learning rate {rate:g}", derive_seed(seed, "sft")
    model, chat = load_model(*base, quantized=bool(lora and lora.quantized))
    if lora is not None:
        model = with_adapter(model, lora, seed, mixed_precision=profile.policy.mixed_precision)
    prompts = PromptEncoder(task, chat, profile.policy.max_prompt_tokens)
    train, held_out = (
        groups_of(side, prompts, chat, profile.policy.max_length, packing=profile.sft.packing)
        for side in (turns, validation)
    )
    run = RunFolder(work, profile.compute, where)
    with TrainingLog("sft", where, logs if is_first_process() else None, run=work.name) as log:
        training = Supervised(
            model,
            chat.pad_id,
            train,
            held_out,
            profile.sft,
            profile.compute,
            seed,
            log,
            learning_rate=rate,
            mixed_precision=profile.policy.mixed_precision,
        )
        meter = training.updater.meter()
        training.run(run, meter, chat.tokenizer)
    if training.updater.is_main:
        figures = {
            "turns": sum(map(len, train)),
            "loss_tokens_per_epoch": sum(sum(r.loss_mask) for group in train for r in group),
            **meter.facts(),
        }
        assert training.best is not None
        tried = {
            "learning_rate": rate,
            "points": [asdict(p) for p in log.points],
            "best": asdict(training.best),
            "kept": training.kept,
            "figures": figures,
        }
        with atomic_file(work / FINISHED) as beside:
            beside.write_text(json.dumps(tried, allow_nan=False), encoding="utf-8")
        run.store.clear()
        run.forget_others(training.kept)
    training.updater.accelerator.wait_for_everyone()
    training.updater.free()


def groups_of(
    turns: Sequence[TurnState], prompts: PromptEncoder, chat: ChatFormat, max_length: int, *, packing: bool
) -> list[list[TokenRow]]:
    """Each turn's row; with packing the turns of a conversation in one group."""
    groups: dict[str, list[TokenRow]] = {}
    # A request with several readings has one prompt and one response: it is learnt once.
    for turn in once_per_prompt(turns):
        key = turn.conversation_id if packing else turn.turn_id
        groups.setdefault(key, []).append(response_row(turn, prompts, chat, max_length))
    return list(groups.values())
