"""What a training keeps while it runs, in a folder that outlives a killed process.

    <work>/states/step-00000012/                 NAME.safetensors, record.json; manifest.json, written last
    <work>/states/.writing-<pid>-step-00000012   one that is being written
    <work>/states/.replaced-<pid>-step-00000012  one that gives its place to another of the same step
    <work>/kept-03/                              the model of the best epoch so far
    <work>/rollouts/epoch-03.parquet             finished epochs' rollouts

A state gets its name by a rename, after everything in it was synced and read back from the disk. One
process at a time writes into a folder (of several, the main one); what a process that is gone left is
put right by the next.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_assets.training.optimizer import Updater
from resources.artifacts import fault_of, file_facts, process_is_alive
from resources.errors import TrainingError
from resources.files import atomic_dir, atomic_file, sync
from resources.settings import Compute

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, Mapping[str, "torch.Tensor"]]  # groups by name

MANIFEST, RECORD, SUFFIX = "manifest.json", "record.json", ".safetensors"
_STATE = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.(writing|replaced|removing)-(\d+)-(step-\d{8,})")
_OS_ERROR = re.compile(r"(?:os error|errno)\D{0,2}(\d+)", re.IGNORECASE)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM}
_DISK_ERRORS = _NO_SPACE | _NO_RIGHT | {errno.EIO}


@dataclass(frozen=True, slots=True)
class SavedState:
    """A whole state. `step` is the number of updates done, `record` its JSON."""

    step: int
    record: Mapping[str, Any]
    folder: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The group `name` on the CPU, mapped from the file. Raises TrainingError where there is none."""
        from safetensors import safe_open

        path = self.folder / (name + SUFFIX)
        if not path.exists():
            raise TrainingError(
                f"the state of step {self.step} has no {path.name}",
                where=str(self.folder),
                todo="it was written by another version: delete this folder and train again",
            )
        with safe_open(path, framework="pt") as stored:
            found: dict[str, torch.Tensor] = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            # Earlier versions stored tensors that share memory once, and named them here.
            tied = json.loads((stored.metadata() or {}).get("tied", "{}"))
        return {**found, **{key: found[first] for key, first in tied.items()}}


