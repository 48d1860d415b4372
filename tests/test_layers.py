"""Who may import whom, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from act_assets.home import PACKAGE, PROJECT
from act_assets.methods.registry import METHODS

pytestmark = pytest.mark.integration

HEAVY = {
    "torch",
    "httpx2",
    "trl",
    "transformers",
    "sentence_transformers",
    "sklearn",
    "matplotlib",
    "openai",
    "google",
    "huggingface_hub",
}
SOURCES = [*PACKAGE.rglob("*.py"), *(PROJECT / "resources").rglob("*.py")]


def test_imports_point_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert lint_imports(no_cache=True) == 0, "lint-imports names the import"


def loaded_by(module: str, wanted: set[str]) -> set[str]:
    """Which of some packages a fresh interpreter has after importing a module."""
    code = f"import sys, {module}; print(*sorted({wanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def inner_imports() -> Iterator[tuple[str, str]]:
    """(file, module) of every first-party import inside a function."""
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("act_assets", "resources")):
                        yield path.relative_to(PROJECT).as_posix(), str(node.module)


def test_an_import_inside_a_function_keeps_a_heavy_library_out_of_start_up() -> None:
    found = set(inner_imports())
    heavy = {module: loaded_by(module, HEAVY | {"dagster"}) for module in {module for _, module in found}}
    guarded = ("act_assets/cli/__init__.py", "act_assets.cli.app")  # what it imports can be wrong
    light = sorted(place for place in found - {guarded} if not heavy[place[1]])
    assert not light, "\n".join(map(str, light))


def test_loading_the_code_location_or_the_command_imports_nothing_heavy() -> None:
    assert loaded_by("act_assets.definitions", HEAVY) == set()
    assert loaded_by("act_assets.cli.app", HEAVY | {"dagster"}) == set()


# Where the algorithms themselves are, and the settings that a profile has for them.
OF_METHODS = ("methods/", "training/act", "training/sft", "profile.py")


RESOURCE = "act"  # what Dagster calls the settings of a run


def test_nothing_but_the_methods_names_a_method() -> None:
    named = {name for m in METHODS.values() for name in (m.name, m.title, m.checkpoint, m.evaluation)}
    elsewhere = [p for p in PACKAGE.rglob("*.py") if not p.relative_to(PACKAGE).as_posix().startswith(OF_METHODS)]
    found = [
        (path.relative_to(PACKAGE).as_posix(), node.lineno, node.value)
        for path in elsewhere
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in named
        if (path.parent.name, node.value) != ("defs", RESOURCE) and path.name != "definitions.py"
    ]
    assert not found, "\n".join(map(str, found))


def test_what_the_scans_look_at_is_there() -> None:
    assert len(SOURCES) > 100
    assert Path(PACKAGE / "methods" / "act.py") in SOURCES
    assert {module for _, module in inner_imports()}
