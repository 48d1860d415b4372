"""The artifact store: whole or not at all, found again by what it was made from."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from resources import artifacts
from resources.artifacts import MANIFEST, Artifact, ArtifactStore, Key
from resources.errors import ActError

KEY = Key("pairs", "pacific", 50)
IDENTITY = {"asset": "pairs", "seed": 0, "settings": {"beta": 0.1}}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", "laptop-seed0")


def making(
    files: Mapping[str, str] = {"rows.txt": "rows"}, facts: Mapping[str, Any] = {}
) -> Callable[[Path], Mapping[str, Any]]:
    """A make function that writes these files and returns these facts."""

    def make(folder: Path) -> Mapping[str, Any]:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return facts

    return make


def never(folder: Path) -> Mapping[str, Any]:
    raise AssertionError("built again")


def folder_of(store: ArtifactStore) -> Path:
    return store.root / "pairs" / "pacific" / "50"


def visible(store: ArtifactStore) -> set[str]:
    """What lies in the key's folder."""
    return {p.name for p in folder_of(store).iterdir()} if folder_of(store).is_dir() else set()


def test_an_artifact_that_is_made_again_takes_the_old_ones_place(store: ArtifactStore) -> None:
    store.build(KEY, IDENTITY, making({"rows.txt": "old"}, {}))
    new = store.build(KEY, IDENTITY, making({"rows.txt": "new"}, {}), replace=True)
    assert new.file("rows.txt").read_text() == "new"
    assert store.reuse(KEY, IDENTITY) == new
    assert visible(store) == {new.path.name, "current"}


def test_a_replacement_that_is_cut_off_loses_nothing(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store.build(KEY, IDENTITY, making({"rows.txt": "old"}, {}))
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.startswith(".building-"):
            raise KeyboardInterrupt  # the old one has been moved aside, the new one is not there yet
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.build(KEY, IDENTITY, making({"rows.txt": "new"}, {}), replace=True)
    monkeypatch.undo()
    assert store.reuse(KEY, IDENTITY) == old
    assert old.file("rows.txt").read_text() == "old"


def test_what_is_built_is_found_with_its_files_facts_and_identity(store: ArtifactStore) -> None:
    built = store.build(KEY, IDENTITY, making({"rows.txt": "rows", "sub/more.txt": "more"}, {"pairs": 2, "f1": 0.5}))
    for artifact in (built, store.find(KEY), store.require(KEY), store.reuse(KEY, IDENTITY)):
        assert artifact == built
    assert built.file("rows.txt").read_text() == "rows"
    assert built.file("sub/more.txt").read_text() == "more"
    assert (dict(built.facts), dict(built.identity)) == ({"pairs": 2, "f1": 0.5}, IDENTITY)
    assert built.path.parent == folder_of(store)
    manifest = json.loads((built.path / MANIFEST).read_text())
    assert {name: f["bytes"] for name, f in manifest["files"].items()} == {"rows.txt": 4, "sub/more.txt": 4}


def test_nothing_built_is_none_to_find_and_an_error_to_require(store: ArtifactStore) -> None:
    assert store.find(KEY) is None
    assert store.reuse(KEY, IDENTITY) is None
    with pytest.raises(ActError, match=r"pairs pacific\|50 has not been materialized for laptop-seed0") as caught:
        store.require(KEY)
    assert "materialize the asset pairs for partition pacific|50 first" in caught.value.todo
    assert "act run --task pacific --train-size 50" in caught.value.todo


def test_keys_do_not_share_artifacts(store: ArtifactStore) -> None:
    assert (Key("raw", "pacific").partition, KEY.partition, str(KEY)) == ("pacific", "pacific|50", "pairs pacific|50")
    built = store.build(KEY, IDENTITY, making())
    assert store.reuse(KEY, dict(reversed(IDENTITY.items()))) == built, "the order of an identity does not matter"
    for other in (Key("pairs", "pacific", 100), Key("pairs", "pacific"), Key("pairs", "abg"), Key("x", "pacific", 50)):
        assert store.find(other) is None
        assert store.reuse(other, IDENTITY) is None


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("no"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ActError),
        (None, ValueError),  # a fact that is no number
    ],
)
def test_nothing_is_visible_while_an_artifact_is_made_or_when_that_fails(
    store: ArtifactStore, error: BaseException | None, raised: type[BaseException]
) -> None:
    before = store.build(KEY, IDENTITY, making())
    shown, other = visible(store), {"seed": 1}

    def fail(folder: Path) -> Mapping[str, Any]:
        making()(folder)
        assert store.find(KEY) == before
        assert store.reuse(KEY, other) is None
        if error is not None:
            raise error
        return {"loss": float("nan")}

    with pytest.raises(raised) as caught:
        store.build(KEY, other, fail)
    assert visible(store) == shown
    assert store.find(KEY) == before
    if isinstance(caught.value, ActError):
        assert str(KEY) in caught.value.what
        assert caught.value.where == str(folder_of(store))


def test_another_identity_is_another_artifact_and_both_stay(store: ArtifactStore) -> None:
    old = store.build(KEY, IDENTITY, making({"rows.txt": "old"}))
    new = store.build(KEY, {**IDENTITY, "seed": 1}, making({"rows.txt": "new"}))
    assert old.path != new.path
    assert store.find(KEY) == new
    assert store.reuse(KEY, IDENTITY) == old
    assert store.find(KEY) == old, "what is used again is current again"
    assert old.file("rows.txt").read_text() == "old"


