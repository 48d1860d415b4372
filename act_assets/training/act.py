"""Algorithm 2: Action-Based Contrastive Self-Training (sections 3.2.2 and 3.2.3).

For every turn t = (p, r, g, a) of a batch, with the current policy pi_theta:

1. sample y ~ pi_theta(. | p);                                                     line 2
2. if A(y) is not a, then y_l = y;                                                 lines 3-4
3. else roll the conversation out: while the latest response clarifies,
   U replies and the policy responds again, up to `max_clarifications`;            lines 6-12
4. if H(outcome, g) >= epsilon, then y_w = the trajectory, else y_l = it;          lines 13-16
5. one DPO update (equation 1) on the up-to-date pairs.

Printed, line 13 stands inside the loop; the text of 3.2.2 tests every trajectory, and so do we. `judge_rollout`
is steps 2 to 4, `ActTrainer` the loop around TRL's DPO loss. The pair is built once per step and its token ids
are scored by the policy and by the frozen initial policy alike; the user's tokens inside it carry no loss.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from act_assets.conversation import PreferencePair, Trajectory, TurnState
from act_assets.profile import Act, Profile
from act_assets.rows import write_rows
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.chat import ChatFormat
from act_assets.training.history import History, TrainingPoint, history_callback, quieten
from act_assets.training.policy import (
    ModelPolicy,
    PromptEncoder,
    SamplingSettings,
    load_model,
    pick_device,
    save_model,
)
from act_assets.training.sft import too_long
from act_assets.training.supervised import trainer_arguments
from act_assets.trajectory import ActionClassifier, UserSimulator, dialogue_seeds, simulate

Verdict = Literal["wrong_action", "bad_outcome", "good_outcome", "already_winner", "no_contrast", "no_room"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A response or trajectory as tokens; `loss_mask` is 1 for the policy's own tokens."""

    text: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """y_w and y_l of one turn under the same prompt."""

    turn: TurnState
    prompt_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion


@dataclass(frozen=True, slots=True)
class Rollout:
    """What happened to one turn in one step: a row of `rollouts/epoch-NN.parquet`.

    `heuristic` is H(outcome, g), None where there was no outcome. `replaced` says which side the rollout became.
    """

    epoch: int
    step: int
    conversation_id: str
    turn_id: str
    action: str
    sampled_action: str
    ended: str
    trajectory: str
    outcome: str | None
    heuristic: float | None
    verdict: str
    replaced: str
    chosen: str
    rejected: str
    sampled_tokens: int


def gold_completion(text: str, chat: ChatFormat) -> Completion:
    """A single response as tokens, in the tokenisation of SFT."""
    ids = tuple(chat.response_ids(text))
    return Completion(text, ids, (1,) * len(ids))


def trajectory_completion(trajectory: Trajectory, chat: ChatFormat, *, mask_user_tokens: bool) -> Completion:
    """A whole trajectory as tokens: what the policy sampled, as it sampled it, and the user's replies between.

    An end of turn that the policy did not sample itself (its token limit was hit) carries no loss.
    """
    ids: list[int] = []
    mask: list[int] = []
    last = len(trajectory.utterances) - 1
    for position, utterance in enumerate(trajectory.utterances):
        if utterance.speaker == "assistant":
            ids += utterance.token_ids
            mask += [1] * len(utterance.token_ids)
            if utterance.truncated and position < last:
                ids.append(chat.end_id)
                mask.append(0)
        else:
            reply = chat.reply_ids(utterance.text)
            ids += reply
            mask += [0 if mask_user_tokens else 1] * len(reply)
    text = trajectory.first.text if len(trajectory.utterances) == 1 else trajectory.text
    return Completion(text, tuple(ids), tuple(mask))


