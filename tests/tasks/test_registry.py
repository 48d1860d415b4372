"""Tasks of this package and of others: found by name, and refused with the package that has to be fixed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from act_assets import tasks
from act_assets.tasks import GROUP, all_tasks, get_task, is_own
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import ActError

MODULE = """
from dataclasses import replace
from act_assets.tasks.pacific.task import PACIFIC, PacificReader

class Reader(PacificReader): ...

TEA = replace(PACIFIC, name="tea", reader=Reader())
OWN, NUMBER = PACIFIC, 5
"""


class Package:
    """A distribution, as an entry point knows it."""

    name = "tea-shop"


def point(value: str, name: str = "tea") -> EntryPoint:
    made = EntryPoint(name, value, GROUP)
    vars(made)["dist"] = Package()
    return made


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs entry points in place of those that are there; they may name `tea_module` and `broken_module`."""
    (tmp_path / "tea_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("raise ValueError('no tea today')")
    monkeypatch.syspath_prepend(tmp_path)

    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(tasks, "entry_points", lambda *, group: list(points) if group == GROUP else [])
        all_tasks.cache_clear()

    yield install
    all_tasks.cache_clear()
    sys.modules.pop("tea_module", None)


def test_this_packages_tasks_come_first_in_a_mapping_that_nobody_changes(installed: Callable[..., None]) -> None:
    installed()
    own = list(all_tasks())
    assert own[0] == "pacific" and all(map(is_own, own))
    installed(point("tea_module:TEA", "another name"))
    assert list(all_tasks()) == [*own, "tea"], "under its own name"
    assert get_task("tea").name == "tea" and not is_own("tea")
    with pytest.raises(TypeError):
        all_tasks()["tea"] = PACIFIC  # type: ignore[index]
    with pytest.raises(ActError) as caught:
        get_task("teas")
    assert caught.value.todo == f"choose one of: {', '.join([*own, 'tea'])}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module_anywhere:TEA", "ModuleNotFoundError"),
        ("broken_module:TEA", "ValueError: no tea today"),
        ("tea_module:MISSING", "AttributeError"),
        ("tea_module:NUMBER", "int"),
        ("tea_module:OWN", "pacific"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named_with_its_package(
    installed: Callable[..., None], value: str, said: str
) -> None:
    installed(point(value))
    for _ in range(2):
        with pytest.raises(ActError) as caught:
            all_tasks()
        assert said in caught.value.what and caught.value.todo
        assert caught.value.where == f"package tea-shop, entry point tea = {value} of the group {GROUP}"
    installed(point("tea_module:TEA"))
    assert "tea" in all_tasks(), "a refusal is not remembered"


def test_of_two_packages_with_one_name_the_later_is_refused(installed: Callable[..., None]) -> None:
    installed(point("tea_module:TEA", "b"), point("tea_module:TEA", "a"))
    with pytest.raises(ActError) as caught:
        all_tasks()
    assert "entry point b = " in caught.value.where, "in the order of their names, whatever the file system says"


def test_the_code_of_another_packages_task_is_part_of_what_it_makes(
    installed: Callable[..., None], tmp_path: Path
) -> None:
    assert all(tasks.source_hash(get_task(name)) is None for name in ("pacific", "abg_coqa", "ambig_sql"))
    installed(point("tea_module:TEA"))
    before = tasks.source_hash(get_task("tea"))
    (tmp_path / "tea_module.py").write_text(f"{MODULE}\n# another price\n")
    tasks.source_hash.cache_clear()
    assert None is not before != tasks.source_hash(get_task("tea"))
