"""The real graph with the smallest policy, through the command line, in processes of its own."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from act_assets.pipeline.graph import STAGES

REPO = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-m", "act_assets.cli.app", "run", "--task", "pacific", "--train-size", "50"]
PROFILE = ["--profile", str(REPO / "tests" / "tiny.yaml")]

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]


def _environment(home: Path, data: Path) -> dict[str, str]:
    return {**os.environ, "ACT_HOME": str(home), "ACT_DATA_DIR": str(data), "COLUMNS": "100"}


@pytest.fixture(scope="module")
def finished(
    small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """ACT_HOME after one uninterrupted run, and what the run printed."""
    home = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        RUN + PROFILE, env=_environment(home, small_data), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done


def _contents(home: Path) -> dict[str, str]:
    """The hash of every file of every artifact, by asset; the report's page holds no paths or times."""
    found = {}
    for manifest in sorted((home / "artifacts").rglob("artifact.json")):
        facts = json.loads(manifest.read_text())
        found[f"{facts['asset']} {facts['partition']}"] = json.dumps(facts["files"], sort_keys=True)
    return found


def test_everything_is_made_and_shown(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, done = finished
    assert {key.split()[0] for key in _contents(home)} == set(STAGES)
    assert f"{len(STAGES)} of {len(STAGES)} assets made" in done.stdout
    page = home / "reports" / "pacific-tiny-seed0.html"
    assert str(page) in done.stdout
    assert "question-only logistic regression" in page.read_text()
    assert "Traceback" not in done.stderr
    assert not list((home / "artifacts").rglob(".building-*"))
    assert not [p for p in home.rglob("*") if p.suffix in (".pkl", ".pt", ".bin")]


def test_a_second_run_recomputes_nothing_and_says_so(
    finished: tuple[Path, subprocess.CompletedProcess[str]], small_data: Path
) -> None:
    home, _ = finished
    before = _contents(home)
    again = subprocess.run(
        RUN + PROFILE, env=_environment(home, small_data), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert f"nothing to recompute: all {len(STAGES)} assets are up to date" in again.stdout
    assert "made in" not in again.stderr
    assert _contents(home) == before


def test_a_run_that_is_killed_twice_comes_to_the_same_artifacts(
    finished: tuple[Path, subprocess.CompletedProcess[str]], small_data: Path, tmp_path: Path
) -> None:
    """The process of its next training first, then the run itself in the midst of the last one."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for asset in ("contrastive_pairs", "sft_checkpoint", "act_checkpoint", "evaluation_sft", "evaluation_act"):
        shutil.rmtree(tmp_path / "artifacts" / asset)
    said = _end_a_training_process(tmp_path, small_data)
    assert "the training process was ended by signal 9 (SIGKILL)" in said
    assert "run again" in said
    assert "Traceback" not in said
    assert (tmp_path / "artifacts" / "contrastive_pairs" / "pacific" / "50" / "current" / "tiny-seed0").is_file()
    _run_and_kill_during("act_checkpoint", tmp_path, small_data)
    last = subprocess.run(
        RUN + PROFILE, env=_environment(tmp_path, small_data), capture_output=True, text=True, check=False
    )
    assert last.returncode == 0, last.stdout + last.stderr
    assert _contents(tmp_path) == _contents(finished[0])
    assert not list((tmp_path / "artifacts").rglob(".building-*")), "what was left half-built is swept"


def _end_a_training_process(home: Path, data: Path) -> str:
    """SIGKILL to a run's first training process; gives what the run says."""
    with (home / "out.txt").open("w") as log:
        process = subprocess.Popen(RUN + PROFILE, env=_environment(home, data), stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    victim = None
    while victim is None and process.poll() is None and time.monotonic() < deadline:
        victim = next(
            (c for c in psutil.Process(process.pid).children() if "act_assets.pipeline.train" in _command(c)), None
        )
        time.sleep(0.05)
    assert victim is not None, (home / "out.txt").read_text()
    victim.kill()
    assert process.wait(timeout=120) == 1
    return (home / "out.txt").read_text()


def _run_and_kill_during(stage: str, home: Path, data: Path) -> None:
    """SIGKILL to the run alone, a moment after `stage` has begun; its training processes must end by themselves."""
    with (home / "out.txt").open("a") as log:
        process = subprocess.Popen(RUN + PROFILE, env=_environment(home, data), stdout=log, stderr=log)
    try:
        folder = home / "artifacts" / stage
        deadline = time.monotonic() + 300
        while not list(folder.rglob(".building-*")) and process.poll() is None:
            assert time.monotonic() < deadline, (home / "out.txt").read_text()
            time.sleep(0.05)
        time.sleep(3.0)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"{len(alive)} processes outlived the run killed during {stage}"


def _command(process: psutil.Process) -> str:
    """Its command line; empty for one that is gone by now (libraries start short-lived helpers)."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _command(process: psutil.Process) -> str:
    """Its command line; empty for one that is gone by now (libraries start short-lived helpers)."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("task", ["abg_coqa", "ambig_sql"])
def test_the_other_tasks_go_through_the_whole_graph(
    task: str, whole_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the bundled sample, stage by stage in this process; of the stories the first items."""
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACT_DATA_DIR", raising=False)
    if task == "abg_coqa":
        monkeypatch.setenv("ACT_DATA_DIR", str(_few_stories(tmp_path / "data")))

    results = whole_graph.run_all(task)
    assert not any(result.reused for result in results.values())
    report = json.loads(results["evaluation_act"].artifact.file("report.json").read_text())
    assert report["side"] == "test"
    assert report["judge"].startswith({"abg_coqa": "cosine similarity", "ambig_sql": "execution match"}[task])
    figures = {m["name"]: m for m in report["metrics"]}
    main = {"abg_coqa": "similarity", "ambig_sql": "execution match"}[task]
    assert 0 <= figures[f"trajectory {main}"]["value"] <= 1
    assert "Zephyr 7B-beta" in (tmp_path / "home" / "reports" / f"{task}-tiny-seed0.html").read_text()
    assert all(result.reused for result in whole_graph.run_all(task).values())


METHOD_PAGE = REPO / "docs" / "adding-a-method.md"


def test_a_method_of_another_package_is_trained_on_what_is_there(
    finished: tuple[Path, subprocess.CompletedProcess[str]], packages: Any, small_data: Path, tmp_path: Path
) -> None:
    """docs/adding-a-method.md as it stands, installed as a package."""
    environment = {**packages.installed(METHOD_PAGE, tmp_path), "ACT_DATA_DIR": str(small_data)}
    home = Path(shutil.copytree(finished[0], environment["ACT_HOME"]))
    before = _contents(home)
    run = (*RUN[4:], *PROFILE, "--method", "ask_more")
    done = packages.act(environment, "run", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    mine = {"ask_more_checkpoint pacific|50", "evaluation_ask_more pacific|50"}
    assert before.keys() | mine == _contents(home).keys()
    changed = {*mine, "leaderboard pacific", "report pacific"}
    unchanged = {key: files for key, files in _contents(home).items() if key not in changed}
    assert unchanged.items() <= before.items(), "made again: nothing of the other methods"
    assert "ask_more" in done.stdout, "it has a row in the table"
    (found,) = (home / "artifacts" / "evaluation_ask_more").rglob("report.json")
    assert json.loads(found.read_text())["method"] == "ask_more"
    assert "ask_more" in (home / "reports" / "pacific-tiny-seed0.html").read_text()
    exported = packages.act(environment, "export", "model", *run, "--out", str(tmp_path / "checkpoint"))
    assert exported.returncode == 0, exported.stderr
    assert "Ask more" in (tmp_path / "checkpoint" / "README.md").read_text()
    (source,) = (tmp_path / "site").rglob("ask_more.py")
    source.write_text(source.read_text() + "# edited\n")
    edited = packages.act(environment, "export", "model", *run, "--out", str(tmp_path / "another"))
    assert edited.returncode == 1, "its checkpoint is one of other code now"


def _few_stories(folder: Path) -> Path:
    """Ambiguous and clear items of each side of Abg-CoQA."""
    folder.mkdir()
    for name, ambiguous, clear in (("train", 20, 40), ("val", 3, 6), ("test", 3, 6)):
        path = REPO / "datasets/sample/abg_coqa" / f"coqa_abg_{name}.json.gz"
        content = json.loads(gzip.decompress(path.read_bytes()))
        kinds: dict[str, list[object]] = {"ambiguous": [], "non_ambiguous": []}
        for item in content["data"]:
            kinds[item["ambiguity"]].append(item)
        content["data"] = kinds["ambiguous"][:ambiguous] + kinds["non_ambiguous"][:clear]
        (folder / f"coqa_abg_{name}.json").write_text(json.dumps(content))
    return folder
