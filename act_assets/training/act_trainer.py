"""The loop around Algorithm 2: sample a group, score it with the reference, update batch by batch, validate.

It may be cut short anywhere: states are saved every `compute.save_every_steps` updates and after every
epoch, with the rollouts that are not used up yet; a resumed run has the same losses and weights.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from act_assets.conversation import PreferencePair, TurnState
from act_assets.profile import Profile
from act_assets.rows import read_rows, write_rows
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.act import Pair, Rollout, Sampled, SelfTraining, Verdict, initial_pair
from act_assets.training.adapters import adapter_off, frozen, publish, with_adapter
from act_assets.training.checkpoint import RunFolder
from act_assets.training.generation import RolloutEngine, make_engine
from act_assets.training.logging import TrainingLog, TrainingPoint
from act_assets.training.logprobs import ReferenceScores, dpo_terms, sequence_log_probs, sizes, text_key
from act_assets.training.meter import Meter, MeteredEngine, MeteredRoles
from act_assets.training.optimizer import PassLoss, Updater
from act_assets.training.packing import Batch, PackedRow, rows_of
from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model, save_model
from act_assets.training.preflight import out_of_memory_advised
from act_assets.training.rollouts import Group, plan_groups
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
    `adapter/` too, and `rollouts/epoch-NN.parquet`. `work` keeps what a resumed run starts from.

    Returns facts and the curve. Several processes may run it at once, as the launcher says; the first
    one writes.
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
        groups[-1].end,
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
        as_reference=partial(adapter_off, updater) if lora else nullcontext,
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
    roles = MeteredRoles(classifier, simulator, meter)
    policy = ModelPolicy(engine, chat, prompts, sampling)
    logs = folder / "logs" if updater.is_main else None
    with closing(engine), TrainingLog("act", where, logs, total_steps=updater.total_steps) as log:
        loop = _Loop(
            updater,
            SelfTraining(task, policy, roles, roles, intents, settings, seed, meter.phase),
            engine,
            reference,
            train,
            held_out,
            settings.beta.get(task.name, task.beta),
            profile,
            meter,
            log,
            RunFolder(work, profile.compute, where),
            groups,
        )
        loop.run()
    if not updater.is_main:
        return {}, log.points
    shutil.copytree(work / "rollouts", folder / "rollouts")
    if lora is not None:
        shutil.copytree(work / loop.kept, folder / "adapter")
    publish(work / loop.kept, (str(sft_model), None), folder / "model", adapted=lora is not None)
    rollouts = [r for path in sorted((folder / "rollouts").glob("*.parquet")) for r in read_rows(path, Rollout)]
    assert loop.best is not None
    facts = {
        "pairs": len(pairs),
        "steps": log.points[-1].step,
        "kept_epoch": loop.best.epoch,
        "reward_margin": loop.best.reward_margin,
        "reward_accuracy": loop.best.reward_accuracy,
        "sampled_tokens": sum(r.sampled_tokens for r in rollouts),
        **{f"rollouts_{v}": sum(r.verdict == v for r in rollouts) for v in get_args(Verdict)},
        "winners_replaced": sum(r.replaced == "winner" for r in rollouts),
        "losers_replaced": sum(r.replaced == "loser" for r in rollouts),
        "staleness": sum(r.step - r.version for r in rollouts) / len(rollouts),
        **meter.facts(),
    }
    return facts, log.points


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
    meter: Meter
    log: TrainingLog
    folder: RunFolder
    groups: Sequence[Group]
    rollouts: list[Rollout] = field(default_factory=list)  # of the epoch that is under way
    held: dict[int, list[Sampled]] = field(default_factory=dict)  # groups that a resumed run must not sample again
    ahead: tuple[int, Future[list[Sampled]]] | None = None  # the group that is sampled while another trains
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "rollouts"))
    best: TrainingPoint | None = None
    kept: str = ""

    def run(self) -> None:
        """All groups, from where a run before this one was cut short."""
        self.resume()
        self.score([*self.train, *self.held_out])
        with self.thread:
            for group in self.groups:
                if group.end > self.updater.step_count:
                    self.group(group)

    def group(self, group: Group) -> None:
        """Samples a group, and makes the updates it is for; at the end of an epoch, validates."""
        try:
            # With a lag, `generate` is the wait for what is sampled beside.
            with out_of_memory_advised(self.profile, self.log.where, "rollouts"), self.meter.phase("generate"):
                sampled = self.take(group)
        except ActError:
            # With several processes the others wait in a collective operation. With a lag the group that is sampled
            # ahead is lost, and the policy it was sampled from is no longer there: the state before has both.
            if self.updater.processes == 1 and not self.profile.act.rollout_lag:
                self.save()
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
            ends_epoch = group.ends_epoch and k == len(group.batches) - 1
            if not ends_epoch and self.updater.step_count % self.folder.every == 0:
                self.save()
        if group.ends_epoch:
            self.validate(group.epoch)
            self.save()
            if self.updater.is_main:
                self.folder.forget_others(self.kept)

    # --- steps 1 to 4 ---

    def take(self, group: Group) -> list[Sampled]:
        """A group's rollouts, in the order of its indices.

        With a lag of 1 the next group is then sampled in a thread of its own while this one trains:
        from the policy as it was before this one.
        """
        self.settle()
        if group.number not in self.held:
            self.push()
            self.held[group.number] = self.together(self.sample(group, self.updater.step_count))
        self.held = {number: sampled for number, sampled in self.held.items() if number >= group.number}
        following = group.number + 1
        if self.profile.act.rollout_lag and following < len(self.groups) and following not in self.held:
            self.push()
            self.ahead = following, self.thread.submit(self.sample, self.groups[following], self.updater.step_count)
        return self.held[group.number]

    def settle(self) -> None:
        """Waits for what is sampled ahead, and holds it."""
        if self.ahead is not None:
            (number, share), self.ahead = self.ahead, None
            self.held[number] = self.together(share.result())

    def together(self, share: list[Sampled]) -> list[Sampled]:
        """The processes' shares of a group, in the order of its indices."""
        processes = self.updater.processes
        if processes == 1:
            return share
        dealt = [Sampled.from_json(value) for value in self.updater.sharding.gather([asdict(s) for s in share])]
        places = [i for p in range(processes) for i in range(p, len(dealt), processes)]
        return [s for _, s in sorted(zip(places, dealt, strict=True), key=lambda at: at[0])]

    def push(self) -> None:
        """Makes the policy of now the one that is sampled."""
        with self.updater.sharding.whole():
            self.engine.push(self.updater.step_count)

    def sample(self, group: Group, version: int) -> list[Sampled]:
        """This process's share of a group's rollouts."""
        rank, processes = self.updater.rank, self.updater.processes
        pairs, steps = [self.train[i] for i in group.indices[rank::processes]], group.steps[rank::processes]
        # With a lag the engine has weights of its own, and this is another thread.
        with nullcontext() if self.profile.act.rollout_lag else self.updater.sharding.whole():
            return self.self_training(pairs, group.epoch, steps, version)

    def score(self, pairs: Sequence[Pair]) -> None:
        """log pi_ref of what has not been scored before, dealt out to the processes."""
        with self.meter.phase("score"):
            rank, processes, before = self.updater.rank, self.updater.processes, self.reference.scored_tokens
            share = [pair.rows for pair in pairs[rank::processes]]
            self.reference(share)
            if processes > 1:
                known = [[key, self.reference.known[key]] for rows in share for key in map(text_key, rows)]
                self.reference.known.update((key, score) for key, score in self.updater.sharding.gather(known))
            self.meter.count_own(scored_tokens=self.reference.scored_tokens - before)

    # --- step 5 ---

    def update(self, pairs: Sequence[Pair], sampled: Sequence[Sampled], group: Group, batch: int) -> None:
        with self.meter.phase("update"):
            rows = [rows_of(pair.rows, share=self.profile.act.prefix_sharing) for pair in pairs]
            done = self.updater.step(sizes(rows), self.loss(pairs, rows, len(pairs), sampled))
        self.rollouts += [s.rollout for s in sampled]
        count, epoch_steps = len(pairs), math.ceil(len(self.train) / self.profile.act.batch_size)
        self.meter.count(pairs=count, trained_tokens=sum(len(row.token_ids) for of in rows for row in of))
        sums = done.sums
        point = TrainingPoint(
            done.step,
            round(group.epoch - 1 + (done.step - (group.epoch - 1) * epoch_steps) / epoch_steps, 4),
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
        verdicts = [s.rollout.verdict for s in sampled]
        shares = {f"verdicts/{name}": verdicts.count(name) / count for name in get_args(Verdict)}
        self.log.point(point, {**self.meter.rates(), **shares})

    def loss(
        self, pairs: Sequence[Pair], rows: Sequence[Sequence[PackedRow]], count: int, sampled: Sequence[Sampled] = ()
    ) -> PassLoss:
        """Equation 1, averaged over `count` pairs, for those of a pass."""

        def part(chosen: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            import torch

            device = self.updater.device
            batch = Batch.of([row for i in chosen for row in rows[i]], self.reference.pad_id, device)
            log_probs = sequence_log_probs(self.updater.model, batch)
            scores = [self.reference.known[text_key(row)] for i in chosen for row in pairs[i].rows]
            reference = torch.tensor(scores, dtype=log_probs.dtype, device=device)
            losses, margins = dpo_terms(log_probs, reference, self.beta)
            sums = {"margin": margins.sum(), "accuracy": (margins > 0).sum()}
            if sampled:
                own = [side is not None for i in chosen for side in (sampled[i].chosen, sampled[i].rejected)]
                mask = torch.tensor(own, dtype=log_probs.dtype, device=device)
                # E over pi's own samples of log pi - log pi_ref: an estimate of KL(pi || pi_ref)
                sums |= {"log_ratio": ((log_probs.detach() - reference) * mask).sum(), "sampled": mask.sum()}
            return losses.sum() / count, sums

        return part

    def validate(self, epoch: int) -> None:
        """The reward margin on the validation pairs, and the model kept where it is the highest so far."""
        with self.meter.phase("validate"):
            rows = [rows_of(pair.rows, share=self.profile.act.prefix_sharing) for pair in self.held_out]
            count = len(self.held_out)
            sums = self.updater.evaluate(sizes(rows), self.loss(self.held_out, rows, count))
        margin, accuracy = sums["margin"] / count, sums["accuracy"] / count
        point = TrainingPoint(self.updater.step_count, float(epoch), "validation", sums["loss"], margin, accuracy)
        best = self.best.reward_margin if self.best else None
        self.log.point(point)
        with self.meter.phase("save"):
            if best is None or margin > best:
                weights = self.updater.sharding.weights()
                self.best, self.kept = point, f"kept-{epoch:02d}"
                if self.updater.is_main:
                    tokenizer = self.self_training.policy.chat.tokenizer
                    self.folder.keep(self.kept, partial(save_model, self.updater.policy, tokenizer, weights=weights))
            if self.updater.is_main:
                done = self.rollouts
                self.folder.file(f"rollouts/epoch-{epoch:02d}.parquet", lambda to: write_rows(to, done, Rollout))
            self.rollouts = []

    # --- states ---

    def save(self) -> None:
        with out_of_memory_advised(self.profile, self.log.where, "rollouts"):
            self.settle()
        record = {
            "points": [asdict(p) for p in self.log.points],
            "best": self.best and asdict(self.best),
            "kept": self.kept,
            "reference": self.reference.known,
            "meter": self.meter.snapshot(),
            "rollouts": [asdict(r) for r in self.rollouts],
            "held": {str(n): [asdict(s) for s in sampled] for n, sampled in self.held.items()},
        }
        with self.meter.phase("save"):
            self.folder.save(self.updater, record)

    def resume(self) -> None:
        saved = self.folder.resume(self.updater)
        if saved is None:
            return
        record = saved.record
        self.log.replay(record["points"])
        self.best = record["best"] and TrainingPoint(**record["best"])
        self.kept = record["kept"]
        self.reference.known = dict(record["reference"])
        self.meter.restore(record["meter"])
        self.rollouts = [Rollout(**r) for r in record["rollouts"]]
        self.held = {int(n): [Sampled.from_json(s) for s in sampled] for n, sampled in record["held"].items()}
