"""Tasks of this package and of others: found by name, and refused with the package that has to be mended."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from act_assets import tasks
from act_assets.tasks import GROUP, all_tasks, get_task, is_own
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import ActError

TEA = replace(PACIFIC, name="tea")


class Package:
    """A distribution, as an entry point knows it."""

    name = "tea-shop"


def point(name: str, value: str) -> EntryPoint:
    made = EntryPoint(name, value, GROUP)
    vars(made)["dist"] = Package()
    return made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs entry points in place of those that are there; `tea_module` is a module that they may name."""
    module = types.ModuleType("tea_module")
    vars(module).update(TEA=TEA, OWN=PACIFIC, NUMBER=5)
    monkeypatch.setitem(sys.modules, "tea_module", module)

    def install(*points: EntryPoint) -> None:
        def entry_points(*, group: str) -> list[EntryPoint]:
            assert group == GROUP
            return list(points)

        monkeypatch.setattr(tasks, "entry_points", entry_points)
        all_tasks.cache_clear()

    yield install
    all_tasks.cache_clear()


def test_this_packages_tasks_come_first_in_a_mapping_that_nobody_changes(installed: Callable[..., None]) -> None:
    installed()
    own = list(all_tasks())
    assert own[0] == "pacific"
    assert all(map(is_own, own))
    installed(point("tea", "tea_module:TEA"))
    assert list(all_tasks()) == [*own, "tea"]
    assert get_task("tea") is TEA
    assert not is_own("tea")
    with pytest.raises(TypeError):
        all_tasks()["tea"] = PACIFIC  # type: ignore[index]


def test_every_task_stands_under_its_own_name(installed: Callable[..., None]) -> None:
    installed(point("another name", "tea_module:TEA"))
    assert all(name == task.name for name, task in all_tasks().items())


def test_an_unknown_task_lists_the_known_ones(installed: Callable[..., None]) -> None:
    installed(point("tea", "tea_module:TEA"))
    with pytest.raises(ActError, match="unknown task 'teas'") as caught:
        get_task("teas")
    assert caught.value.todo == f"choose one of: {', '.join(all_tasks())}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module_anywhere:TEA", "ModuleNotFoundError"),
        ("tea_module:MISSING", "AttributeError"),
        ("tea_module:NUMBER", "it names a int, not an act_assets.tasks.base.Task"),
        ("tea_module:OWN", "there is a task pacific already"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named_with_its_package(
    installed: Callable[..., None], value: str, said: str
) -> None:
    installed(point("tea", value))
    with pytest.raises(ActError, match="a task of another package cannot be used") as caught:
        all_tasks()
    assert said in caught.value.what
    assert caught.value.where == f"package tea-shop, entry point tea = {value} of the group {GROUP}"
    assert caught.value.todo == "mend that package, or uninstall it"


def test_a_module_that_raises_anything_at_all_is_named(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: EntryPoint) -> object:
        raise ValueError("task ?: its name '?' is not of small letters")

    monkeypatch.setattr(EntryPoint, "load", load)
    installed(point("tea", "tea_module:TEA"))
    with pytest.raises(ActError, match="ValueError: task \\?: its name"):
        all_tasks()


def test_of_two_packages_with_one_name_the_later_is_refused(installed: Callable[..., None]) -> None:
    installed(point("b", "tea_module:TEA"), point("a", "tea_module:TEA"))
    with pytest.raises(ActError, match="there is a task tea already") as caught:
        all_tasks()
    assert "entry point b = " in caught.value.where, "in the order of their names, whatever the file system says"


def test_a_refusal_is_not_remembered(installed: Callable[..., None]) -> None:
    installed(point("tea", "tea_module:NUMBER"))
    for _ in range(2):
        with pytest.raises(ActError):
            all_tasks()
    installed(point("tea", "tea_module:TEA"))
    assert "tea" in all_tasks()


def test_the_code_of_another_packages_task_is_part_of_what_it_makes(tmp_path: Path) -> None:
    assert all(tasks.source_hash(task) is None for task in (PACIFIC, get_task("abg_coqa"), get_task("ambig_sql")))
    seen = set()
    for number, text in enumerate(("", "# another price\n")):
        path = tmp_path / f"shop_{number}.py"
        path.write_text(
            f"from act_assets.tasks.pacific.task import PacificReader\n\nclass Reader(PacificReader): ...\n{text}"
        )
        module = types.ModuleType(path.stem)
        module.__file__ = str(path)
        exec(compile(path.read_text(), path, "exec"), vars(module))
        sys.modules[path.stem] = module
        try:
            seen.add(tasks.source_hash(replace(TEA, reader=module.Reader())))
        finally:
            del sys.modules[path.stem]
    assert len(seen) == 2
    assert None not in seen
