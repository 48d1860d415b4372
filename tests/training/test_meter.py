"""The meter: exclusive times, whatever nests, runs beside or is resumed, and utilisation worked out by hand."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from act_assets.training.meter import PHASES, Meter, peak_flops, peak_memory_mb

pytestmark = pytest.mark.integration

CPU = "a processor"  # no GPU that the table knows


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(1_000_000, CPU, clock)


def shares(meter: Meter) -> dict[str, float]:
    """The shares and overlaps that are not zero."""
    return {k: v for k, v in meter.facts().items() if k.startswith(("share_", "overlapped_")) and v}


def test_each_phase_has_its_share_and_the_rest_is_other(meter: Meter, clock: Clock) -> None:
    for name, seconds in (("generate", 4), ("update", 3), ("generate", 1)):
        with meter.phase(name):  # type: ignore[arg-type]
            clock.passes(seconds)
    clock.passes(2)
    assert shares(meter) == {"share_generate": 0.5, "share_update": 0.3, "share_other": 0.2}
    assert meter.facts()["seconds"] == 10
    assert {k for k in meter.facts() if k.startswith("share_")} == {f"share_{p}" for p in (*PHASES, "other")}


def test_an_inner_phase_stops_the_clock_of_the_outer_one(meter: Meter, clock: Clock) -> None:
    with meter.phase("validate"):
        clock.passes(1)
        with meter.phase("save"):
            clock.passes(5)
            with meter.phase("validate"):
                clock.passes(2)
        clock.passes(2)
    assert shares(meter) == {"share_validate": 0.5, "share_save": 0.5}


def test_a_phase_that_raises_is_closed(meter: Meter, clock: Clock) -> None:
    def fails() -> None:
        with meter.phase("update"), meter.phase("score"):
            clock.passes(1)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    clock.passes(3)
    assert shares(meter) == {"share_score": 0.25, "share_other": 0.75}


def test_a_sampling_thread_is_reported_beside_and_never_twice(meter: Meter, clock: Clock) -> None:
    began, trained = threading.Event(), threading.Event()

    def sample() -> None:
        with meter.phase("generate"):
            began.set()
            trained.wait(10)
            with meter.phase("simulate"):
                clock.passes(2)

    with meter.phase("update"):
        thread = threading.Thread(target=sample)
        thread.start()
        began.wait(10)
        clock.passes(6)
        trained.set()
        thread.join()
    assert shares(meter) == {"share_update": 1.0, "overlapped_generate": 0.75, "overlapped_simulate": 0.25}


def test_rates_are_over_all_of_the_time(meter: Meter, clock: Clock) -> None:
    meter.count(pairs=4, trained_tokens=1_000, generated_tokens=10)
    meter.count(pairs=6)
    before = meter.facts()
    assert before["pairs_per_second"] is None, "no time is no division"
    assert (before["share_update"], before["share_other"]) == (0.0, 1.0)
    clock.passes(20)
    facts = meter.facts()
    assert (facts["pairs_per_second"], facts["tokens_per_second"]) == (0.5, 50)
    assert facts["generated_tokens_per_second"] == 0.5
    assert facts["model_flops_utilisation"] is None, "no GPU that is known"
    assert facts["turns_per_second"] is None, "turns were not counted"
    json.dumps(facts, allow_nan=False)
    clock.passes(30_000)
    assert meter.facts()["pairs_per_second"] == pytest.approx(10 / 30_020, rel=1e-3), "what is slow keeps its digits"


def test_names_that_mean_nothing_are_refused(meter: Meter) -> None:
    with pytest.raises(ValueError, match="no phase 'wait': one of generate"):
        meter.phase("wait").__enter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot count token: one of pairs"):
        meter.count(token=1)


def test_a_resumed_meter_goes_on_from_its_snapshot_alone(clock: Clock) -> None:
    killed = Meter(1_000_000, CPU, clock)
    with killed.phase("update"):
        clock.passes(6)
    killed.count(pairs=3)
    state = json.loads(json.dumps(killed.snapshot(), allow_nan=False))
    with killed.phase("update"):  # lost with the process
        clock.passes(50)
    killed.count(pairs=25)

    resumed = Meter(1_000_000, CPU, clock)
    clock.passes(9)  # loading is not training
    resumed.count(pairs=1)
    resumed.restore(state)
    with resumed.phase("generate"):
        clock.passes(4)
    resumed.count(pairs=2)
    assert shares(resumed) == {"share_update": 0.6, "share_generate": 0.4}
    assert (resumed.facts()["seconds"], resumed.facts()["pairs_per_second"]) == (10, 0.5)


def test_a_phase_that_is_open_while_restoring_counts_from_there(meter: Meter, clock: Clock) -> None:
    with meter.phase("update"):
        clock.passes(100)
        meter.restore({"seconds": 5.0, "time_update": 1.0, "of another version": 3.0})
        clock.passes(5)
    assert shares(meter) == {"share_update": 0.6, "share_other": 0.4}


def test_snapshots_are_whole_times_counts_and_overlaps(meter: Meter, clock: Clock) -> None:
    def beside() -> None:
        with meter.phase("classify"):
            clock.passes(1)

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    meter.count(turns=2)
    before = meter.snapshot()
    again = Meter(1_000_000, CPU, clock)
    again.restore(before)
    assert again.snapshot() == pytest.approx(before, abs=1)  # memory may have grown by a megabyte
    assert (before["overlapped_classify"], before["count_turns"], before["seconds"]) == (1, 2, 1)


def test_utilisation_is_six_flops_a_trained_and_two_a_read_or_written_token(clock: Clock) -> None:
    meter = Meter(7_000_000_000, "NVIDIA A100-SXM4-80GB", clock)
    meter.count(trained_tokens=10_000, scored_tokens=4_000, generated_tokens=1_000, prompt_tokens=5_000)
    clock.passes(10)
    # 6 x 7e9 x 1e4 + 2 x 7e9 x 1e4 = 5.6e14 operations in 10 s, of 312e12 a second
    assert meter.model_flops() == 5.6e14
    assert meter.facts()["model_flops_utilisation"] == round(5.6e13 / 312e12, 4) == 0.1795


def test_frozen_weights_need_no_gradients_and_utilisation_is_that_of_one_device(clock: Clock) -> None:
    meters = [Meter(7_000_000_000, "NVIDIA H200", clock, trainable=40_000_000, processes=n) for n in (1, 8)]
    for meter in meters:
        meter.count(trained_tokens=80_000)
    meters[1].count_own(generated_tokens=50)
    clock.passes(10)
    assert meters[0].model_flops() == (4 * 7e9 + 2 * 4e7) * 80_000
    one, eighth = (m.facts() for m in meters)
    assert one["model_flops_utilisation"] == pytest.approx(8 * eighth["model_flops_utilisation"], rel=1e-2)
    assert one["tokens_per_second"] == eighth["tokens_per_second"] == 8_000
    assert eighth["generated_tokens_per_second"] == 40, "one process stands for all"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_gpu_is_known_by_its_name_and_one_of_like_name_is_not(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_memory_is_that_of_this_process_and_does_not_shrink_over_a_resumption(meter: Meter) -> None:
    import psutil

    assert 0.5 * psutil.Process().memory_info().rss / 2**20 < meter.facts()["peak_memory_mb"] < 2**20
    assert isinstance(peak_memory_mb(), int)
    meter.restore({"peak_memory_mb": 2.0**22})
    assert meter.facts()["peak_memory_mb"] == 2**22


def test_a_board_gets_tags_by_kind_and_nothing_unmeasured(meter: Meter, clock: Clock) -> None:
    with meter.phase("update"):
        clock.passes(2)
    meter.count(pairs=1)
    rates: dict[str, Any] = meter.rates()
    assert rates["time/update"] == 1.0
    assert rates["speed/pairs_per_second"] == 0.5
    assert rates["speed/peak_memory_mb"] > 0
    assert "speed/tokens_per_second" not in rates
    assert all(isinstance(v, float) for v in rates.values())
