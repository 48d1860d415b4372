"""Which turns are sampled when, from which version of the policy."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from act_assets.training.act import Completion, Rollout, Sampled
from act_assets.training.act_trainer import _Loop
from act_assets.training.rollouts import Group, batches_of, plan_groups
from resources.errors import TrainingError


def _sampled(turn: int, version: int) -> Sampled:
    rollout = Rollout(1, 0, version, "c", str(turn), "ANSWER", "ANSWER", "settled", "", "1", 1.0, "", "none", "", "", 3)
    return Sampled(Completion("yes", (1, 2), (1, 0)), None, rollout)


class Recorder(_Loop):
    """A loop of which only the schedule is there; plays the sampling of one process."""

    def __init__(self, groups: list[Group], lag: int, processes: int = 1, gather: Any = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.threads: list[str] = []
        sharding = SimpleNamespace(whole=nullcontext, gather=gather)
        updater: Any = SimpleNamespace(step_count=0, processes=processes, rank=0, sharding=sharding)
        engine: Any = SimpleNamespace(push=lambda version: self.events.append(("push", version)))
        profile: Any = SimpleNamespace(act=SimpleNamespace(rollout_lag=lag))
        none: Any = None
        super().__init__(updater, none, engine, none, [], [], 0.1, profile, none, none, none, groups)

    def sample(self, group: Group, version: int) -> list[Sampled]:
        self.events.append(("sample", group.number))
        self.threads.append(threading.current_thread().name)
        return [_sampled(i, version) for i in group.indices[:: self.updater.processes]]

    def take_at(self, group: Group, step: int) -> list[Sampled]:
        self.updater.step_count = step
        return self.take(group)


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own() -> None:
    first, second = (batches_of(10, 4, seed=3, epoch=e) for e in (1, 2))
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(i for b in first for i in b) == list(range(10))
    assert first != second
    assert first == batches_of(10, 4, seed=3, epoch=1)


@pytest.mark.parametrize(
    ("turns", "sizes"), [(None, [1, 1, 1, 1, 1, 1]), (4, [1] * 6), (8, [2, 1, 2, 1]), (99, [3, 3])]
)
def test_a_group_is_whole_batches_of_one_epoch(turns: int | None, sizes: list[int]) -> None:
    groups = plan_groups(10, 4, 2, turns, seed=3)
    assert [len(g.batches) for g in groups] == sizes
    assert [g.number for g in groups] == list(range(len(sizes)))
    assert [s for g in groups for s in dict.fromkeys(g.steps)] == list(range(6))
    assert [b for g in groups if g.epoch == 2 for b in g.batches] == batches_of(10, 4, 3, 2)
    assert [g.end for g in groups if g.ends_epoch] == [3, 6]


def test_without_a_lag_each_group_is_sampled_from_the_policy_of_now() -> None:
    groups = plan_groups(8, 4, 2, None, 0)
    loop = Recorder(groups, 0)
    versions = [loop.take_at(g, g.first_step)[0].rollout.version for g in groups]
    assert versions == [0, 1, 2, 3]
    assert loop.events == [e for n in range(4) for e in (("push", n), ("sample", n))]


def test_with_a_lag_the_next_group_is_sampled_beside_from_the_policy_before_this_one() -> None:
    groups = plan_groups(8, 4, 2, None, 0)
    loop = Recorder(groups, 1)
    with loop.thread:
        taken = [loop.take_at(g, g.first_step) for g in groups]
    assert [s[0].rollout.version for s in taken] == [0, 0, 1, 2], "one group behind, but for the first"
    assert [s.rollout.turn_id for s in taken[3]] == [str(i) for i in groups[3].indices]
    assert loop.threads[0] == "MainThread"
    assert all(name.startswith("rollouts") for name in loop.threads[1:])


def test_what_is_held_is_not_sampled_again() -> None:
    groups = plan_groups(8, 4, 2, None, 0)
    before, again = Recorder(groups, 1), Recorder(groups, 1)
    with before.thread, again.thread:
        before.take_at(groups[0], 0)
        before.settle()
        assert set(before.held) == {0, 1}
        written = json.loads(json.dumps({n: [asdict(s) for s in of] for n, of in before.held.items()}))
        again.held = {int(n): [Sampled.from_json(s) for s in of] for n, of in written.items()}
        assert [again.take_at(groups[n], 1) for n in (0, 1)] == [before.held[n] for n in (0, 1)]
    assert ("sample", 1) not in again.events
    assert ("sample", 2) in again.events


def test_what_fails_beside_fails_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = plan_groups(8, 4, 1, None, 0)
    loop = Recorder(groups, 1)
    with loop.thread:
        loop.held[0] = [_sampled(i, 0) for i in groups[0].indices]

        def fails(group: Group, version: int) -> list[Sampled]:
            raise TrainingError("no endpoint")

        monkeypatch.setattr(loop, "sample", fails)
        loop.take_at(groups[0], 0)
        with pytest.raises(TrainingError, match="no endpoint"):
            loop.take_at(groups[1], 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_processes_come_back_in_the_order_of_the_turns(processes: int) -> None:
    group = plan_groups(7, 7, 1, None, 0)[0]
    shares = [[_sampled(i, 0) for i in group.indices[p::processes]] for p in range(processes)]

    def gather(own: object) -> list[object]:
        return [json.loads(json.dumps(asdict(s))) for share in shares for s in share]

    loop = Recorder([group], 0, processes, gather)
    assert [s.rollout.turn_id for s in loop.take_at(group, 0)] == [str(i) for i in group.indices]
