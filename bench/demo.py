"""Time, peak memory and throughput of every stage of the demo: `make bench`, or `python bench/demo.py`.

Runs `act run` twice in an empty ACT_HOME: once to make everything, once to see that nothing is made again. The last
line is JSON with every figure and its target.

    python bench/demo.py --train-size 50 --profile laptop
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

TARGETS = {"demo_seconds": 360.0, "second_run_seconds": 20.0}
_BEGAN = re.compile(r"^  (\w+) \S+\s+\.\.\.$")
_ENDED = re.compile(r"^  (\w+) \S+\s+made in ([\d.]+) s$")


@dataclass
class StageFigures:
    """A stage's wall time, the highest memory of the whole process tree meanwhile, and its throughput."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    turns_per_second: float | None = None
    pairs_per_second: float | None = None
    tokens_per_second: float | None = None


def run_demo(home: Path, profile: str, train_size: int) -> tuple[float, dict[str, StageFigures]]:
    """One `act run`; (wall seconds, figures by stage)."""
    command = [sys.executable, "-m", "act_assets.cli.app", "run", "--train-size", str(train_size), "--profile", profile]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "ACT_HOME": str(home), "COLUMNS": "120"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, StageFigures] = {}
    current: list[str] = []
    watching = threading.Event()

    def watch() -> None:
        tree = psutil.Process(process.pid)
        while not watching.wait(0.1):
            try:
                memory = sum(_memory(p) for p in [tree, *tree.children(recursive=True)])
            except psutil.NoSuchProcess:
                return
            if current:
                figures[current[-1]].peak_memory_mb = max(figures[current[-1]].peak_memory_mb, memory / 2**20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if began := _BEGAN.match(line.rstrip()):
            current.append(began.group(1))
            figures[began.group(1)] = StageFigures()
        elif ended := _ENDED.match(line.rstrip()):
            figures[ended.group(1)].seconds = float(ended.group(2))
    code = process.wait()
    watching.set()
    watcher.join()
    if code != 0:
        sys.exit("the demo failed:\n" + "".join(said))
    return time.perf_counter() - started, figures


def add_throughput(home: Path, figures: dict[str, StageFigures]) -> None:
    """Turns, pairs and tokens a second from the artifacts' own facts."""
    for manifest in (home / "artifacts").rglob("artifact.json"):
        record = json.loads(manifest.read_text())
        stage, facts = figures[record["asset"]], record["facts"]
        stage.tokens_per_second = facts.get("tokens_per_second")
        stage.turns_per_second = facts.get("turns_per_second") or _rate(facts, "turns", stage.seconds)
        stage.pairs_per_second = facts.get("pairs_per_second") or _rate(facts, "pairs", stage.seconds)
        if "sampled_tokens" in facts:
            stage.tokens_per_second = round(facts["sampled_tokens"] / stage.seconds, 1)


def _rate(facts: dict[str, float], what: str, seconds: float) -> float | None:
    return round(facts[what] / seconds, 1) if isinstance(facts.get(what), int) and seconds else None


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-size", type=int, default=50)
    parser.add_argument("--profile", default="laptop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="act-bench-") as folder:
        home = Path(folder)
        first, figures = run_demo(home, options.profile, options.train_size)
        add_throughput(home, figures)
        second, remade = run_demo(home, options.profile, options.train_size)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"act run --train-size {options.train_size} --profile {options.profile}, {machine}")
    print(f"{'stage':<22}{'seconds':>9}{'share':>8}{'peak MB':>9}{'turns/s':>10}{'pairs/s':>10}{'tokens/s':>10}")
    for name, stage in figures.items():
        rates = (stage.turns_per_second, stage.pairs_per_second, stage.tokens_per_second)
        cells = "".join(f"{'-' if r is None else f'{r:.1f}':>10}" for r in rates)
        print(f"{name:<22}{stage.seconds:>9.1f}{stage.seconds / first:>8.0%}{stage.peak_memory_mb:>9.0f}{cells}")
    made = sum(s.seconds for s in figures.values())
    print(f"{'start-up and Dagster':<22}{first - made:>9.1f}{(first - made) / first:>8.0%}")
    print(f"{'all of it':<22}{first:>9.1f}    second run {second:.1f} s, {len(remade)} stages made again")
    print("tokens/s: trained tokens for base_policy and sft_checkpoint, sampled tokens for act_checkpoint")
    result = {
        "bench": "demo",
        "train_size": options.train_size,
        "profile": options.profile,
        "demo_seconds": round(first, 1),
        "second_run_seconds": round(second, 1),
        "stages_made_again": len(remade),
        "peak_memory_mb": round(max(s.peak_memory_mb for s in figures.values())),
        "stages": {name: vars(stage) for name, stage in figures.items()},
        "targets": {**TARGETS, "stages_made_again": 0},
        "met": first <= TARGETS["demo_seconds"] and second <= TARGETS["second_run_seconds"] and not remade,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
