"""What a method has to be, and its page; test_end_to_end.py installs the page's example as a package."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from act_assets.home import PROJECT
from act_assets.methods import registry
from act_assets.methods.base import Method
from act_assets.methods.registry import METHODS, get_method, lineage
from act_assets.pipeline.graph import STAGES, by_name, stages_of
from resources.errors import ActError

PAGE = PROJECT / "docs" / "adding-a-method.md"


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
