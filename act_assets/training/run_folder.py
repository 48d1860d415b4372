"""What a training keeps while it runs, in a folder that outlives a killed process.

    <work>/states/step-00000120/     the newest states (state.py)
    <work>/kept-03/                  the model of the best epoch so far
    <work>/rollouts/epoch-03.parquet finished epochs' rollouts

Only the first process writes.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from act_assets.training.checkpoint import SavedState, StateStore, disk_errors
from act_assets.training.optimizer import Updater
from resources.files import sync
from resources.settings import Compute


class RunFolder:
    """The folder of one training. What of it is newer than the state that is resumed is made again, the same."""

    def __init__(self, work: Path, compute: Compute, where: str) -> None:
        self.work, self.where, self.every = work, where, compute.save_every_steps
        self.store = StateStore(work / "states", compute.save_total_limit, where)

    def resume(self, updater: Updater) -> SavedState | None:
        """Puts the newest whole state back, on every process; None where there is none."""
        saved = self.store.latest()
        if updater.is_main:
            for skipped in self.store.skipped:
                print(f"    skipped a training state that is not whole: {skipped}", file=sys.stderr, flush=True)
        if saved is None:
            return None
        updater.restore(saved.step, saved.tensors("weights"), saved.tensors("optimizer"))
        if updater.is_main:
            print(f"    going on from the state after update {saved.step}", file=sys.stderr, flush=True)
        updater.wait()
        return saved

    def save(
        self, updater: Updater, record: Mapping[str, Any], files: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Saves the state after the latest update; every process has to call it."""
        tensors = {"weights": updater.weights(), "optimizer": updater.moments()}
        if updater.is_main:
            self.store.save(updater.step_count, record, tensors, files)
        updater.wait()

    def keep(self, epoch: int, write: Callable[[Path], None]) -> str:
        """Writes the model of an epoch, aside first; gives its name. `forget_others` removes the ones before it."""
        target = self.work / f"kept-{epoch:02d}"
        beside = self.work / f".{target.name}"
        with disk_errors(self.work, self.where):
            for old in (beside, target):
                shutil.rmtree(old, ignore_errors=True)
            beside.mkdir(parents=True)
            write(beside)
            for path in (*beside.rglob("*"), beside):
                sync(path)
            beside.rename(target)
            sync(self.work)
        return target.name

    def file(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file of the working folder, beside first."""
        path = self.work / name
        with disk_errors(self.work, self.where):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}")
            write(beside)
            sync(beside)
            beside.rename(path)
            sync(path.parent)

    def forget_others(self, kept: str) -> None:
        """Removes kept models but this one: called once a state says that it is the one."""
        for old in self.work.glob("kept-*"):
            if old.name != kept:
                shutil.rmtree(old, ignore_errors=True)
