"""The artifact store: every asset's files, once whole or not at all, and what they were made from.

    <root>/<asset>/<task>[/<train_size>]/<identity>/      the files, and artifact.json
    <root>/<asset>/<task>[/<train_size>]/current/<run>    which identity a run (profile and seed) uses now

The identity is the hash of everything an artifact depends on; the content hash covers its files, except those in
`logs/`. An artifact whose identity is already there is used again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.errors import ActError
from resources.files import atomic_file, sync, sync_tree

MANIFEST = "artifact.json"
REPLACED = ".replaced-"  # before the identity: an artifact that is being replaced by another of the same identity
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_HASH_WHEN_USED_AGAIN = 64 * 2**20  # larger files are checked by size alone


@dataclass(frozen=True, slots=True)
class Key:
    """Which artifact: an asset and its partition."""

    asset: str
    task: str
    train_size: int | None = None

    @property
    def partition(self) -> str:
        return self.task if self.train_size is None else f"{self.task}|{self.train_size}"

    @property
    def folder(self) -> Path:
        """Where its artifacts lie below a root."""
        return Path(self.asset, self.task, "" if self.train_size is None else str(self.train_size))

    def __str__(self) -> str:
        return f"{self.asset} {self.partition}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact. `facts` are numbers and texts about it that are not part of its content."""

    key: Key
    path: Path
    identity: Mapping[str, Any]
    identity_hash: str
    content_hash: str
    facts: Mapping[str, Any]
    seconds: float
    created_at: str

    def file(self, name: str) -> Path:
        return self.path / name


def identity_hash(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ArtifactStore:
    """Artifacts below `root`, as one run (a profile and a seed) sees them."""

    def __init__(self, root: Path, run: str) -> None:
        self.root, self.run = root, run

    def find(self, key: Key) -> Artifact | None:
        """The artifact that this run uses now, or None."""
        pointer = self.root / key.folder / "current" / self.run
        try:
            return self._load(key, pointer.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            return None

    def require(self, key: Key) -> Artifact:
        """`find`, or ActError naming the asset that makes it."""
        found = self.find(key)
        if found is None:
            raise ActError(
                f"{key} has not been materialized for {self.run}",
                where=str(self.root / key.folder),
                todo=f"materialize the asset {key.asset} for partition {key.partition} first"
                + (f" (act run --task {key.task} --train-size {key.train_size})" if key.train_size else ""),
            )
        return found

    def reuse(self, key: Key, identity: Mapping[str, Any]) -> Artifact | None:
        """The sound artifact of exactly this identity, made current; None where it has to be built."""
        digest = identity_hash(identity)
        self._restore(self.root / key.folder)
        artifact = self._load(key, digest[:16])
        if artifact is None:
            return None
        if not _sound(artifact.path):
            shutil.rmtree(artifact.path)
            return None
        self._point(key, digest[:16])
        return artifact

    def build(
        self,
        key: Key,
        identity: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        *,
        replace: bool = False,
    ) -> Artifact:
        """Makes an artifact: `make(folder)` writes files and returns facts; then all of it appears at once.

        With `replace`, in the place of a sound one of the same identity.
        """
        digest = identity_hash(identity)
        parent = self.root / key.folder
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ActError(
                f"the artifact store cannot be written: {error}", where=str(parent), todo="check ACT_HOME and the disk"
            ) from error
        for left in parent.glob(".building-*"):  # of a process that is gone
            if not process_is_alive(int(left.name.split("-")[1])):
                shutil.rmtree(left, ignore_errors=True)
        self._restore(parent)
        folder = parent / f".building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        started = time.perf_counter()
        try:
            facts = make(folder)
            found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
            manifest = {
                "asset": key.asset,
                "partition": key.partition,
                "identity": identity,
                "identity_hash": digest,
                "files": file_facts(folder, (p for p in found if p.relative_to(folder).parts[0] != "logs")),
                "facts": facts,
                "seconds": round(time.perf_counter() - started, 3),
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
            sync_tree(folder)
            target = parent / digest[:16]
            aside = parent / f"{REPLACED}{digest[:16]}"
            if target.exists() and (replace or not _sound(target)):
                target.rename(aside)  # `_restore` puts it back if this is as far as it gets
            try:
                folder.rename(target)
            except OSError:  # another run may have made the same artifact meanwhile
                if not _sound(target):
                    raise
            sync(parent)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise ActError(
                f"{key} could not be written: {error}",
                where=str(parent),
                todo="check the disk (df -h) and run again; finished artifacts are kept",
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._point(key, digest[:16])
        return read_artifact(target)

    def work_folder(self, key: Key, identity: Mapping[str, Any]) -> Path:
        """Where the making of an artifact keeps what it resumes from; beside the artifacts, made when first used."""
        return self.root.parent / "unfinished" / key.folder / identity_hash(identity)[:16]

    def _load(self, key: Key, name: str) -> Artifact | None:
        path = self.root / key.folder / name
        return read_artifact(path) if (path / MANIFEST).is_file() else None

    def _point(self, key: Key, name: str) -> None:
        folder = self.root / key.folder / "current"
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / self.run) as beside:
            beside.write_text(name + "\n", encoding="utf-8")

    def _restore(self, folder: Path) -> None:
        """Puts back what a process had moved aside when it was killed."""
        for replaced in folder.glob(f"{REPLACED}*"):
            target = folder / replaced.name.removeprefix(REPLACED)
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(target)


def read_artifact(path: Path) -> Artifact:
    """The artifact in a folder. Raises ActError where its manifest is damaged."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        content = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
        task, _, size = manifest["partition"].partition("|")
        return Artifact(
            Key(manifest["asset"], task, int(size) if size else None),
            path,
            manifest["identity"],
            manifest["identity_hash"],
            content,
            manifest["facts"],
            manifest["seconds"],
            manifest["created_at"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ActError(
            f"an artifact has a damaged manifest: {error}", where=str(path), todo="delete this folder and run again"
        ) from error


def process_is_alive(pid: int) -> bool:
    """Whether a process runs on this machine; a dead one may wait to be collected by a parent that never does."""
    try:
        if not Path("/proc/self").exists():
            os.kill(pid, 0)
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True


def file_facts(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The hash and the size of files, by their path below a folder."""
    return {p.relative_to(folder).as_posix(): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in paths}


def fault_of(folder: Path, files: Mapping[str, Mapping[str, Any]], hash_up_to: float = math.inf) -> str:
    """How files differ from their `file_facts`, or nothing; of files larger than `hash_up_to` bytes by size alone."""
    for name, facts in files.items():
        try:
            size, expected = (folder / name).stat().st_size, facts["bytes"]
            if size != expected:
                return f"{name} has {size} bytes instead of {expected}"
            if size <= hash_up_to and sha256_of(folder / name) != facts["sha256"]:
                return f"{name} has another hash than recorded"
        except FileNotFoundError:
            return f"{name} is missing"
    return ""


def sha256_of(path: Path) -> str:
    """The hash of a file, in hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sound(folder: Path) -> bool:
    """Whether the manifest and every file that it names are there, whole."""
    try:
        recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return not fault_of(folder, recorded, _HASH_WHEN_USED_AGAIN)
