"""What Dagster's pools leave open: in SQLite two runs that claim the last slot at the same moment both get it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from act_assets.home import dagster_home
from resources.files import locked


@contextmanager
def pool_slot(instance: dg.DagsterInstance, pool: str | None, poll_s: float = 0.5) -> Iterator[None]:
    """Holds one of a pool's slots beside Dagster's own: a file lock, which ends with the block or with its process.

    A pool without a limit has no slots, and nothing is held.
    """
    slots = instance.event_log_storage.get_concurrency_info(pool).slot_count if pool else 0
    while slots:
        for number in range(slots):
            with locked(dagster_home() / f"pool-{pool}-{number}.lock") as free:
                if free:
                    yield
                    return
        time.sleep(poll_s)
    yield
