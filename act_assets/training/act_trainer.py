"""The loop around Algorithm 2: sample a group, score it with the reference, update batch by batch, validate.

It may be cut short anywhere: states are saved every `compute.save_every_steps` updates and after every epoch, with the
rollouts that are not used up yet, and a resumed run goes on with the same losses to the same weights.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from act_assets.conversation import PreferencePair, TurnState
from act_assets.profile import Profile
from act_assets.rows import read_rows, write_rows
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.act import Pair, Rollout, Sampled, SelfTraining, Verdict, initial_pair
from act_assets.training.adapters import adapter_off, frozen, merged, with_adapter
from act_assets.training.chat_template import ChatFormat
from act_assets.training.generation import RolloutEngine, make_engine
from act_assets.training.history import History, TrainingPoint
from act_assets.training.logging import Board, point_scalars, replay
from act_assets.training.logprobs import ReferenceScores, dpo_terms, sequence_log_probs, sizes, text_key
from act_assets.training.memory import out_of_memory_advised
from act_assets.training.meter import Meter
from act_assets.training.metered import MeteredClassifier, MeteredEngine, MeteredSimulator
from act_assets.training.optimizer import PassLoss, Updater
from act_assets.training.packing import Batch, PackedRow, rows_of
from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model, save_model
from act_assets.training.rollouts import Group, RolloutSchedule, plan_groups, sampled_from_json
from act_assets.training.run_folder import RunFolder
from act_assets.trajectory import ActionClassifier, UserSimulator
from resources.errors import ActError

if TYPE_CHECKING:
    import torch


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
    work: Path,
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Writes `model/` (the epoch with the highest reward margin on the validation pairs, appendix J.2), with LoRA
    `adapter/` too, and `rollouts/epoch-NN.parquet`. `work` keeps what a resumed run goes on from.

    Returns facts and curves. Several processes may run it at once, as the launcher says; the first one writes.
    """
    settings, policy_settings, seed = profile.act, profile.policy, derive_seed(seed, "act")
    lora, mixed_precision = policy_settings.lora, policy_settings.mixed_precision
    where = f"task {task.name}, {len(pairs)} pairs"
    model, chat = load_model(sft_model, quantized=bool(lora and lora.quantized))
    prompts = PromptEncoder(task, chat, policy_settings.max_prompt_tokens)
    train, held_out = (
        [initial_pair(of[p.turn_id], p, prompts, policy_settings.max_length) for p in side]
        for of, side in ((turns, pairs), (validation_turns, validation_pairs))
    )
    groups = plan_groups(len(train), settings.batch_size, settings.epochs, settings.rollout_group, seed)
    if lora is not None:
        model = with_adapter(model, lora, seed, mixed_precision=mixed_precision)
    updater = Updater(
        model,
        settings,
        profile.compute,
        groups[-1].first_step + len(groups[-1].batches),
        seed,
        where,
        mixed_precision=mixed_precision,
    )
    # pi_ref is the initial policy, frozen; with LoRA it is the base with the adapter off.
    reference = ReferenceScores(
        updater.policy if lora else frozen(load_model(sft_model)[0], updater.device, mixed_precision=mixed_precision),
        chat.pad_id,
        updater.device,
        autocast=updater.autocast,
        as_reference=adapter_off(updater) if lora else nullcontext,
        limit=profile.compute.micro_batch_tokens,
        share=settings.prefix_sharing,
    )
    meter = updater.meter()
    engine = MeteredEngine(
        make_engine(
            profile.engine,
            updater.policy,
            chat,
            batch_size=profile.rollout_batch_size,
            mixed_precision=mixed_precision,
            snapshot=settings.rollout_lag > 0,
            model_path=sft_model,
            logs=folder / "logs",
            max_length=policy_settings.max_length,
            accelerator=updater.accelerator,
        ),
        meter,
    )
    sampling = SamplingSettings(policy_settings.max_length, policy_settings.max_new_tokens, settings.temperature)
    board = Board(folder / "logs") if updater.is_main else Board(None)
    loop = _Loop(
        updater,
        SelfTraining(
            task,
            ModelPolicy(engine, chat, prompts, sampling),
            MeteredClassifier(classifier, meter),
            MeteredSimulator(simulator, meter),
            intents,
            settings,
            seed,
            meter.phase,
        ),
        engine,
        reference,
        train,
        held_out,
        settings.beta.get(task.name, task.beta),
        profile,
        chat,
        meter,
        board,
        RunFolder(work, profile.compute, where),
        History("act", where, updater.total_steps),
    )
    with closing(engine), board:
        loop.run(groups)
    if updater.is_main:
        _publish(work, loop.kept, sft_model, chat, folder, adapted=lora is not None)
    return _facts(loop, len(pairs), folder) if updater.is_main else {}, loop.history.points