def initial_pair(turn: TurnState, pair: PreferencePair, prompts: PromptEncoder, max_length: int) -> Pair:
    """The pair of phase 1 as tokens. Raises TrainingError, naming the turn, where it does not fit."""
    chosen, rejected = (gold_completion(text, prompts.chat) for text in (pair.chosen, pair.rejected))
    prompt = prompts.ids(turn)
    longest = max(len(chosen.token_ids), len(rejected.token_ids))
    if len(prompt) + longest > max_length:
        raise too_long(turn, len(prompt), longest, max_length)
    return Pair(turn, prompt, chosen, rejected)


def outcome_heuristics(task: Task, pairs: Sequence[Pair], trajectories: Sequence[Trajectory]) -> list[float | None]:
    """H(outcome, g) of each trajectory that began with the right action and has an outcome; None for the others."""
    tested = [
        (i, trajectory.outcome)
        for i, (pair, trajectory) in enumerate(zip(pairs, trajectories, strict=True))
        if trajectory.outcome is not None and trajectory.first.action == pair.turn.action
    ]
    scores = task.judge.heuristic([pairs[i].turn for i, _ in tested], [outcome for _, outcome in tested])
    found = dict(zip((i for i, _ in tested), scores, strict=True))
    return [found.get(i) for i in range(len(pairs))]


def judge_rollout(
    pair: Pair,
    trajectory: Trajectory,
    score: float | None,
    tolerance: float,
    chat: ChatFormat,
    *,
    mask_user_tokens: bool,
) -> tuple[Pair, Verdict]:
    """Steps 2 to 4 for one turn: the up-to-date pair, and why. `score` is H(outcome, g), None without an outcome.

    Where y_w and y_l would become equal the pair of phase 1 stands: such a pair never reaches the loss. It stands
    too where the conversation did not fit max_length: that says nothing about the response.
    """
    sampled = trajectory_completion(trajectory, chat, mask_user_tokens=mask_user_tokens)
    if trajectory.ended == "too_long":
        return pair, "no_room"
    verdict: Verdict
    if trajectory.first.action != pair.turn.action:
        updated, verdict = replace(pair, rejected=sampled), "wrong_action"
    elif score is None or score < tolerance:
        updated, verdict = replace(pair, rejected=sampled), "bad_outcome"
    elif sampled.text == pair.chosen.text:
        return pair, "already_winner"
    else:
        updated, verdict = replace(pair, chosen=sampled), "good_outcome"
    if updated.chosen.text == updated.rejected.text or updated.chosen.token_ids == updated.rejected.token_ids:
        return pair, "no_contrast"
    return updated, verdict


@dataclass
class SelfTraining:
    """Steps 1 to 4 for a batch: the current policy, A, U and H."""

    task: Task
    policy: ModelPolicy
    classifier: ActionClassifier
    simulator: UserSimulator
    intents: dict[str, str]
    settings: Act
    seed: int

    def __call__(self, pairs: Sequence[Pair], epoch: int, step: int) -> tuple[list[Pair], list[Rollout]]:
        turns = [pair.turn for pair in pairs]
        trajectories = simulate(
            turns,
            dialogue_seeds(self.seed, turns, "rollout", step),
            self.policy,
            self.classifier,
            self.simulator,
            [self.intents.get(t.intent_id, "") for t in turns],
            self.task,
            self.settings.max_clarifications,
            continue_first=lambda turn, action: action == turn.action,
        )
        tolerance = self.task.judge.tolerance if self.settings.tolerance is None else self.settings.tolerance
        updated: list[Pair] = []
        rollouts: list[Rollout] = []
        scores = outcome_heuristics(self.task, pairs, trajectories)
        for pair, trajectory, score in zip(pairs, trajectories, scores, strict=True):
            new, verdict = judge_rollout(
                pair,
                trajectory,
                score,
                tolerance,
                self.policy.chat,
                mask_user_tokens=self.settings.mask_user_tokens,
            )
            updated.append(new)
            rollouts.append(_rollout(new, pair, trajectory, verdict, score, epoch, step))
        return updated, rollouts


