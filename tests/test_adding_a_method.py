"""docs/adding-a-method.md as it stands: its example is installed as a package and taken through the whole graph."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.home import PROJECT
from act_assets.methods import registry
from act_assets.methods.base import Method
from act_assets.methods.registry import METHODS, get_method, lineage
from act_assets.pipeline.graph import STAGES, by_name, stages_of
from resources.errors import ActError

PAGE = PROJECT / "docs" / "adding-a-method.md"
TINY = str(PROJECT / "tests" / "tiny.yaml")


def test_the_example_is_shorter_than_sixty_lines_and_the_page_explains_every_field(packages: Any) -> None:
    files = packages.files_of(PAGE)
    assert set(files) == {"ask-more/pyproject.toml", "ask-more/ask_more.py"}
    assert sum(text.count("\n") for text in files.values()) < 60
    assert all(f"`{field.name}`" in PAGE.read_text() for field in fields(Method))


def test_a_method_that_neither_trains_nor_predicts_is_refused() -> None:
    for wrong in ({}, {"starts_from": "base_policy"}, {"train": lambda run, folder: ({}, [])}):
        with pytest.raises(ValueError, match="either trains"):
            Method(name="nothing", title="", full_name="", summary="", section="", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"name": "Ask more"}, {"needs": ["raw_dataset"]}])
def test_a_method_that_would_break_the_graph_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="method"):
        replace(METHODS["act"], **wrong)


def test_a_method_whose_asset_is_there_already_is_refused() -> None:
    with pytest.raises(ActError) as refused:
        by_name([*STAGES.values(), *stages_of(replace(METHODS["act"], name="intents"))])
    assert "evaluation_intents" in refused.value.what


class Point:
    """An entry point of another package."""

    dist, name, value = None, "mine", "mine:METHOD"

    def __init__(self, found: object) -> None:
        self.found = found

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize(
    "found",
    [METHODS["sft"], "a module", ImportError("no such thing"), replace(METHODS["sft"], name="x", starts_from="nobody")],
    ids=["a name twice", "no method", "no import", "no start"],
)
def test_a_method_of_another_package_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, found: object
) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(found)])
    with pytest.raises(ActError) as refused:
        registry._all_methods()
    assert refused.value.where == "x" or "entry point mine = mine:METHOD" in refused.value.where


def test_a_method_is_trained_after_what_it_starts_from() -> None:
    names = list(METHODS)
    assert all(names.index(m.starts_from) < names.index(m.name) for m in METHODS.values() if m.starts_from in METHODS)
    assert [m.name for m in lineage(METHODS["act"])] == ["sft", "act"]
    with pytest.raises(ActError, match="unknown method") as refused:
        get_method("baselines")
    assert refused.value.todo == "choose sft or act"


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_a_method_of_another_package_goes_through_the_whole_graph(
    packages: Any, small_data: Path, tmp_path: Path
) -> None:
    environment = {**packages.installed(PAGE, tmp_path), "ACT_DATA_DIR": str(small_data)}
    run = ("--task", "pacific", "--train-size", "50", "--profile", TINY, "--method", "ask_more")
    planned = packages.act(environment, "plan", *run)
    assert "evaluation_ask_more pacific|50" in planned.stdout, planned.stderr
    done = packages.act(environment, "run", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    others = {"act_checkpoint", "evaluation_act"}
    wanted = {*STAGES, "ask_more_checkpoint", "evaluation_ask_more"} - others
    assert {p.name for p in (tmp_path / "home" / "artifacts").iterdir()} == wanted
    assert f"{len(wanted)} of {len(wanted)} assets made" in done.stdout
    assert "ask_more" in done.stdout, "it has a row in the table"
    (found,) = (tmp_path / "home" / "artifacts" / "evaluation_ask_more").rglob("report.json")
    assert json.loads(found.read_text())["method"] == "ask_more"
    assert "ask_more" in (tmp_path / "home" / "reports" / "pacific-tiny-seed0.html").read_text()
    exported = packages.act(environment, "export", "model", *run, "--out", str(tmp_path / "checkpoint"))
    assert exported.returncode == 0, exported.stderr
    assert "Ask more" in (tmp_path / "checkpoint" / "README.md").read_text()
    (source,) = (tmp_path / "site").rglob("ask_more.py")
    source.write_text(source.read_text() + "# edited\n")
    again = packages.act(environment, "run", *run)
    assert f"1 of {len(wanted)} assets made" in again.stdout, "its checkpoint, whose content is the same"