@dataclass
class _Loop:
    """Everything a training step touches."""

    updater: Updater
    self_training: SelfTraining
    engine: RolloutEngine
    reference: ReferenceScores
    train: Sequence[Pair]
    held_out: Sequence[Pair]
    beta: float
    profile: Profile
    chat: ChatFormat
    meter: Meter
    board: Board
    folder: RunFolder
    history: History
    rollouts: list[Rollout] = field(default_factory=list)  # of the epoch that is under way
    best: TrainingPoint | None = None
    kept: str = ""

    def run(self, groups: Sequence[Group]) -> None:
        """All groups, from where a run before this one was cut short."""
        updater = self.updater
        schedule = RolloutSchedule(
            groups,
            self.sample,
            self.push,
            updater.gather,
            updater.processes,
            self.profile.act.rollout_lag,
        )
        self.resume(schedule)
        self.score([*self.train, *self.held_out])
        try:
            for group in groups:
                if group.first_step + len(group.batches) > updater.step_count:
                    self.group(
                        group, schedule, last=group is groups[-1] or groups[group.number + 1].epoch > group.epoch
                    )
        finally:
            schedule.close()

    def group(self, group: Group, schedule: RolloutSchedule, *, last: bool) -> None:
        """Samples a group, and makes the updates it is for; `last` of its epoch, validates."""
        try:
            # With a lag, `generate` is the wait for what is sampled beside.
            with out_of_memory_advised(self.profile, self.history.where, "rollouts"), self.meter.phase("generate"):
                sampled = schedule.take(group.number, self.updater.step_count)
        except ActError:
            # With several processes the others wait in a collective operation. With a lag the group that is sampled
            # ahead is lost, and the policy it was sampled from is no longer there: the state before has both.
            if self.updater.processes == 1 and not self.profile.act.rollout_lag:
                self.save(schedule)
            raise
        pairs = [s.applied(self.train[i]) for s, i in zip(sampled, group.indices, strict=True)]
        self.score(pairs)
        start = 0
        for k, batch in enumerate(group.batches):
            used = slice(start, start + len(batch))
            start += len(batch)
            if group.first_step + k < self.updater.step_count:
                continue
            self.update(pairs[used], sampled[used], group, k)
            ends_epoch = last and k == len(group.batches) - 1
            if not ends_epoch and self.updater.step_count % self.folder.every == 0:
                self.save(schedule)
        if last:
            self.validate(group.epoch)
            self.save(schedule)
            if self.updater.is_main:
                self.folder.forget_others(self.kept)

    # --- steps 1 to 4 ---

    def push(self, version: int) -> None:
        with self.updater.whole():
            self.engine.push(version)

    def sample(self, group: Group, version: int) -> list[Sampled]:
        """This process's share of a group's rollouts."""
        rank, processes = self.updater.rank, self.updater.processes
        indices, steps = group.indices[rank::processes], group.steps[rank::processes]
        if self.profile.act.rollout_lag:  # the engine has weights of its own, and this is another thread
            return self.self_training([self.train[i] for i in indices], group.epoch, steps, version)
        with self.updater.whole():
            return self.self_training([self.train[i] for i in indices], group.epoch, steps, version)

    def score(self, pairs: Sequence[Pair]) -> None:
        """log pi_ref of what has not been scored before, dealt out to the processes."""
        with self.meter.phase("score"):
            rank, processes, before = self.updater.rank, self.updater.processes, self.reference.scored_tokens
            share = [pair.rows for pair in pairs[rank::processes]]
            self.reference(share)
            if processes > 1:
                known = [[key, self.reference.known[key]] for rows in share for key in map(text_key, rows)]
                self.reference.known.update((key, score) for key, score in self.updater.gather(known))
            self.meter.count_own(scored_tokens=self.reference.scored_tokens - before)

    # --- step 5 ---

    def update(self, pairs: Sequence[Pair], sampled: Sequence[Sampled], group: Group, batch: int) -> None:
        with self.meter.phase("update"):
            rows = [rows_of(pair.rows, share=self.profile.act.prefix_sharing) for pair in pairs]
            done = self.updater.step(sizes(rows), self.loss(pairs, rows, len(pairs), sampled))
        self.rollouts += [s.rollout for s in sampled]
        count = len(pairs)
        self.meter.count(pairs=count, trained_tokens=sum(len(row.token_ids) for of in rows for row in of))
        sums = done.sums
        point = TrainingPoint(
            done.step,
            round(group.epoch - 1 + (done.step - self.epoch_start(group)) / self.epoch_steps, 4),
            "train",
            done.loss,
            sums["margin"] / count,
            sums["accuracy"] / count,
            kl=sums["log_ratio"] / sums["sampled"] if sums["sampled"] else None,
            gradient_norm=done.gradient_norm,
            learning_rate=done.learning_rate,
            winner_share=sum(s.chosen is not None for s in sampled) / count,
            loser_share=sum(s.rejected is not None for s in sampled) / count,
            staleness=sum(s.rollout.step - s.rollout.version for s in sampled) / count,
        )
        self.history.point(point)
        self.board.scalars(done.step, {**point_scalars(point), **self.meter.rates(), **_verdicts(sampled)})

    @property
    def epoch_steps(self) -> int:
        return math.ceil(len(self.train) / self.profile.act.batch_size)

    def epoch_start(self, group: Group) -> int:
        return (group.epoch - 1) * self.epoch_steps

    def loss(
        self, pairs: Sequence[Pair], rows: Sequence[Sequence[PackedRow]], count: int, sampled: Sequence[Sampled] = ()
    ) -> PassLoss:
        """Equation 1, averaged over `count` pairs, for those of a pass."""

        def part(chosen: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            import torch

            device = self.updater.device
            batch = Batch.of([row for i in chosen for row in rows[i]], self.chat.pad_id, device)
            log_probs = sequence_log_probs(self.updater.model, batch)
            scores = self.reference.known_of([pairs[i].rows for i in chosen])
            reference = torch.tensor(scores, dtype=log_probs.dtype, device=device)
            terms = dpo_terms(log_probs, reference, self.beta)
            sums = {"margin": terms.margin.sum(), "accuracy": (terms.margin > 0).sum()}
            if sampled:
                own = [side is not None for i in chosen for side in (sampled[i].chosen, sampled[i].rejected)]
                mask = torch.tensor(own, dtype=log_probs.dtype, device=device)
                # E over pi's own samples of log pi - log pi_ref: an estimate of KL(pi || pi_ref)
                sums |= {"log_ratio": ((log_probs.detach() - reference) * mask).sum(), "sampled": mask.sum()}
            return terms.loss.sum() / count, sums

        return part

    def validate(self, epoch: int) -> None:
        """The reward margin on the validation pairs, and the model kept where it is the highest so far."""
        with self.meter.phase("validate"):
            rows = [rows_of(pair.rows, share=self.profile.act.prefix_sharing) for pair in self.held_out]
            count = len(self.held_out)
            sums = self.updater.evaluate(sizes(rows), self.loss(self.held_out, rows, count))
        point = TrainingPoint(
            self.updater.step_count,
            float(epoch),
            "validation",
            sums["loss"],
            sums["margin"] / count,
            sums["accuracy"] / count,
        )
        self.history.point(point)
        self.board.scalars(point.step, point_scalars(point))
        with self.meter.phase("save"):
            if self.best is None or _margin(point) > _margin(self.best):
                weights = self.updater.weights()
                self.best, self.kept = point, f"kept-{epoch:02d}"
                if self.updater.is_main:
                    self.folder.keep(
                        epoch, lambda to: save_model(self.updater.policy, self.chat.tokenizer, to, weights)
                    )
            if self.updater.is_main:
                done = self.rollouts
                self.folder.file(f"rollouts/epoch-{epoch:02d}.parquet", lambda to: write_rows(to, done, Rollout))
            self.rollouts = []

    # --- states ---

    def save(self, schedule: RolloutSchedule) -> None:
        with out_of_memory_advised(self.profile, self.history.where, "rollouts"):
            schedule.settle()
        record = {
            "points": [asdict(p) for p in self.history.points],
            "best": self.best and asdict(self.best),
            "kept": self.kept,
            "reference": self.reference.state(),
            "meter": self.meter.snapshot(),
            "rollouts": [asdict(r) for r in self.rollouts],
            "held": {str(n): [asdict(s) for s in sampled] for n, sampled in schedule.held.items()},
        }
        with self.meter.phase("save"):
            self.folder.save(self.updater, record)

    def resume(self, schedule: RolloutSchedule) -> None:
        saved = self.folder.resume(self.updater)
        if saved is None:
            return
        record = saved.record
        replay(record["points"], self.history, self.board)
        self.best = record["best"] and TrainingPoint(**record["best"])
        self.kept = record["kept"]
        self.reference.restore(record["reference"])
        self.meter.restore(record["meter"])
        self.rollouts = [Rollout(**r) for r in record["rollouts"]]
        schedule.held = {int(n): [sampled_from_json(s) for s in sampled] for n, sampled in record["held"].items()}


def _verdicts(sampled: Sequence[Sampled]) -> dict[str, float]:
    names = [s.rollout.verdict for s in sampled]
    return {f"verdicts/{name}": names.count(name) / len(names) for name in get_args(Verdict)}


def _margin(point: TrainingPoint) -> float:
    return -math.inf if point.reward_margin is None else point.reward_margin


def _publish(work: Path, kept: str, sft_model: Path, chat: ChatFormat, folder: Path, *, adapted: bool) -> None:
    """The kept model and the rollouts, where the artifact has them; an adapter merged with its base, too."""
    shutil.copytree(work / "rollouts", folder / "rollouts")
    if adapted:
        shutil.copytree(work / kept, folder / "adapter")
        save_model(merged(load_model(sft_model)[0], folder / "adapter"), chat.tokenizer, folder / "model")
    else:
        shutil.copytree(work / kept, folder / "model")


def _facts(loop: _Loop, pairs: int, folder: Path) -> dict[str, Any]:
    rollouts = [r for path in sorted((folder / "rollouts").glob("*.parquet")) for r in read_rows(path, Rollout)]
    best = loop.best
    assert best is not None
    return {
        "pairs": pairs,
        "steps": loop.history.points[-1].step,
        "kept_epoch": best.epoch,
        "reward_margin": best.reward_margin,
        "reward_accuracy": best.reward_accuracy,
        "sampled_tokens": sum(r.sampled_tokens for r in rollouts),
        **{f"rollouts_{v}": sum(r.verdict == v for r in rollouts) for v in get_args(Verdict)},
        "winners_replaced": sum(r.replaced == "winner" for r in rollouts),
        "losers_replaced": sum(r.replaced == "loser" for r in rollouts),
        "staleness": sum(r.step - r.version for r in rollouts) / len(rollouts),
        **loop.meter.facts(),
    }
