"""Two processes on one machine do not train at once: the pool `gpu` has one slot, and both share DAGSTER_HOME."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from act_assets.home import PROJECT

pytestmark = pytest.mark.integration

# As defs/launch.py and assets.py do it: an ordinary run within the process, on the instance of ACT_HOME.
RUN = """
import os, pathlib, sys, time
import dagster as dg
from act_assets.defs.launch import prepare_pools
from act_assets.defs.pools import pool_slot
from act_assets.home import dagster_home
folder, name, pool = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
os.environ["DAGSTER_HOME"] = str(dagster_home())

@dg.asset(name=f"training_{name}", pool=pool)
def training(context: dg.AssetExecutionContext):
    with pool_slot(context.instance, "gpu"):
        began = time.time()
        time.sleep(1.0)
        (folder / f"{name}.times").write_text(f"{began} {time.time()}")

with dg.DagsterInstance.get() as instance:
    (folder / f"{name}.ready").touch()
    while len(list(folder.glob("*.ready"))) < 2:
        time.sleep(0.01)
    prepare_pools(instance)
    sys.exit(not dg.materialize([training], instance=instance).success)
"""


@pytest.mark.parametrize("pool", ["gpu", ""], ids=["with Dagster's slot", "as if Dagster gave a slot to both"])
def test_two_runs_hold_the_pool_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    home = "from act_assets.home import dagster_home; import dagster as dg, os; "
    home += "os.environ['DAGSTER_HOME'] = str(dagster_home()); dg.DagsterInstance.get().dispose()"
    subprocess.run([sys.executable, "-c", home], check=True, cwd=PROJECT)  # both would create its tables at once
    runs = [
        subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), name, pool], cwd=PROJECT, stderr=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    first, second = sorted(tuple(map(float, (tmp_path / f"{n}.times").read_text().split())) for n in ("a", "b"))
    assert second[0] >= first[1], "the second began before the first had ended"
