"""Training states: whole or not there, whatever happens while one is written, and whatever becomes of it afterwards."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from act_assets.training import checkpoint as module
from act_assets.training.checkpoint import RunFolder, SavedState, StateStore
from resources.errors import TrainingError
from resources.settings import Compute

pytestmark = pytest.mark.integration

WHERE = "task pacific, train size 50"


def content(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "weights": {"w": torch.full((40, 10), float(step)), "n": torch.tensor(step)},
        "optimizer": {"m": torch.full((7,), step, dtype=torch.bfloat16)},
    }


def save(store: StateStore, *steps: int) -> None:
    for step in steps:
        store.save(step, {"step": step}, content(step))


def is_of(state: SavedState | None, step: int) -> bool:
    """Whether it is the state that `save` writes for that step, in every part."""
    return (
        state is not None
        and state.step == step
        and state.record["step"] == step
        and all(
            same_bits(state.tensors(name)[key], tensor)
            for name, group in content(step).items()
            for key, tensor in group.items()
        )
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().reshape(-1).view(torch.uint8).tolist()
        == other.contiguous().reshape(-1).view(torch.uint8).tolist()
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "run" / "states", 2, WHERE)


def test_a_state_returns_bit_for_bit(store: StateStore) -> None:
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randn(6, 4, generator=generator)
    strange = torch.tensor([0x7FC00001, 0x7F800001, 0xFFC00000 - 2**32, 0x7F800000, -(2**31)], dtype=torch.int32)
    tensors = {
        "float32": numbers,
        "bfloat16": numbers.bfloat16(),
        "float16": numbers.half(),
        "float64": numbers.double() / 3,
        "float8": numbers.to(torch.float8_e4m3fn),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": numbers > 0,
        "scalar": torch.tensor(0.1),
        "counter": torch.tensor(7),
        "no rows": torch.zeros(0, 3),
        "nan, infinity, minus zero": strange.view(torch.float32),
        "transposed": numbers.t(),
        "every other": numbers[:, ::2],
        "trained": numbers.clone().requires_grad_(),
    }
    record = {"epoch": 1, "losses": [0.1, 1e-320], "text": "Zürich \ud800", "none": None}
    written = store.save(5, record, {"weights": tensors, "empty": {}})
    found = store.latest()
    assert found == written and store.skipped == []
    assert found.step == 5 and found.record == record and found.folder.name == "step-00000005"
    weights = found.tensors("weights")
    assert weights.keys() == tensors.keys()
    assert [name for name in tensors if not same_bits(weights[name], tensors[name])] == []
    assert found.tensors("empty") == {}


def test_a_state_of_an_earlier_version_ties_its_tensors_again(store: StateStore) -> None:
    save(store, 1)
    found = store.latest()
    assert found is not None
    table = torch.randn(10, 4)
    save_file({"embedding": table}, found.folder / "old.safetensors", {"tied": '{"head": "embedding"}'})
    read = found.tensors("old")
    assert torch.equal(read["embedding"], table)
    assert read["embedding"].data_ptr() == read["head"].data_ptr()


def test_the_newest_states_are_kept_and_the_older_removed(store: StateStore) -> None:
    save(store, 1, 2, 3, 10)
    assert names(store.folder) == ["step-00000003", "step-00000010"]
    assert is_of(store.latest(), 10)
    for _ in range(2):
        store.clear()
        assert not store.folder.exists() and store.latest() is None and store.skipped == []
    with pytest.raises(ValueError, match="at least one"):
        StateStore(store.folder, 0, WHERE)


def test_a_damaged_state_does_not_count_among_those_kept(store: StateStore) -> None:
    save(store, 1, 2)
    (store.folder / "step-00000002" / "weights.safetensors").unlink()
    save(store, 3)
    assert names(store.folder) == ["step-00000001", "step-00000002", "step-00000003"]
    save(store, 4)
    assert names(store.folder) == ["step-00000003", "step-00000004"]


def test_a_state_of_the_same_step_is_replaced(store: StateStore) -> None:
    store.save(4, {"try": 1}, {"weights": {"w": torch.zeros(3)}, "other": {}})
    store.save(4, {"try": 2}, {"weights": {"w": torch.ones(3)}})
    found = store.latest()
    assert found is not None and found.record == {"try": 2} and found.tensors("weights")["w"].tolist() == [1, 1, 1]
    assert not (found.folder / "other.safetensors").exists() and names(store.folder) == ["step-00000004"]


def _flip(path: Path, at: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda f: os.truncate(f / "weights.safetensors", 1000), "weights.safetensors has 1000 bytes instead"),
    "one bit of a tensor": (lambda f: _flip(f / "optimizer.safetensors", -1), "optimizer.safetensors has another hash"),
    "one bit of a header": (lambda f: _flip(f / "weights.safetensors", 12), "weights.safetensors has another hash"),
    "one bit of the record": (lambda f: _flip(f / "record.json", 3), "record.json has another hash"),
    "no tensors": (lambda f: (f / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "no record": (lambda f: (f / "record.json").unlink(), "record.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "empty manifest": (lambda f: (f / "manifest.json").write_bytes(b""), "cannot be read"),
    "binary manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\x00" * 9), "cannot be read"),
    "deep manifest": (lambda f: (f / "manifest.json").write_text("[" * 99999), "cannot be read"),
    "another manifest": (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
    "names only": (
        lambda f: (f / "manifest.json").write_text('{"step": 2, "files": {"record.json": 1}}'),
        "cannot be read",
    ),
    "nothing listed": (lambda f: (f / "manifest.json").write_text('{"step": 2, "files": {}}'), "of another state"),
    "another's folder": (
        lambda f: (shutil.rmtree(f), shutil.copytree(f.with_name("step-00000001"), f)),
        "manifest.json is of another state",
    ),
    "a file for a folder": (lambda f: (shutil.rmtree(f), f.write_text("x")), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over_named_and_left_there(store: StateStore, damage: str) -> None:
    save(store, 1, 2)
    harm, reason = DAMAGES[damage]
    harm(store.folder / "step-00000002")
    assert is_of(store.latest(), 1)
    assert len(store.skipped) == 1 and store.skipped[0].startswith("step-00000002: ") and reason in store.skipped[0]
    assert names(store.folder) == ["step-00000001", "step-00000002"]
    (store.folder / "step-00000001" / "record.json").unlink(missing_ok=True)
    assert store.latest() is None
    assert [line.split(":")[0] for line in store.skipped] == ["step-00000002", "step-00000001"], "all are named"
    save(store, 2)
    assert is_of(store.latest(), 2) and store.skipped == []


def test_a_flipped_bit_of_a_manifest_is_noticed_or_harmless(store: StateStore) -> None:
    save(store, 1, 2)
    manifest = store.folder / "step-00000002" / "manifest.json"
    whole = manifest.read_bytes()
    noticed = 0
    for position in random.Random(2).sample(range(len(whole)), 120):
        _flip(manifest, position)
        found = store.latest()
        assert is_of(found, 1 if store.skipped else 2), position
        noticed += bool(store.skipped)
        manifest.write_bytes(whole)
    assert noticed > 60


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(store: StateStore) -> None:
    save(store, 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = store.folder / f".writing-{os.getppid()}-step-00000002"
    for left in (living, store.folder / f".writing-{ended.pid}-step-00000002"):
        left.mkdir()
    (store.folder / "step-00000001").rename(store.folder / f".replaced-{ended.pid}-step-00000001")
    assert is_of(store.latest(), 1)
    assert names(store.folder) == [living.name, "step-00000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_failing_disk_is_an_error_that_says_what_to_do(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    save(store, 1)

    def failing(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(TrainingError) as raised:
            save(store, 2)
    assert "step 2 could not be written" in raised.value.what and os.strerror(number) in raised.value.what
    assert WHERE in raised.value.where and str(store.folder) in raised.value.where
    assert "The state of step 1 is intact: run again" in raised.value.todo
    assert {errno.EIO: "check the disk", errno.EROFS: "writable", errno.EACCES: "writable"}.get(
        number, "free space"
    ) in raised.value.todo
    assert names(store.folder) == ["step-00000001"] and is_of(store.latest(), 1)


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_half(store: StateStore) -> None:
    large = {"weights": {"w": torch.zeros(1 << 18)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"File too large[\s\S]*There is no state yet"):
            store.save(1, {}, large)
        save(store, 1)
        with pytest.raises(TrainingError, match=r"free space[\s\S]*The state of step 1 is intact") as raised:
            store.save(2, {}, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a state takes 0.001 GB, and 3 of them" in raised.value.todo
    assert names(store.folder) == ["step-00000001"] and is_of(store.latest(), 1)
    save(store, 2)
    assert is_of(store.latest(), 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_the_right_to_write_is_an_error(store: StateStore) -> None:
    save(store, 1)
    store.folder.chmod(0o500)
    try:
        with pytest.raises(TrainingError, match="writable"):
            save(store, 2)
        assert is_of(store.latest(), 1)
        with pytest.raises(TrainingError, match="could not be removed"):
            store.clear()
    finally:
        store.folder.chmod(0o700)


def test_an_unreadable_folder_is_named_and_no_exception(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert store.latest() is None and "cannot be read" in store.skipped[0]


@pytest.mark.parametrize(
    ("file", "at", "said"),
    [
        ("weights.safetensors", -3, "weights.safetensors has another hash"),
        ("weights.safetensors", 20, "weights.safetensors has another hash"),
        ("record.json", 0, "record.json has another hash"),
        ("manifest.json", 30, "manifest.json differs"),
    ],
)
def test_what_the_disk_changed_is_found_before_the_state_gets_its_name(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, file: str, at: int, said: str
) -> None:
    save(store, 1)

    def sync(path: Path) -> None:
        if path.as_posix().endswith(f".writing-{os.getpid()}-step-00000002/{file}"):
            _flip(path, at)

    monkeypatch.setattr(module, "sync", sync)
    with pytest.raises(TrainingError, match=r"is not what was written: " + said) as raised:
        save(store, 2)
    assert "The state of step 1 is intact" in raised.value.todo and WHERE in raised.value.where
    assert names(store.folder) == ["step-00000001"] and is_of(store.latest(), 1)


@pytest.mark.parametrize(
    ("record", "tensors"),
    [
        ({"loss": float("nan")}, {}),
        ({"loss": object()}, {}),
        ({}, {"weights": {"w": torch.eye(2).to_sparse()}}),
        ({}, {"weights": dict.fromkeys(["w", "tied"], torch.zeros(2))}),
    ],
    ids=["nan", "no json", "sparse", "shared memory"],
)
def test_what_no_state_holds_is_refused_and_nothing_is_left(
    store: StateStore, record: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]]
) -> None:
    with pytest.raises(TrainingError, match="step 1 cannot be stored"):
        store.save(1, record, tensors)
    assert store.latest() is None and (not store.folder.exists() or names(store.folder) == [])


def test_a_group_that_a_state_does_not_have_is_an_error(store: StateStore) -> None:
    save(store, 1)
    found = store.latest()
    assert found is not None
    with pytest.raises(TrainingError, match=r"the state of step 1 has no ema\.safetensors"):
        found.tensors("ema")


def test_the_manifest_lists_every_file(store: StateStore) -> None:
    save(store, 1)
    folder = store.folder / "step-00000001"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    there = {p.name: p.stat().st_size for p in folder.iterdir()}
    assert {name: facts["bytes"] for name, facts in listed.items()} | {"manifest.json": there["manifest.json"]} == there
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["w"], content(1)["weights"]["w"]), "other programs read it"


def test_what_a_killed_process_left_of_a_kept_model_or_a_file_goes_with_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Compute(), WHERE)
    (tmp_path / ".kept-01.77-0123abcd").mkdir()
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / ".epoch-01.parquet.77-0123abcd").write_text("half")
    folder.keep("kept-01", lambda to: (to / "model").write_text("1") and None)
    folder.keep("kept-01", lambda to: (to / "model").write_text("again") and None)
    folder.file("rollouts/epoch-01.parquet", lambda to: to.write_text("rows"))
    assert names(tmp_path) == ["kept-01", "rollouts"]
    assert (tmp_path / "kept-01" / "model").read_text() == "again"
    assert names(tmp_path / "rollouts") == ["epoch-01.parquet"]
    folder.keep("kept-02", lambda to: (to / "model").write_text("2") and None)
    folder.forget_others("kept-02")
    assert names(tmp_path) == ["kept-02", "rollouts"]