class StateStore:
    """The states of one training in `folder`, the newest `keep` of them; `where` names the training in errors.

    While a state is written, `keep` others may be there too: the disk has to hold `keep + 1`.
    """

    def __init__(self, folder: Path, keep: int, where: str) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one state has to stay")
        self.folder, self.keep, self.where = folder, keep, where
        self.skipped: list[str] = []

    def save(self, step: int, record: Mapping[str, Any], tensors: Tensors) -> SavedState:
        """Writes a state, verifies it, and removes older ones beyond `keep`; one of the same step is replaced.

        Raises TrainingError where the disk fails or holds something else than what was written, or
        where a state cannot hold this.
        """
        try:
            try:
                text = (json.dumps(record, allow_nan=False) + "\n").encode()
                missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in missing:
                    sync(path.parent)
                self._tidy()
                target = self.folder / f"step-{step:08d}"
                beside = self.folder / f".writing-{os.getpid()}-{target.name}"
                beside.mkdir()
                self._write(beside, step, text, tensors)
                if target.exists():
                    # `_tidy` puts it back if this is as far as it gets.
                    target.rename(self.folder / f".replaced-{os.getpid()}-{target.name}")
                beside.rename(target)
                sync(self.folder)
                kept = 0
                for other, path in self._states():
                    if other > step:
                        continue  # damaged, or this run would have resumed from it: its own step will replace it
                    if kept == self.keep:
                        shutil.rmtree(path, ignore_errors=True)
                    elif not _damage(path, other, hash_up_to=-1):
                        kept += 1
            finally:
                with suppress(OSError):
                    self._tidy()
        except TrainingError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:  # of json and safetensors
            raise TrainingError(
                f"the state of step {step} cannot be stored: {error}",
                where=self.where,
                todo="this is a fault of the program, or of numbers that became NaN; please report it. "
                + self._advice(),
            ) from error
        except Exception as error:
            number = _disk_error(error)
            if number is None:
                raise
            raise self._disk_failed(f"the state of step {step} could not be written", error, number, tensors) from error
        return SavedState(step, json.loads(text), target)

    def latest(self) -> SavedState | None:
        """The newest whole state, every byte of it checked; `skipped` then tells what was passed over, and why."""
        with suppress(OSError):
            self._tidy()
        self.skipped = []
        try:
            for step, path in self._states():
                fault = _damage(path, step)
                if not fault:
                    return SavedState(step, json.loads((path / RECORD).read_bytes()), path)
                self.skipped.append(f"{path.name}: {fault}")
        except OSError as error:
            self.skipped.append(f"{self.folder} cannot be read: {error}")
        return None

    def clear(self) -> None:
        """Removes the whole folder. Raises TrainingError where it may not."""
        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._disk_failed("the training states could not be removed", error, error.errno, {}) from error

    def _write(self, folder: Path, step: int, record: bytes, tensors: Tensors) -> None:
        """All files, synced, and read back: raises TrainingError where the disk holds something else."""
        from safetensors.torch import save_file

        for name, group in tensors.items():
            whole = {key: tensor.detach().contiguous() for key, tensor in group.items()}
            save_file(whole, folder / (name + SUFFIX), {"format": "pt"})
        (folder / RECORD).write_bytes(record)
        files = file_facts(folder, sorted(folder.iterdir()))
        manifest = json.dumps({"step": step, "files": files}, indent=1).encode() + b"\n"
        (folder / MANIFEST).write_bytes(manifest)
        for path in (*folder.iterdir(), folder):
            sync(path)
            if path.is_file() and hasattr(os, "posix_fadvise"):  # out of the page cache: reading it asks the disk
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
        fault = "" if (folder / MANIFEST).read_bytes() == manifest else f"{MANIFEST} differs"
        fault = fault or _damage(folder, step)
        if fault:
            raise TrainingError(
                f"the state of step {step} was read back and is not what was written: {fault}",
                where=f"{self.where}; {self.folder}",
                todo=f"check the disk and the memory of this machine (dmesg). {self._advice()}",
            )

    def _tidy(self) -> None:
        """Deletes or puts back what is left of a process that is gone, or of an earlier call in this one."""
        for left in list(self.folder.glob(".*")):
            match = _LEFT.fullmatch(left.name)
            if match is None or (int(match[2]) != os.getpid() and process_is_alive(int(match[2]))):
                continue
            target = self.folder / match[3]
            if match[1] == "replaced" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)

    def _states(self) -> list[tuple[int, Path]]:
        """Steps and folders, newest first, whole or not."""
        try:
            found = [(_STATE.fullmatch(path.name), path) for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    def _advice(self) -> str:
        state = self.latest()
        if state is None:
            return "There is no state yet: the next run starts from the beginning"
        return f"The state of step {state.step} is intact: run again to resume from it"

    def _disk_failed(self, what: str, error: Exception, number: int | None, tensors: Tensors) -> TrainingError:
        if number in _NO_SPACE:
            size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
            todo = (
                f"free space, or raise the quota: a state takes {size / 1e9:.2g} GB, and {self.keep + 1} of them have "
                "to fit (compute.save_total_limit + 1)"
            )
        elif number in _NO_RIGHT:
            todo = "make this folder writable, or set ACT_HOME to another place"
        else:
            todo = "check the disk (df -h, dmesg)"
        return TrainingError(f"{what}: {error}", where=f"{self.where}; {self.folder}", todo=f"{todo}. {self._advice()}")


class RunFolder:
    """The folder of one training. What of it is newer than the state that is resumed is made again, the same.

    Only the first process writes.
    """

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
            print(f"    resuming from the state after update {saved.step}", file=sys.stderr, flush=True)
        updater.accelerator.wait_for_everyone()
        return saved

    def save(self, updater: Updater, record: Mapping[str, Any]) -> None:
        """Saves the state after the latest update; every process has to call it."""
        tensors = {"weights": updater.sharding.weights(), "optimizer": updater.sharding.moments()}
        if updater.is_main:
            self.store.save(updater.step_count, record, tensors)
        updater.accelerator.wait_for_everyone()

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Writes the model of an epoch, `kept-NN`. `forget_others` removes the ones before it."""
        with self._disk_errors():
            for old in (*self.work.glob(f".{name}*"), self.work / name):
                shutil.rmtree(old, ignore_errors=True)
            self.work.mkdir(parents=True, exist_ok=True)
            with atomic_dir(self.work / name) as beside:
                write(beside)

    def file(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file of the working folder."""
        path = self.work / name
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}*"):
                left.unlink()
            with atomic_file(path) as beside:
                write(beside)

    def forget_others(self, kept: str) -> None:
        """Removes kept models but this one: called once a state says that it is the one."""
        for old in self.work.glob("kept-*"):
            if old.name != kept:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raises TrainingError where the disk fails; states that are there already are intact."""
        try:
            yield
        except Exception as error:
            if _disk_error(error) is None:
                raise
            raise TrainingError(
                f"the training could not write what it keeps: {error}",
                where=f"{self.where}; {self.work}",
                todo="free space or make it writable (df -h); run again, and it resumes from its last state",
            ) from error


def _disk_error(error: Exception) -> int | None:
    """The errno of a failing disk, also where a library wrapped it into an exception of its own; None for others."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1])
    return number if number in _DISK_ERRORS else None


def _damage(folder: Path, step: int, *, hash_up_to: float = math.inf) -> str:
    """What is wrong with a state, or nothing; of files larger than `hash_up_to` bytes by size alone."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["step"] != step or RECORD not in manifest["files"]:
            return f"{MANIFEST} is of another state"
        return fault_of(folder, manifest["files"], hash_up_to)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} or what it lists cannot be read: {type(error).__name__}: {error}"
