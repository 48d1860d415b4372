"""Launching waits for live holders of a pool, and never for those that are gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.utils import make_new_run_id

from act_assets.defs.assets import HOST_TAG, PID_TAG
from act_assets.defs.launch import wait_for_pools
from act_assets.home import dagster_home

pytestmark = pytest.mark.integration


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("ACT_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home()))
    with dg.DagsterInstance.get() as instance:
        yield instance


def _holder(instance: dg.DagsterInstance, pid: int, host: str, status: dg.DagsterRunStatus) -> str:
    """A run with these stamps that holds the only slot of the pool `gpu`."""
    run = dg.DagsterRun(job_name="j", run_id=make_new_run_id(), status=status, tags={PID_TAG: str(pid), HOST_TAG: host})
    instance.add_run(run)
    instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
    claim = instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "step")
    assert claim.is_claimed
    return run.run_id


def _claimed(instance: dg.DagsterInstance) -> set[str]:
    return {slot.run_id for slot in instance.event_log_storage.get_concurrency_info("gpu").claimed_slots}


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_nothing_held_is_no_wait(instance: dg.DagsterInstance) -> None:
    wait_for_pools(instance)


@pytest.mark.parametrize("case", ["process gone", "other host", "run finished"])
def test_slots_of_runs_that_are_gone_are_freed(instance: dg.DagsterInstance, dead_pid: int, case: str) -> None:
    """A killed run's slot would otherwise be waited for without end."""
    run_id = _holder(
        instance,
        pid=dead_pid if case == "process gone" else os.getpid(),
        host="another-machine" if case == "other host" else socket.gethostname(),
        status=dg.DagsterRunStatus.SUCCESS if case == "run finished" else dg.DagsterRunStatus.STARTED,
    )
    wait_for_pools(instance, poll_s=0.01)
    assert _claimed(instance) == set()
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.is_finished


def test_a_live_holder_is_waited_for_and_named(instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]) -> None:
    run_id = _holder(instance, os.getpid(), socket.gethostname(), dg.DagsterRunStatus.STARTED)
    waiter = threading.Thread(target=wait_for_pools, args=(instance, 0.01))
    waiter.start()
    time.sleep(0.5)
    assert waiter.is_alive()
    assert f"waiting for run {run_id[:8]}, which holds the pool gpu" in capfd.readouterr().err
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    waiter.join(10)
    assert not waiter.is_alive()
