"""docs/adding-a-task.md as it stands: its example is installed as a package of its own and taken through the graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from act_assets.pipeline.graph import STAGES

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "adding-a-task.md"
ACTIONS = {"CLARIFY", "ANSWER", "DECLINE"}


def test_the_example_is_shorter_than_eighty_lines(packages: Any) -> None:
    files = packages.files_of(PAGE)
    assert set(files) == {"tea-shop/pyproject.toml", "tea-shop/tea_shop.py"}
    assert sum(text.count("\n") for text in files.values()) < 80


@pytest.fixture(scope="module")
def environment(packages: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found: dict[str, str] = packages.installed(PAGE, tmp_path_factory.mktemp("package"))
    return found


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_a_task_of_another_package_goes_through_the_whole_graph(packages: Any, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.whole_graph", "tea_shop"]
    done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = {}
    for path in Path(environment["ACT_HOME"], "artifacts").rglob("artifact.json"):
        manifest = json.loads(path.read_text())
        manifests[manifest["asset"]] = (path.parent, manifest["facts"])
    assert set(manifests) == set(STAGES)
    pairs = manifests["contrastive_pairs"][1]
    assert all(pairs[f"pairs_{action.lower()}"] > 0 for action in ACTIONS)
    report = json.loads((manifests["evaluation_act"][0] / "report.json").read_text())
    assert set(report["actions"]) == ACTIONS
    assert [len(row) for row in report["confusion"]] == [3, 3, 3]
    assert "trajectory exact match" in {metric["name"] for metric in report["metrics"]}
    page = Path(environment["ACT_HOME"], "reports", "tea_shop-tiny-seed0.html").read_text()
    assert "A tea shop" in page
    assert "DECLINE" in page


@pytest.mark.end_to_end
def test_a_package_that_cannot_be_imported_is_named(packages: Any, environment: dict[str, str], tmp_path: Path) -> None:
    broken = Path(environment["PYTHONPATH"].split(os.pathsep)[0], "tea_shop.py")
    text = broken.read_text()
    try:
        broken.write_text(text.replace('"tea_shop", "A tea shop"', '"Tea Shop", "A tea shop"'))
        done = packages.act({**environment, "ACT_HOME": str(tmp_path)}, "plan", "--task", "tea_shop")
    finally:
        broken.write_text(text)
    assert done.returncode != 0
    assert "package tea-shop, entry point tea_shop = tea_shop:TEA_SHOP" in done.stdout + done.stderr
    assert "small letters" in done.stdout + done.stderr
