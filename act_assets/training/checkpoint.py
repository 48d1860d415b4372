"""Training states to resume from: each whole on disk, or not there.

    <folder>/step-00000012/                    NAME.safetensors, record.json, extra files; manifest.json, written last
    <folder>/.writing-<pid>-step-00000012      one that is being written
    <folder>/.replaced-<pid>-step-00000012     one that gives its place to another of the same step
    <folder>/.removing-<pid>-step-00000012     one that is being deleted

A state gets its name by a rename, after everything in it was synced and read back from the disk. One process at a time
writes into a folder (of several, the main one); what a process that is gone left is put right by the next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.artifacts import process_is_alive
from resources.errors import TrainingError
from resources.files import sync

if TYPE_CHECKING:
    import torch

MANIFEST, RECORD, SUFFIX = "manifest.json", "record.json", ".safetensors"
_STATE = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.(writing|replaced|removing)-(\d+)-(step-\d{8,})")
_OS_ERROR = re.compile(r"(?:os error|errno)\D{0,2}(\d+)", re.IGNORECASE)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM}
_DISK_ERRORS = _NO_SPACE | _NO_RIGHT | {errno.EIO}
_DTYPES = {  # names of torch -> of the safetensors format
    **{f"float{n}": f"F{n}" for n in (16, 32, 64)},
    **{f"int{n}": f"I{n}" for n in (8, 16, 32, 64)},
    **{f"uint{n}": f"U{n}" for n in (8, 16, 32, 64)},
    **{"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"},
}


@dataclass(frozen=True, slots=True)
class SavedState:
    """A whole state. `step` is the number of updates done, `record` its JSON."""

    step: int
    record: Mapping[str, Any]
    folder: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The group `name` on the CPU, mapped from the file; tensors that shared memory share it again."""
        from safetensors import safe_open

        with safe_open(self.file(name + SUFFIX), framework="pt") as stored:
            found: dict[str, torch.Tensor] = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            tied = json.loads((stored.metadata() or {}).get("tied", "{}"))
        return {**found, **{key: found[first] for key, first in tied.items()}}

    def file(self, name: str) -> Path:
        """The path of an extra file. Raises TrainingError where the state has none of that name."""
        path = self.folder / name
        if not path.exists():
            raise TrainingError(
                f"the state of step {self.step} has no {name}",
                where=str(self.folder),
                todo="it was written by another version: delete this folder and train again",
            )
        return path


