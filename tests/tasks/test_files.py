"""Source files: found plain or compressed, hashed as catalogues publish, refused where they are not whole."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.tasks.base import Task
from act_assets.tasks.files import file_record, find_file, source_files
from act_assets.tasks.pacific.task import PacificReader
from resources.errors import DataError

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample" / "pacific"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        file_record(path)
    assert str(path) in caught.value.where
    assert caught.value.todo
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\x00\xff" * 1000])
def test_a_record_describes_the_decompressed_file(tmp_path: Path, content: bytes) -> None:
    plain, packed = tmp_path / "plain" / "a.json", tmp_path / "packed" / "a.json.gz"
    plain.parent.mkdir()
    packed.parent.mkdir()
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    assert file_record(plain) == file_record(packed), "compression is no difference"
    record, read = file_record(packed)
    assert read == content
    assert (record.name, record.bytes) == ("a.json", len(content))
    assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_the_blob_ids_of_known_files() -> None:
    """Git's own: `git hash-object` of an empty file is the best known of all."""
    validation, content = file_record(SAMPLE / "validation.json.gz")
    assert validation.git_blob == hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git's own answer")
@pytest.mark.parametrize("name", ["train.json", "validation.json"])
def test_the_blob_id_is_what_git_hash_object_prints(tmp_path: Path, name: str) -> None:
    record, content = file_record(SAMPLE / f"{name}.gz")
    (tmp_path / name).write_bytes(content)
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", name], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert record.git_blob == git.stdout.strip()


def test_files_come_in_the_tasks_order_and_plain_before_compressed(tmp_path: Path, pacific: Task) -> None:
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    found = source_files(pacific, tmp_path)
    assert list(found) == ["train.json", "validation.json"], "by the official names"
    assert [p.name for p in found.values()] == ["train.json.gz", "validation.json.gz"]
    (tmp_path / "validation.json").write_text("[]")
    assert [p.name for p in source_files(pacific, tmp_path).values()] == ["train.json.gz", "validation.json"]


class WithDatabases(PacificReader):
    def further_files(self, folder: Path) -> Sequence[str]:
        return sorted(p.relative_to(folder).as_posix() for p in folder.glob("database/*/*.sqlite"))


def test_further_files_come_last_under_the_folders_that_they_lie_in(tmp_path: Path, pacific: Task) -> None:
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    for name in ("b", "a"):
        (tmp_path / "database" / name).mkdir(parents=True)
        (tmp_path / "database" / name / f"{name}.sqlite").write_text(name)
    found = source_files(replace(pacific, reader=WithDatabases()), tmp_path)
    assert list(found)[2:] == ["database/a/a.sqlite", "database/b/b.sqlite"]
    assert file_record(found["database/a/a.sqlite"], "database/a/a.sqlite")[0].name == "database/a/a.sqlite"


def test_a_file_is_found_plain_before_compressed_or_missed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").write_bytes(b"")
    assert find_file("tea", tmp_path, "x.json") == tmp_path / "x.json.gz"
    (tmp_path / "x.json").write_bytes(b"")
    assert find_file("tea", tmp_path, "x.json") == tmp_path / "x.json"
    with pytest.raises(DataError, match=r"y\.json is missing") as caught:
        find_file("tea", tmp_path, "y.json")
    assert caught.value.where == f"task tea, folder {tmp_path}"


@pytest.mark.parametrize("missing", ["train.json", "validation.json"])
def test_a_missing_file_is_named_with_its_folder(tmp_path: Path, pacific: Task, missing: str) -> None:
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    (tmp_path / f"{missing}.gz").unlink()
    with pytest.raises(DataError, match=f"dataset file {missing} is missing") as caught:
        source_files(pacific, tmp_path)
    assert caught.value.where == f"task pacific, folder {tmp_path}"
    assert f"put the official {missing} there" in caught.value.todo


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.9999])
def test_a_truncated_gz_file_is_refused(tmp_path: Path, kept: float) -> None:
    whole = (SAMPLE / "validation.json.gz").read_bytes()
    path = tmp_path / "validation.json.gz"
    path.write_bytes(whole[: int(len(whole) * kept)])
    if kept:
        assert "cannot be read" in refusal(path)
    else:
        assert file_record(path)[1] == b"", "gzip takes no bytes for no content; the reader refuses it"


@pytest.mark.parametrize("at", [0, 10, 12_000, -8], ids=["header", "first block", "middle", "checksum"])
@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_a_damaged_gz_file_is_refused(tmp_path: Path, at: int, byte: bytes) -> None:
    damaged = bytearray(gzip.compress((SAMPLE / "validation.json.gz").read_bytes()))  # header of ten bytes
    start = at % len(damaged)
    damaged[start : start + 8] = byte * 8
    path = tmp_path / "validation.json.gz"
    path.write_bytes(damaged)
    assert "cannot be read" in refusal(path)


def test_a_file_that_is_not_gz_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.json.gz"
    path.write_text("<html>404</html>")
    assert "cannot be read" in refusal(path)


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "train.json")
