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

PACKED = Path(__file__).parents[2] / "datasets" / "sample" / "pacific" / "validation.json.gz"


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\x00\xff" * 1000, gzip.decompress(PACKED.read_bytes())])
def test_a_record_describes_the_decompressed_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content))
    record, read = file_record(tmp_path / "a.json.gz")
    assert (record, read) == file_record(tmp_path / "a.json"), "compression is no difference"
    assert (record.name, record.bytes, read) == ("a.json", len(content), content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    if shutil.which("git"):
        command = ["git", "hash-object", "--no-filters", "a.json"]
        git = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert record.git_blob == git.stdout.strip()


class WithDatabases(PacificReader):
    def further_files(self, folder: Path) -> Sequence[str]:
        return sorted(p.relative_to(folder).as_posix() for p in folder.glob("database/*/*.sqlite"))


def test_files_come_by_their_official_names_further_ones_last(tmp_path: Path, pacific: Task) -> None:
    databases = ["database/a/a.sqlite", "database/b/b.sqlite"]
    for name in ("train.json.gz", "validation.json.gz", "validation.json", *databases):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = source_files(replace(pacific, reader=WithDatabases()), tmp_path)
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "train.json": "train.json.gz",
        "validation.json": "validation.json",  # plain before compressed
        **dict(zip(databases, databases, strict=True)),
    }
    assert list(found)[2:] == databases
    assert file_record(found[databases[0]], databases[0])[0].name == databases[0]
    (tmp_path / "train.json.gz").unlink()
    with pytest.raises(DataError, match=r"train\.json") as caught:
        source_files(pacific, tmp_path)
    assert caught.value.where == f"task pacific, folder {tmp_path}" and "train.json" in caught.value.todo
    with pytest.raises(DataError):
        find_file("tea", tmp_path, "y.json")


def damaged(at: int, byte: bytes) -> bytes:
    content = bytearray(PACKED.read_bytes())
    start = at % len(content)
    content[start : start + 8] = byte * 8
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"<html>404</html>",
        *(PACKED.read_bytes()[:end] for end in (3, 20_000, -1)),
        *(damaged(at, byte) for at in (0, 10, 12_000, -8) for byte in (b"\x00", b"\xff")),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "validation.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        file_record(path)
    assert caught.value.where == str(path) and caught.value.todo
