"""What this machine has: versions, keys (never their values), GPU, data, and where state lives."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from act_assets.cli.text import size_text
from act_assets.home import act_home, memo_folder, prompts_folder
from act_assets.profile import load_profile, profile_names
from act_assets.roles.prompt import ROLES, load_template
from act_assets.tasks import all_tasks, data_folder
from act_assets.tasks.base import Task
from act_assets.tasks.files import file_record, find_file
from act_assets.training.preflight import check_compute, known_parameters
from resources.devices import visible_devices
from resources.errors import ActError, ProfileError
from resources.llm.keys import GEMINI_KEYS, OPENAI_KEYS
from resources.llm.service import PRICES, price_table

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "dagster",
    "duckdb",
    "google-genai",
    "openai",
    "pyarrow",
    "scikit-learn",
    "sentence-transformers",
    "sqlglot",
)
KEYS = (*GEMINI_KEYS, *OPENAI_KEYS, "HF_TOKEN")


@dataclass(frozen=True, slots=True)
class Look:
    """One thing that was looked at. `ok` None: neither good nor bad, just so."""

    topic: str
    what: str
    ok: bool | None = None


def examine() -> list[Look]:
    """Everything a run depends on, each looked at on its own."""
    lines = [Look("python", platform.python_version(), True)]
    lines += [_look(package, version, package) for package in PACKAGES]
    lines += [Look(key, "set" if os.environ.get(key) else "not set (the embedded provider needs none)") for key in KEYS]
    gpus = [Look(f"GPU {number}", str(device), True) for number, device in enumerate(visible_devices())]
    lines += gpus or [Look("GPU", "none: the laptop profile trains on the CPU")]
    lines.append(_look("ACT_HOME", lambda: str(act_home())))
    if lines[-1].ok:
        lines += [_look("memo", _memo), Look("unfinished", _unfinished())]
    lines.append(_look("prices", _prices))
    for name in profile_names():
        lines.append(_look(f"profile {name}", lambda p: load_profile(p).policy.model, name))
        if lines[-1].ok:
            lines.append(_training(name))
    for task in all_tasks().values():
        lines.append(_look(f"data {task.name}", _data, task))
        for role in filter(task.asks, ROLES):
            lines.append(_look(f"prompt {role}/{task.name}", _prompt, role, task))
    return lines


def _look(topic: str, look: Callable[..., str], *given: Any) -> Look:
    try:
        return Look(topic, look(*given), True)
    except PackageNotFoundError:
        return Look(topic, "not installed: run `make setup`", False)
    except ActError as error:
        return Look(topic, str(error), False)
    except Exception as error:  # the reader of another package's task can raise anything
        return Look(topic, f"{type(error).__name__}: {error}", False)


def _memo() -> str:
    database = memo_folder() / "memo.duckdb"
    size = size_text(database.stat().st_size) if database.is_file() else "nothing yet"
    return f"{database}: {size} (act memo stats)"


def _unfinished() -> str:
    """Trainings that were cut short, and what they hold on disk."""
    folder = act_home() / "unfinished"
    states = list(folder.rglob("states/step-*"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not size:
        return "no training that was cut short"
    return (
        f"{folder}: {size_text(size)} of trainings that were cut short ({len(states)} states); run them again with the "
        "same settings to resume them, or delete this folder"
    )


def _prices() -> str:
    price_table()
    return os.environ.get(PRICES) or "the shipped table"


def _data(task: Task) -> str:
    folder, origin = data_folder(task.name)
    records = [file_record(find_file(task.name, folder, name))[0] for name in task.reader.files]
    further = len(task.reader.further_files(folder))
    read = task.reader.read(folder)
    blobs = ", ".join(f"{r.name} {r.git_blob[:10]}" for r in records) + (f" and {further} more" if further else "")
    sides = " + ".join(str(len(side)) for side in (read.train, read.validation, read.test) if side)
    return f"{origin}: {sides} conversations ({blobs})"


def _prompt(role: str, task: Task) -> str:
    return load_template(role, task.name, prompts_folder()).hash[:10]


def _training(name: str) -> Look:
    """Whether this machine can train with a profile; that it cannot is no fault of the machine."""
    topic = f"training {name}"
    try:
        profile = load_profile(name)
        check_compute(profile, parameters=known_parameters(profile))
    except ProfileError as error:
        return Look(topic, f"not on this machine: {' '.join(error.what.splitlines()[1:]).replace('  - ', '; ')[2:]}")
    except ActError as error:  # of ACT_HOME or the profile, whose own lines say it is a problem
        return Look(topic, f"not known: {error.what}")
    return Look(topic, "this machine can", True)
