"""Which turns are sampled together, and in what order they are trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass

from act_assets.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Group:
    """Batches (indices of pairs) that are sampled from one version of the policy; one batch a group is
    the paper's schedule. `first_step` updates come before its first batch."""

    number: int
    epoch: int
    first_step: int
    batches: tuple[tuple[int, ...], ...]
    ends_epoch: bool

    @property
    def indices(self) -> list[int]:
        return [i for batch in self.batches for i in batch]

    @property
    def steps(self) -> list[int]:
        """For each index, the number of updates before the one it is used in."""
        return [self.first_step + k for k, batch in enumerate(self.batches) for _ in batch]

    @property
    def end(self) -> int:
        """The number of updates once it is used up."""
        return self.first_step + len(self.batches)


def batches_of(count: int, batch_size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """An epoch's batches: every index once, in an order drawn for the epoch."""
    order = list(range(count))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return [tuple(order[i : i + batch_size]) for i in range(0, count, batch_size)]


def plan_groups(count: int, batch_size: int, epochs: int, group_turns: int | None, seed: int) -> list[Group]:
    """All groups of a training, epochs counted from 1; a group ends with its epoch."""
    size = max(1, (group_turns or batch_size) // batch_size)
    groups: list[Group] = []
    for epoch in range(1, epochs + 1):
        batches = batches_of(count, batch_size, seed, epoch)
        for start in range(0, len(batches), size):
            step = (epoch - 1) * len(batches) + start
            chosen = tuple(batches[start : start + size])
            groups.append(Group(len(groups), epoch, step, chosen, start + size >= len(batches)))
    return groups
