"""Which turns are sampled when, from which version of the policy."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict

import pytest

from act_assets.training.act import Completion, Rollout, Sampled
from act_assets.training.rollouts import Group, RolloutSchedule, batches_of, plan_groups, sampled_from_json
from resources.errors import TrainingError


def _sampled(turn: int, version: int) -> Sampled:
    rollout = Rollout(1, 0, version, "c", str(turn), "ANSWER", "ANSWER", "settled", "", "1", 1.0, "", "none", "", "", 3)
    return Sampled(Completion("yes", (1, 2), (1, 0)), None, rollout)


class Recorder:
    """Plays the sampling of one process."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.threads: list[str] = []

    def sample(self, group: Group, version: int) -> list[Sampled]:
        self.events.append(("sample", group.number))
        self.threads.append(threading.current_thread().name)
        return [_sampled(i, version) for i in group.indices]

    def push(self, version: int) -> None:
        self.events.append(("push", version))


def _schedule(groups: list[Group], of: Recorder, lag: int) -> RolloutSchedule:
    return RolloutSchedule(groups, of.sample, of.push, list, 1, lag)


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


def test_without_a_lag_each_group_is_sampled_from_the_policy_of_now() -> None:
    groups, of = plan_groups(8, 4, 2, None, 0), Recorder()
    schedule = _schedule(groups, of, 0)
    versions = [schedule.take(g.number, g.first_step)[0].rollout.version for g in groups]
    assert versions == [0, 1, 2, 3]
    assert of.events == [e for n in range(4) for e in (("push", n), ("sample", n))]


def test_with_a_lag_the_next_group_is_sampled_beside_from_the_policy_before_this_one() -> None:
    groups, of = plan_groups(8, 4, 2, None, 0), Recorder()
    schedule = _schedule(groups, of, 1)
    taken = [schedule.take(g.number, g.first_step) for g in groups]
    schedule.close()
    assert [s[0].rollout.version for s in taken] == [0, 0, 1, 2], "one group behind, but for the first"
    assert [s.rollout.turn_id for s in taken[3]] == [str(i) for i in groups[3].indices]
    assert of.threads[0] == "MainThread"
    assert all(name.startswith("rollouts") for name in of.threads[1:])


def test_what_is_held_is_not_sampled_again() -> None:
    groups, before = plan_groups(8, 4, 2, None, 0), Recorder()
    schedule = _schedule(groups, before, 1)
    schedule.take(0, 0)
    schedule.settle()
    assert set(schedule.held) == {0, 1}
    written = json.loads(json.dumps({n: [asdict(s) for s in of] for n, of in schedule.held.items()}))
    schedule.close()
    again = Recorder()
    resumed = _schedule(groups, again, 1)
    resumed.held = {int(n): [sampled_from_json(s) for s in of] for n, of in written.items()}
    assert resumed.take(0, 1) == schedule.held[0]
    assert resumed.take(1, 1) == schedule.held[1]
    resumed.close()
    assert ("sample", 1) not in again.events
    assert ("sample", 2) in again.events


def test_what_fails_beside_fails_where_it_is_needed() -> None:
    groups = plan_groups(8, 4, 1, None, 0)

    def sample(group: Group, version: int) -> list[Sampled]:
        if group.number:
            raise TrainingError("no endpoint")
        return [_sampled(i, version) for i in group.indices]

    schedule = RolloutSchedule(groups, sample, lambda version: None, list, 1, 1)
    schedule.take(0, 0)
    with pytest.raises(TrainingError, match="no endpoint"):
        schedule.take(1, 1)
    schedule.close()


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_processes_come_back_in_the_order_of_the_turns(processes: int) -> None:
    group = plan_groups(7, 7, 1, None, 0)[0]
    shares = [[_sampled(i, 0) for i in group.indices[p::processes]] for p in range(processes)]

    def gather(own: object) -> list[object]:
        return [json.loads(json.dumps(asdict(s))) for share in shares for s in share]

    schedule = RolloutSchedule([group], lambda g, v: shares[0], lambda v: None, gather, processes, 0)
    assert [s.rollout.turn_id for s in schedule.take(0, 0)] == [str(i) for i in group.indices]