def test_two_runs_share_artifacts_but_not_pointers(store: ArtifactStore) -> None:
    other = ArtifactStore(store.root, "laptop-seed1")
    mine = store.build(KEY, IDENTITY, making())
    assert other.find(KEY) is None
    assert other.reuse(KEY, IDENTITY) == mine
    theirs = other.build(KEY, {**IDENTITY, "seed": 1}, making())
    assert (store.find(KEY), other.find(KEY)) == (mine, theirs)


def damaged(artifact: Artifact, how: str) -> None:
    rows = artifact.file("rows.txt")
    if how == "other bytes":
        rows.write_text("swor")
    elif how == "shorter":
        rows.write_text("ro")
    elif how == "missing":
        rows.unlink()
    else:
        (artifact.path / MANIFEST).unlink()


@pytest.mark.parametrize("how", ["other bytes", "shorter", "missing", "no manifest"])
def test_a_damaged_artifact_is_built_again(store: ArtifactStore, how: str) -> None:
    first = store.build(KEY, IDENTITY, making())
    damaged(first, how)
    if how != "shorter":  # that one is built over
        assert store.reuse(KEY, IDENTITY) is None
    again = store.build(KEY, IDENTITY, making())
    assert again.content_hash == first.content_hash
    assert again.file("rows.txt").read_text() == "rows"
    assert store.reuse(KEY, IDENTITY) == again


def test_a_large_file_is_checked_by_its_size_alone(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = store.build(KEY, IDENTITY, making())
    monkeypatch.setattr(artifacts, "_HASH_WHEN_USED_AGAIN", 3)
    damaged(built, "other bytes")
    assert store.reuse(KEY, IDENTITY) == built
    damaged(built, "shorter")
    assert store.reuse(KEY, IDENTITY) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"files": {}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_that_names_the_folder(store: ArtifactStore, content: bytes) -> None:
    built = store.build(KEY, IDENTITY, making())
    (built.path / MANIFEST).write_bytes(content)
    for look in (lambda: store.find(KEY), lambda: store.require(KEY), lambda: store.reuse(KEY, IDENTITY)):
        with pytest.raises(ActError, match="damaged manifest") as caught:
            look()
        assert caught.value.where == str(built.path)
        assert "delete this folder" in caught.value.todo


def test_a_store_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ActError, match="cannot be written") as caught:
        ArtifactStore(tmp_path / "file" / "artifacts", "run").build(KEY, IDENTITY, never)
    assert str(tmp_path / "file") in caught.value.where


def test_leftovers_of_dead_processes_are_swept_and_of_live_ones_kept(store: ArtifactStore) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        for pid in (gone.pid, alive.pid):
            (folder_of(store) / f".building-{pid}-0").mkdir(parents=True)
        store.build(KEY, IDENTITY, making())
        kept = [p.name for p in folder_of(store).glob(".building-*")]
        assert kept == [f".building-{alive.pid}-0"]


def test_the_content_hash_covers_names_and_bytes_but_neither_logs_nor_facts(store: ArtifactStore) -> None:
    def content(seed: int, files: Mapping[str, str], facts: Mapping[str, Any] = {}) -> str:
        return store.build(KEY, {"seed": seed}, making(files, facts)).content_hash

    one = content(0, {"rows.txt": "rows", "logs/times.txt": "1 s"}, {"seconds": 1})
    assert content(1, {"rows.txt": "rows", "logs/times.txt": "2 s"}, {"seconds": 2}) == one
    assert content(2, {"rows.txt": "rows"}) == one
    assert content(3, {"rows.txt": "other"}) != one
    assert content(4, {"lines.txt": "rows"}) != one
    assert content(5, {"rows.txt": "rows", "sub/logs.txt": "1 s"}) != one


def test_another_run_that_finishes_first_is_used(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run appears at the worst moment: just before the finished folder is put in its place."""
    other, rename = ArtifactStore(store.root, "other"), Path.rename

    def late(path: Path, target: Path) -> Path:
        if path.name.startswith(".building-"):
            monkeypatch.setattr(Path, "rename", rename)
            other.build(KEY, IDENTITY, making())
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    built = store.build(KEY, IDENTITY, making())
    assert built == other.find(KEY)
    assert visible(store) == {built.path.name, "current"}


BUILD_TOGETHER = """
import sys, time
from pathlib import Path
from resources.artifacts import ArtifactStore, Key

root, run = Path(sys.argv[1]), sys.argv[2]
store = ArtifactStore(root, run)

def make(folder):
    (folder / "rows.txt").write_text("rows")
    (root / f"{run}-{seed}").touch()
    while len(list(root.glob(f"*-{seed}"))) < 2:  # both are in the middle of it
        time.sleep(0.001)
    return {}

for seed in range(10):
    store.build(Key("pairs", "pacific", 50), {"seed": seed}, make)
"""


def test_two_processes_that_build_the_same_leave_one_sound_artifact(store: ArtifactStore) -> None:
    store.root.mkdir()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_TOGETHER, str(store.root), run], stderr=subprocess.PIPE, text=True
        )
        for run in ("one", "two")
    ]
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in both] == [("", 0)] * 2
    for seed in range(10):
        reused = store.reuse(KEY, {"seed": seed})
        assert reused is not None
        assert reused.file("rows.txt").read_text() == "rows"
    assert len(visible(store)) == 10 + 1, "ten artifacts and the pointers, nothing half-built"
    pointed = {(folder_of(store) / "current" / run).read_text() for run in ("one", "two")}
    assert pointed == {reused.path.name + "\n"}
