"""Which turns are sampled when, and from which version of the policy.

A group is what one version is sampled for; one batch a group is the paper's schedule. With a lag of 1 the next group is
sampled, in a thread of its own, while this one trains: from the policy as it was before this one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from act_assets.seeds import derive_seed
from act_assets.training.act import Completion, Rollout, Sampled


@dataclass(frozen=True, slots=True)
class Group:
    """Batches (indices of pairs) that are sampled together; `first_step` updates come before its first batch."""

    number: int
    epoch: int
    first_step: int
    batches: tuple[tuple[int, ...], ...]

    @property
    def indices(self) -> list[int]:
        return [i for batch in self.batches for i in batch]

    @property
    def steps(self) -> list[int]:
        """For each index, the number of updates before the one it is used in."""
        return [self.first_step + k for k, batch in enumerate(self.batches) for _ in batch]


def batches_of(count: int, batch_size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """An epoch's batches: every index once, in an order drawn for the epoch."""
    order = list(range(count))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return [tuple(order[i : i + batch_size]) for i in range(0, count, batch_size)]


def plan_groups(count: int, batch_size: int, epochs: int, group_turns: int | None, seed: int) -> list[Group]:
    """All groups of a training, epochs counted from 1; a group ends with its epoch."""
    size = max(1, (group_turns or batch_size) // batch_size)
    groups: list[Group] = []
    step = 0
    for epoch in range(1, epochs + 1):
        batches = batches_of(count, batch_size, seed, epoch)
        for start in range(0, len(batches), size):
            chosen = tuple(batches[start : start + size])
            groups.append(Group(len(groups), epoch, step, chosen))
            step += len(chosen)
    return groups


# Samples this process's share of a group: (group, version of the policy) -> one record per index.
SampleShare = Callable[[Group, int], list[Sampled]]


class RolloutSchedule:
    """Hands out each group's rollouts; `held` has those that a resumed run must not sample again.

    `push(version)` makes the policy of now the one that is sampled; `gather` puts the processes' shares together.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        sample: SampleShare,
        push: Callable[[int], None],
        gather: Callable[[Sequence[Any]], list[Any]],
        processes: int,
        lag: int,
    ) -> None:
        self.groups, self._sample, self._push, self._gather = groups, sample, push, gather
        self._processes, self._lag = processes, lag
        self.held: dict[int, list[Sampled]] = {}
        self._ahead: tuple[int, Future[list[Sampled]]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if lag else None

    def take(self, number: int, version: int) -> list[Sampled]:
        """The rollouts of a group, in the order of its indices. `version`: the updates done so far."""
        self.settle()
        if number not in self.held:
            self._push(version)
            self.held[number] = self._together(self._sample(self.groups[number], version))
        self.held = {k: v for k, v in self.held.items() if k >= number}
        following = number + 1
        if self._thread is not None and following < len(self.groups) and following not in self.held:
            self._push(version)
            self._ahead = (following, self._thread.submit(self._sample, self.groups[following], version))
        return self.held[number]

    def settle(self) -> None:
        """Waits for what is being sampled, and holds it."""
        if self._ahead is not None:
            number, share = self._ahead
            self._ahead = None
            self.held[number] = self._together(share.result())

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _together(self, share: list[Sampled]) -> list[Sampled]:
        if self._processes == 1:
            return share
        dealt = [sampled_from_json(value) for value in self._gather([asdict(s) for s in share])]
        places = [i for p in range(self._processes) for i in range(p, len(dealt), self._processes)]
        return [s for _, s in sorted(zip(places, dealt, strict=True), key=lambda at: at[0])]


def sampled_from_json(value: dict[str, Any]) -> Sampled:
    """The inverse of `asdict` through JSON."""

    def completion(side: dict[str, Any] | None) -> Completion | None:
        if side is None:
            return None
        return Completion(side["text"], tuple(side["token_ids"]), tuple(side["loss_mask"]))

    return Sampled(completion(value["chosen"]), completion(value["rejected"]), Rollout(**value["rollout"]))
