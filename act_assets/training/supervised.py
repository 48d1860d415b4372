"""Next-token training on token rows, for the warm-up of a base policy and for SFT alike."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from act_assets.profile import Optimisation
from act_assets.seeds import derive_seed
from act_assets.training.checkpoint import RunFolder
from act_assets.training.logging import TrainingLog, TrainingPoint
from act_assets.training.logprobs import sizes, token_log_probs
from act_assets.training.optimizer import PassLoss, Updater
from act_assets.training.packing import Batch, PackedRow, TokenRow, grow
from act_assets.training.policy import save_model
from resources.settings import Compute

if TYPE_CHECKING:
    import torch

    from act_assets.training.meter import Meter


class Supervised:
    """Trains a model on the masked tokens (AdamW, linear decay), a validation after every epoch.

    `groups` are rows that begin alike, such as the turns of a conversation: they are drawn together,
    and what those of one batch share is computed once. `batch_size` counts rows. After `run`, `best`
    is the epoch with the lowest validation loss, and `kept` the name of its model.
    """

    def __init__(
        self,
        model: Any,
        pad_id: int,
        groups: Sequence[Sequence[TokenRow]],
        validation: Sequence[Sequence[TokenRow]],
        settings: Optimisation,
        compute: Compute,
        seed: int,
        log: TrainingLog,
        *,
        learning_rate: float | None = None,
        mixed_precision: bool = False,
    ) -> None:
        self.groups, self.validation, self.settings, self.seed = groups, validation, settings, seed
        self.pad_id, self.log = pad_id, log
        self.best: TrainingPoint | None = None
        self.kept = ""
        self.epoch_steps = len(self.batches(1))
        log.total_steps = settings.epochs * self.epoch_steps
        self.updater = Updater(
            model,
            settings,
            compute,
            log.total_steps,
            seed,
            log.where,
            learning_rate=learning_rate,
            mixed_precision=mixed_precision,
        )

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """An epoch's batches of (group, place in it): every row once, groups in an order drawn for the epoch."""
        order = list(range(len(self.groups)))
        random.Random(derive_seed(self.seed, "order", epoch)).shuffle(order)
        rows = [(g, i) for g in order for i in range(len(self.groups[g]))]
        size = self.settings.batch_size
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def run(self, folder: RunFolder, meter: Meter, tokenizer: Any = None) -> None:
        """All epochs, from where a run before this one was cut short. With a `tokenizer` the model of the
        best epoch is kept in `folder`."""
        saved = folder.resume(self.updater)
        if saved:
            self.log.replay(saved.record["points"])
            meter.restore(saved.record["meter"])
            if kept := saved.record["kept"]:
                self.best, self.kept = TrainingPoint(**kept["best"]), kept["name"]

        def save() -> None:
            with meter.phase("save"):
                kept = {"best": asdict(self.best), "name": self.kept} if self.best else {}
                points = [asdict(p) for p in self.log.points]
                folder.save(self.updater, {"points": points, "meter": meter.snapshot(), "kept": kept})

        for epoch in range(1, self.settings.epochs + 1):
            start = (epoch - 1) * self.epoch_steps
            if self.updater.step_count >= start + self.epoch_steps:
                continue
            for k, batch in enumerate(self.batches(epoch)):
                if start + k < self.updater.step_count:
                    continue
                members: dict[int, list[TokenRow]] = {}
                for g, i in batch:
                    members.setdefault(g, []).append(self.groups[g][i])
                rows = self._rows(members.values())
                with meter.phase("update"):
                    done = self.updater.step(sizes(rows), self.loss(rows))
                meter.count(turns=len(batch), trained_tokens=sum(len(row.token_ids) for of in rows for row in of))
                point = TrainingPoint(
                    done.step,
                    round(epoch - 1 + (k + 1) / self.epoch_steps, 4),
                    "train",
                    done.loss,
                    gradient_norm=done.gradient_norm,
                    learning_rate=done.learning_rate,
                )
                self.log.point(point, meter.rates())
                if k < self.epoch_steps - 1 and self.updater.step_count % folder.every == 0:
                    save()
            with meter.phase("validate"):
                point = self.validate(epoch)
            if tokenizer and (self.best is None or point.loss < self.best.loss):
                with meter.phase("save"):
                    self.best, self.kept = point, f"kept-{epoch:02d}"
                    weights = self.updater.sharding.weights()
                    if self.updater.is_main:
                        folder.keep(self.kept, partial(save_model, self.updater.policy, tokenizer, weights=weights))
            save()
            if self.updater.is_main and self.kept:
                folder.forget_others(self.kept)

    def _rows(self, groups: Iterable[Sequence[TokenRow]]) -> list[list[PackedRow]]:
        """Each group as one row, or as several where one would be more than a pass may hold."""
        limit = self.updater.compute.micro_batch_tokens
        rows: list[list[PackedRow]] = []
        waiting = list(groups)[::-1]
        while waiting:
            group = waiting.pop()
            row = grow(group)
            if limit is not None and len(row.token_ids) > limit and len(group) > 1:
                waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
            else:
                rows.append([row])
        return rows

    def validate(self, epoch: int) -> TrainingPoint:
        """The loss per token on the validation rows."""
        rows = self._rows(self.validation)
        sums = self.updater.evaluate(sizes(rows), self.loss(rows))
        point = TrainingPoint(self.updater.step_count, float(epoch), "validation", sums["loss"])
        self.log.point(point)
        return point

    def loss(self, rows: Sequence[Sequence[PackedRow]]) -> PassLoss:
        """The cross-entropy per token that carries loss, over all of `rows`, for those of a pass."""
        count = sum(sum(s.loss_mask) for of in rows for row in of for s in row.sequences)

        def part(chosen: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch = Batch.of([row for i in chosen for row in rows[i]], self.pad_id, self.updater.device)
            return -token_log_probs(self.updater.model, batch).sum() / count, {}

        return part