def _rollout(
    new: Pair, old: Pair, trajectory: Trajectory, verdict: str, score: float | None, epoch: int, step: int
) -> Rollout:
    replaced = "winner" if new.chosen is not old.chosen else "loser" if new.rejected is not old.rejected else "none"
    return Rollout(
        epoch=epoch,
        step=step,
        conversation_id=old.turn.conversation_id,
        turn_id=old.turn.turn_id,
        action=old.turn.action,
        sampled_action=trajectory.first.action if trajectory.utterances else "",
        ended=trajectory.ended,
        trajectory=trajectory.text,
        outcome=trajectory.outcome,
        heuristic=score,
        verdict=verdict,
        replaced=replaced,
        chosen=new.chosen.text,
        rejected=new.rejected.text,
        sampled_tokens=sum(len(u.token_ids) for u in trajectory.utterances),
    )


def collate_pairs(pairs: Sequence[Pair], pad_id: int) -> dict[str, Any]:
    """TRL's layout: all chosen rows, then all rejected rows; `completion_mask` marks the tokens with loss."""
    import torch

    sides = [(p.prompt_ids, p.chosen) for p in pairs] + [(p.prompt_ids, p.rejected) for p in pairs]
    width = max(len(prompt) + len(completion.token_ids) for prompt, completion in sides)
    ids = torch.full((len(sides), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(sides), width), dtype=torch.long)
    loss = torch.zeros((len(sides), width), dtype=torch.long)
    for i, (prompt, completion) in enumerate(sides):
        start, end = len(prompt), len(prompt) + len(completion.token_ids)
        ids[i, :end] = torch.tensor((*prompt, *completion.token_ids), dtype=torch.long)
        attention[i, :end] = 1
        loss[i, start:end] = torch.tensor(completion.loss_mask, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": loss}


def make_trainer(
    model: Any,
    ref_model: Any,
    chat: ChatFormat,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    update: Callable[[Sequence[Pair], int, int], Sequence[Pair]] | None,
    beta: float,
    arguments: dict[str, Any],
    output_dir: str,
    callbacks: Sequence[Any] = (),
    lora: Any = None,
) -> Any:
    """TRL's DPOTrainer on our token ids; `update(pairs, epoch, step)` replaces a training batch's pairs before
    the loss (None: offline DPO). Steps are counted from 0, epochs from 1."""
    from trl import DPOConfig, DPOTrainer

    from datasets import Dataset

    everything = [*pairs, *validation]

    class ActTrainer(DPOTrainer):
        # Rows are indices of pairs that are tokens already; these three hooks keep TRL from tokenising again.
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["index"]

        def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
            batch: Sequence[Pair] = [everything[i] for i in inputs["index"].tolist()]
            if self.model.training and update is not None:
                batch = update(batch, int(self.state.epoch or 0) + 1, self.state.global_step)
            tensors: dict[str, Any] = super()._prepare_inputs(collate_pairs(batch, chat.pad_id))
            return tensors

    return ActTrainer(
        model=model,
        ref_model=ref_model,
        args=DPOConfig(output_dir=output_dir, beta=beta, loss_type=["sigmoid"], max_length=None, **arguments),
        data_collator=_index_collator,
        train_dataset=Dataset.from_dict({"index": list(range(len(pairs)))}),
        eval_dataset=Dataset.from_dict({"index": list(range(len(pairs), len(everything)))}),
        processing_class=chat.tokenizer,
        callbacks=list(callbacks),
        peft_config=lora,
    )


def _index_collator(rows: list[dict[str, int]]) -> dict[str, Any]:
    import torch

    return {"index": torch.tensor([row["index"] for row in rows])}


def train_act(
    task: Task,
    turns: dict[str, TurnState],
    pairs: Sequence[PreferencePair],
    validation_turns: dict[str, TurnState],
    validation_pairs: Sequence[PreferencePair],
    intents: dict[str, str],
    classifier: ActionClassifier,
    simulator: UserSimulator,
    sft_model: Path,
    profile: Profile,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Writes `model/` (the epoch with the highest reward margin on the validation pairs, appendix J.2) and
    `rollouts/epoch-NN.parquet`. Returns facts and curves."""
    settings = profile.act
    model, chat = load_model(sft_model)
    prompts = PromptEncoder(task, chat, profile.policy.max_prompt_tokens)
    train, held_out = (
        [initial_pair(of[p.turn_id], p, prompts, profile.policy.max_length) for p in side]
        for of, side in ((turns, pairs), (validation_turns, validation_pairs))
    )
    lora = _lora_config(profile)
    model = model.to(pick_device())
    # pi_ref is the initial policy, frozen; with LoRA it is the base with the adapter off.
    ref_model = None if lora else load_model(sft_model)[0].to(pick_device())
    history = History("act", f"task {task.name}, {len(pairs)} pairs")
    rollouts: list[Rollout] = []
    best: list[TrainingPoint] = []

    def keep_best(point: TrainingPoint) -> None:
        epoch = round(point.epoch)
        (folder / "rollouts").mkdir(exist_ok=True)
        write_rows(
            folder / "rollouts" / f"epoch-{epoch:02d}.parquet", [r for r in rollouts if r.epoch == epoch], Rollout
        )
        if not best or _margin(point) > _margin(best[-1]):
            best.append(point)
            shutil.rmtree(folder / "model", ignore_errors=True)
            save_model(trainer.accelerator.unwrap_model(trainer.model), chat.tokenizer, folder / "model")

    def update(batch: Sequence[Pair], epoch: int, step: int) -> Sequence[Pair]:
        updated, rows = self_training(batch, epoch, step)
        rollouts.extend(rows)
        return updated

    with tempfile.TemporaryDirectory(prefix="act-trainer-") as scratch:
        trainer = make_trainer(
            model,
            ref_model,
            chat,
            train,
            held_out,
            update,
            settings.beta.get(task.name, task.beta),
            trainer_arguments(settings, derive_seed(seed, "act"), mixed_precision=profile.policy.mixed_precision),
            scratch,
            [history_callback(history, keep_best)],
            lora,
        )
        policy = ModelPolicy(
            trainer.accelerator.unwrap_model(trainer.model),
            chat,
            prompts,
            SamplingSettings(
                profile.policy.max_prompt_tokens,
                profile.policy.max_length,
                profile.policy.max_new_tokens,
                settings.temperature,
                profile.rollout_batch_size,
            ),
        )
        self_training = SelfTraining(task, policy, classifier, simulator, intents, settings, derive_seed(seed, "act"))
        quieten(trainer)
        trainer.train()
    if lora:
        _merge(sft_model, profile, chat, folder)
    counts = {v: sum(1 for r in rollouts if r.verdict == v) for v in Verdict.__args__}  # type: ignore[attr-defined]
    facts = {
        "pairs": len(pairs),
        "steps": history.points[-1].step,
        "kept_epoch": best[-1].epoch,
        "reward_margin": best[-1].reward_margin,
        "reward_accuracy": best[-1].reward_accuracy,
        "sampled_tokens": sum(r.sampled_tokens for r in rollouts),
        **{f"rollouts_{name}": count for name, count in counts.items()},
        "winners_replaced": sum(1 for r in rollouts if r.replaced == "winner"),
        "losers_replaced": sum(1 for r in rollouts if r.replaced == "loser"),
    }
    return facts, history.points


def _margin(point: TrainingPoint) -> float:
    return -math.inf if point.reward_margin is None else point.reward_margin


def _lora_config(profile: Profile) -> Any:
    if profile.policy.lora is None:
        return None
    from peft import LoraConfig

    lora = profile.policy.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _merge(sft_model: Path, profile: Profile, chat: ChatFormat, folder: Path) -> None:
    """The kept adapter into `adapter/`, and merged with its base into `model/`."""
    from peft import PeftModel

    (folder / "model").rename(folder / "adapter")
    base, _ = load_model(sft_model)
    save_model(PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload(), chat.tokenizer, folder / "model")
