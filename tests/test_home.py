"""Where things live, as the environment says, and what is said where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets import home, tasks
from act_assets.tasks import all_tasks, data_folder
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import ActError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACT_HOME", "ACT_DATA_DIR", "ACT_PROMPTS_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "project/.act"), ("", "project/.act"), ("state/of/mine", "state/of/mine"), ("~/state", "user/state")],
)
def test_act_home_is_dot_act_in_the_project_unless_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(home, "PROJECT", tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    if given is not None:
        monkeypatch.setenv("ACT_HOME", given)
    assert home.act_home() == tmp_path / expected
    assert list(home.act_home().iterdir()) == [], "it is there, and the probe is gone"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_act_home_that_cannot_be_written_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").write_text("a regular file")
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "file" / below))
    with pytest.raises(ActError) as caught:
        home.act_home()
    assert caught.value.where == str(tmp_path / "file" / below)
    assert "set ACT_HOME" in caught.value.todo


def test_the_bundled_sample_is_the_data_unless_set() -> None:
    for task in all_tasks().values():
        folder, origin = data_folder(task.name)
        assert origin == "bundled sample"
        assert all((folder / f"{name}.gz").is_file() for name in task.reader.files)


def test_act_data_dir_holds_a_folder_per_task_or_the_files_themselves_and_goes_before_any_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "get_task", lambda name: replace(PACIFIC, name=name, sample=tmp_path / "brought"))
    assert data_folder("tea") == (tmp_path / "brought", "bundled sample"), "of a task of another package"
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path))
    assert data_folder("tea") == (tmp_path, "ACT_DATA_DIR")
    (tmp_path / "tea").mkdir()
    assert data_folder("tea") == (tmp_path / "tea", "ACT_DATA_DIR")
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(ActError) as caught:
        data_folder("pacific")
    assert str(tmp_path / "gone") in caught.value.what
    assert "unset ACT_DATA_DIR" in caught.value.todo


def test_prompts_are_the_packages_own_unless_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (home.prompts_folder() / "generator" / "pacific.md").is_file()
    monkeypatch.setenv("ACT_PROMPTS_DIR", str(tmp_path))
    assert home.prompts_folder() == tmp_path


def test_dagster_home_follows_the_projects_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_HOME", str(tmp_path))
    for _ in range(2):
        assert home.dagster_home() == tmp_path / "dagster"
        copy = tmp_path / "dagster" / "dagster.yaml"
        assert copy.read_bytes() == (home.PROJECT / "dagster.yaml").read_bytes()
        copy.write_text("of an older version")
