"""Rooms, their lines, who imports whom, and any import that points up.

    python bench/house.py

A room is a folder or a flat module of the sources. Ends with one line of JSON that holds every figure and its target.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("act_assets", "resources")
LIMIT = 400  # lines of a file
BEFORE = {"source": 25_968, "tests": 27_494}  # on 2026-11-21, before the move
LESS = 3_000  # lines, of each


def lines_of(folder: str) -> dict[str, int]:
    return {
        p.relative_to(PROJECT).as_posix(): len(p.read_text().splitlines()) for p in PROJECT.glob(f"{folder}/**/*.py")
    }


def room_of(module: str) -> str:
    """`act_assets.training.act` -> `training`; a flat module is a room of its own."""
    package, _, rest = module.partition(".")
    name = rest.split(".")[0]
    if package == "resources":
        return "resources/llm" if name == "llm" else "resources"  # one floor: errors know what a failure is
    return name or package


def main() -> int:
    graph = grimp.build_graph(*PACKAGES)
    arrows: Counter[tuple[str, str]] = Counter()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            if room_of(importer) != room_of(imported):
                arrows[room_of(importer), room_of(imported)] += 1
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    floors = {
        room_of(module.strip()): number for number, layer in enumerate(reversed(layers)) for module in layer.split("|")
    }
    floors["resources/llm"] = floors["resources"]
    up = [f"{a} -> {b}" for a, b in arrows if floors.get(a, 0) < floors.get(b, 0)]
    source = {path: n for package in PACKAGES for path, n in lines_of(package).items()}
    tests = lines_of("tests")
    rooms: Counter[str] = Counter()
    for path, number in source.items():
        rooms[room_of(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))] += number
    print(f"{'room':<16}{'lines':>7}{'floor':>7}  imports")
    for room in sorted(rooms, key=lambda name: (-floors.get(name, 0), name)):
        below = ", ".join(f"{b} {n}" for (a, b), n in sorted(arrows.items()) if a == room)
        print(f"{room:<16}{rooms[room]:>7}{floors.get(room, 0):>7}  {below}")
    longest = sorted(source.items(), key=lambda item: -item[1])
    print("\nlongest files: " + ", ".join(f"{path} {n}" for path, n in longest[:5]))
    figures = {
        "rooms": len(rooms),
        "arrows": len(arrows),
        "imports_upward": {"value": len(up), "target": 0, "which": up},
        "files_over_400_lines": {"value": sum(n > LIMIT for n in source.values()), "target": 0},
        "source_lines": {"value": sum(source.values()), "target": BEFORE["source"] - LESS},
        "test_lines": {"value": sum(tests.values()), "target": BEFORE["tests"] - LESS},
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
