"""Whenever a process that writes states is killed, the newest state is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

# In a process of its own, which forks those that die: at random moments, and just before the n-th call that changes
# names on disk or waits for it.
CHILD = """
import os, random, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import torch
torch.set_num_threads(1)
from act_assets.training.checkpoint import StateStore
from test_checkpoint import WHERE, content, is_of, names, save

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print("child failed:", repr(error), flush=True)
            os._exit(1)
    return pid

def at_random(folder):
    store, chance, cut = StateStore(folder, 2, WHERE), random.Random(11), 0

    def work():
        found = store.latest()
        step = found.step if found else 0
        while True:
            step += 1
            for attempt in (1, 2):  # the second replaces the first
                big = {"big": torch.full((1 << 20,), float(step))}
                store.save(step, {"step": step, "attempt": attempt}, {**content(step), "big": big})

    before = 0
    for _ in range(8):
        pid = in_child(work)
        time.sleep(chance.uniform(0.1, 0.5))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        cut += any(name.startswith(".") for name in names(folder)) if folder.exists() else 0
        found = store.latest()
        step = found.step if found else 0
        assert store.skipped == [], store.skipped
        assert step >= before, (step, before)
        assert found is None or is_of(found, step) and bool((found.tensors("big")["big"] == step).all()), step
        before = step
    print("steps", before, "cut", cut)
    assert before > 3 and cut > 0

def at_every_call(folder, new):
    dies, total = 0, 0
    while True:
        root = folder / str(dies)
        store = StateStore(root, 1, WHERE)
        save(store, 6)

        def work():
            calls = [0]
            def dying(real):
                def call(*args, **options):
                    if calls[0] == dies:
                        os._exit(9)
                    calls[0] += 1
                    return real(*args, **options)
                return call
            for name in ("rename", "fsync", "mkdir", "unlink", "rmdir", "posix_fadvise"):
                setattr(os, name, dying(getattr(os, name)))
            save(store, new)

        _, status = os.waitpid(in_child(work), 0)
        found = store.latest()
        assert store.skipped == [], (dies, store.skipped)
        assert is_of(found, new) or is_of(found, 6), (dies, names(root))
        assert not [name for name in names(root) if name.startswith(".")], (dies, names(root))
        if os.waitstatus_to_exitcode(status) != 9:
            assert status == 0 and is_of(found, new)
            break
        dies += 1
    print("deaths", dies)
    assert dies > 12

folder = Path(sys.argv[2])
at_random(folder / "random")
at_every_call(folder / "new", 7)
at_every_call(folder / "same", 6)
"""


def test_whenever_a_process_is_killed_the_newest_state_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, __file__, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