class StateStore:
    """The states of one training in `folder`, the newest `keep` of them; `where` names the training in errors.

    While a state is written, `keep` others may be there too: the disk has to hold `keep + 1`.
    """

    def __init__(self, folder: Path, keep: int, where: str) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one state has to stay")
        self.folder, self.keep, self.where = folder, keep, where
        self.skipped: list[str] = []

    def save(
        self,
        step: int,
        record: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        files: Callable[[Path], None] = lambda folder: None,
    ) -> SavedState:
        """Writes a state, verifies it, and removes older ones beyond `keep`; one of the same step is replaced.

        `tensors` are the groups by name (on any device, one tensor at a time is copied to the CPU); `files(folder)` may
        write more. Raises TrainingError where the disk fails, or holds something else than what was written.
        """
        groups = {name: dict(group) for name, group in tensors.items()}  # keeps every tensor, and so its address, alive
        try:
            headers = {name: _header(group) for name, group in groups.items()}
            text = (json.dumps(record, allow_nan=False) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"the state of step {step} cannot be stored: {error}",
                where=self.where,
                todo="this is a fault of the program, or of numbers that became NaN; please report it. "
                + self._advice(),
            ) from error
        try:
            try:
                self._create()
                self._tidy()
                beside = self._named("writing", f"step-{step:08d}")
                beside.mkdir()
                files(beside)
                self._write(beside, step, text, groups, headers)
                self._put(beside, step)
            finally:
                with suppress(OSError):
                    self._tidy()
        except TrainingError:
            raise
        except Exception as error:
            number = _disk_error(error)
            if number is None:
                raise
            raise self._disk_failed(f"the state of step {step} could not be written", error, number, groups) from error
        return SavedState(step, json.loads(text), self.folder / f"step-{step:08d}")

    def latest(self) -> SavedState | None:
        """The newest whole state, every byte of it checked; `skipped` then tells what was passed over, and why."""
        with suppress(OSError):
            self._tidy()
        state, self.skipped = self._newest()
        return state

    def clear(self) -> None:
        """Removes the whole folder. Raises TrainingError where it may not."""
        try:
            for step, path in reversed(self._states()):  # oldest first: if it ends half-way, the newest is there
                path.rename(self._named("removing", f"step-{step:08d}"))
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._disk_failed("the training states could not be removed", error, error.errno, {}) from error

    def _create(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync(path.parent)

    def _write(
        self,
        folder: Path,
        step: int,
        record: bytes,
        groups: Mapping[str, Mapping[str, torch.Tensor]],
        headers: Mapping[str, bytes],
    ) -> None:
        """All files, synced, and read back: raises TrainingError where the disk holds something else."""
        facts = {
            path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        for name, group in groups.items():
            facts[name + SUFFIX] = _write_tensors(folder / (name + SUFFIX), headers[name], group)
        facts[RECORD] = {"sha256": hashlib.sha256(record).hexdigest(), "bytes": len(record)}
        manifest = json.dumps({"step": step, "files": facts}, indent=1).encode() + b"\n"
        for name, content in ((RECORD, record), (MANIFEST, manifest)):
            with (folder / name).open("xb") as stream:
                stream.write(content)
        for path in [*folder.rglob("*"), folder]:
            sync(path)
            _forget(path)
        fault = "" if (folder / MANIFEST).read_bytes() == manifest else f"{MANIFEST} differs"
        for name, group in groups.items():
            fault = fault or _difference(folder / (name + SUFFIX), headers[name], group)
        fault = fault or _damage(folder, step, compared={name + SUFFIX for name in groups})
        if fault:
            raise TrainingError(
                f"the state of step {step} was read back and is not what was written: {fault}",
                where=f"{self.where}; {self.folder}",
                todo=f"check the disk and the memory of this machine (dmesg). {self._advice()}",
            )

    def _put(self, beside: Path, step: int) -> None:
        """The verified folder gets its name; then the older ones beyond `keep` go."""
        target = self.folder / f"step-{step:08d}"
        if target.exists():
            target.rename(self._named("replaced", target.name))  # `_tidy` puts it back if this is as far as it gets
        beside.rename(target)
        sync(self.folder)
        kept = 0
        for number, path in self._states():
            if number > step:
                continue  # damaged, or this run would have gone on from it: its own step will replace it
            if kept == self.keep:
                path.rename(self._named("removing", path.name))  # `_tidy` deletes it
            elif not _damage(path, number, hashes=False):
                kept += 1

    def _named(self, kind: str, name: str) -> Path:
        return self.folder / f".{kind}-{os.getpid()}-{name}"

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

    def _newest(self) -> tuple[SavedState | None, list[str]]:
        skipped: list[str] = []
        try:
            for step, path in self._states():
                fault = _damage(path, step)
                if not fault:
                    return SavedState(step, json.loads((path / RECORD).read_bytes()), path), skipped
                skipped.append(f"{path.name}: {fault}")
        except OSError as error:
            skipped.append(f"{self.folder} cannot be read: {error}")
        return None, skipped

    def _advice(self) -> str:
        state, _ = self._newest()
        if state is None:
            return "There is no state yet: the next run begins anew"
        return f"The state of step {state.step} is intact: run again to go on from it"

    def _disk_failed(
        self, what: str, error: Exception, number: int | None, groups: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> TrainingError:
        if number in _NO_SPACE:
            size = sum(t.numel() * t.element_size() for group in groups.values() for t in group.values())
            todo = (
                f"free space, or raise the quota: a state takes {size / 1e9:.2g} GB, and {self.keep + 1} of them have "
                "to fit (compute.save_total_limit + 1)"
            )
        elif number in _NO_RIGHT:
            todo = "make this folder writable, or set ACT_HOME to another place"
        else:
            todo = "check the disk (df -h, dmesg)"
        return TrainingError(f"{what}: {error}", where=f"{self.where}; {self.folder}", todo=f"{todo}. {self._advice()}")


@contextmanager
def disk_errors(folder: Path, where: str) -> Iterator[None]:
    """Raises TrainingError where the disk under `folder` fails; states that are there already are intact."""
    try:
        yield
    except Exception as error:
        if _disk_error(error) is None:
            raise
        raise TrainingError(
            f"the training could not write what it keeps: {error}",
            where=f"{where}; {folder}",
            todo="free space or make it writable (df -h); run again, and it goes on from its last state",
        ) from error


def _disk_error(error: Exception) -> int | None:
    """The errno of a failing disk, also where a library wrapped it into an exception of its own; None for others."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1])
    return number if number in _DISK_ERRORS else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _forget(path: Path) -> None:
    """Drops a synced file from the page cache, so that reading it asks the disk."""
    if path.is_file() and hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _damage(folder: Path, step: int, *, hashes: bool = True, compared: Container[str] = ()) -> str:
    """What is wrong with a state, or nothing; the content of files in `compared` is known to be right."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {str(name): (str(facts["sha256"]), int(facts["bytes"])) for name, facts in manifest["files"].items()}
        if manifest["step"] != step or RECORD not in files:
            return f"{MANIFEST} is of another state"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
    for name, (sha256, size) in files.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if hashes and name not in compared and _sha256(folder / name) != sha256:
                return f"{name} has another hash than in {MANIFEST}"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {error}"
    return ""


# The safetensors format, written by one tensor at a time: safetensors.torch.save_file wants all of them in the memory
# of the CPU at once, and none that overlap. https://huggingface.co/docs/safetensors#format


def _tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The names of tensors that are the same memory as one before, and the name of that."""
    first: dict[Any, str] = {}
    same = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(key, name) != name:
                same[name] = first[key]
    return same


def _stored(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names with content of their own, in the order of the file: wide types first, so that all are aligned."""
    tied = _tied(tensors)
    return sorted(
        (name for name in tensors if name not in tied), key=lambda name: (-tensors[name].element_size(), name)
    )


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Length and JSON of the file's beginning. Raises ValueError for what the format does not hold."""
    for name, tensor in tensors.items():
        known = str(tensor.dtype).removeprefix("torch.") in _DTYPES and name != "__metadata__"
        if not known or str(tensor.layout) != "torch.strided" or tensor.is_meta:
            raise ValueError(f"safetensors holds no {tensor.layout} tensor {name} of {tensor.dtype} on {tensor.device}")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "tied": json.dumps(_tied(tensors))}}
    end = 0
    for name in _stored(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its content on the CPU, one uint8 per byte: bits are compared, for NaN is not equal to itself."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _write_tensors(path: Path, header: bytes, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes the file and returns its facts for the manifest, computed from what is in memory."""
    digest, size = hashlib.sha256(header), len(header)
    with path.open("xb") as stream:
        stream.write(header)
        for name in _stored(tensors):
            content = memoryview(_bytes(tensors[name]).numpy())
            digest.update(content)
            size += stream.write(content)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _difference(path: Path, header: bytes, tensors: Mapping[str, torch.Tensor]) -> str:
    """How a file on disk differs from what is in memory, or nothing."""
    import torch
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as stream:
        if stream.read(len(header)) != header:
            return f"the header of {path.name} differs"
    try:
        with safe_open(path, framework="pt") as stored:
            for name in _stored(tensors):
                if not torch.equal(_bytes(stored.get_tensor(name)), _bytes(tensors[name])):
                    return f"{name} in {path.name} differs"
    except SafetensorError as error:
        return f"{path.name} cannot be loaded: {error}"
    return ""
