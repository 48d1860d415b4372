"""What this machine has: versions, keys (never their values), GPU, data, and where state lives."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from act_assets.home import act_home, memo_folder, prompts_folder
from act_assets.profile import load_profile, profile_names
from act_assets.roles.prompt import ROLES, load_template
from act_assets.tasks import all_tasks, data_folder, get_task
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
class Line:
    """One thing that was looked at. `ok` None: neither good nor bad, just so."""

    topic: str
    what: str
    ok: bool | None = None


def examine() -> list[Line]:
    """Everything a run depends on, each looked at on its own."""
    lines = [Line("python", platform.python_version(), True)]
    for package in PACKAGES:
        try:
            lines.append(Line(package, version(package), True))
        except PackageNotFoundError:
            lines.append(Line(package, "not installed: run `make setup`", False))
    lines += [Line(key, "set" if os.environ.get(key) else "not set (the embedded provider needs none)") for key in KEYS]
    lines += _gpus()
    lines.append(_try("ACT_HOME", lambda: str(act_home())))
    if lines[-1].ok:
        lines.append(_try("memo", _memo))
        lines.append(Line("unfinished", _unfinished()))
    lines.append(_try("prices", _prices))
    for name in profile_names():
        lines.append(_try(f"profile {name}", lambda name=name: load_profile(name).policy.model))
        if lines[-1].ok:
            lines.append(_training(name))
    for task in all_tasks().values():
        lines.append(_try(f"data {task.name}", lambda task=task: _data(task.name)))
        for role in filter(task.asks, ROLES):
            lines.append(_try(f"prompt {role}/{task.name}", lambda r=role, t=task: _prompt(r, t.name)))
    return lines


def _memo() -> str:
    database = memo_folder() / "memo.duckdb"
    size = f"{database.stat().st_size / 2**20:.1f} MiB" if database.is_file() else "nothing yet"
    return f"{database}: {size} (act memo stats)"


def _unfinished() -> str:
    """Trainings that were cut short, and what they hold on disk."""
    folder = act_home() / "unfinished"
    states = list(folder.rglob("states/step-*"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not size:
        return "no training that was cut short"
    return (
        f"{folder}: {size / 1e9:.1f} GB of trainings that were cut short ({len(states)} states); run them again with "
        "the same settings and they go on, or delete this folder"
    )


def _prices() -> str:
    price_table()
    return os.environ.get(PRICES) or "the shipped table"


def _data(task: str) -> str:
    folder, origin = data_folder(task)
    known = get_task(task)
    records = [file_record(find_file(task, folder, name))[0] for name in known.reader.files]
    further = len(known.reader.further_files(folder))
    read = known.reader.read(folder)
    blobs = ", ".join(f"{r.name} {r.git_blob[:10]}" for r in records) + (f" and {further} more" if further else "")
    sides = " + ".join(str(len(side)) for side in (read.train, read.validation, read.test) if side)
    return f"{origin}: {sides} conversations ({blobs})"


def _prompt(role: str, task: str) -> str:
    return load_template(role, task, prompts_folder()).hash[:10]


def _gpus() -> list[Line]:
    devices = visible_devices()
    if not devices:
        return [Line("GPU", "none: the laptop profile trains on the CPU")]
    return [Line(f"GPU {number}", str(device), True) for number, device in enumerate(devices)]


def _training(name: str) -> Line:
    """Whether this machine can train with a profile; that it cannot is no fault of the machine."""
    topic = f"training {name}"
    try:
        profile = load_profile(name)
        check_compute(profile, parameters=known_parameters(profile))
    except ProfileError as error:
        return Line(topic, f"not on this machine: {' '.join(error.what.splitlines()[1:]).replace('  - ', '; ')[2:]}")
    except ActError as error:  # of ACT_HOME or the profile, whose own lines say it is a problem
        return Line(topic, f"not known: {error.what}")
    return Line(topic, "this machine can", True)


def _try(topic: str, look: object) -> Line:
    try:
        return Line(topic, look(), True)  # type: ignore[operator]
    except ActError as error:
        return Line(topic, str(error), False)
    except Exception as error:  # the reader of another package's task can raise anything
        return Line(topic, f"{type(error).__name__}: {error}", False)
