"""Where things live: ACT_HOME (state), the data folder, prompts and profiles."""

from __future__ import annotations

import os
from pathlib import Path

from resources.errors import ActError

PACKAGE = Path(__file__).resolve().parent
PROJECT = PACKAGE.parent


def act_home() -> Path:
    """ACT_HOME, default `.act/` in the project; created where missing. Raises ActError where it cannot be written."""
    home = Path(os.environ.get("ACT_HOME") or PROJECT / ".act").expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ActError(
            f"ACT_HOME cannot be written: {error}",
            where=str(home),
            todo="set ACT_HOME to a folder that you may write to",
        ) from error
    return home


def prompts_folder() -> Path:
    """The editable prompts; ACT_PROMPTS_DIR replaces the package's own."""
    chosen = os.environ.get("ACT_PROMPTS_DIR")
    return Path(chosen).expanduser().resolve() if chosen else PACKAGE / "prompts"


def memo_folder() -> Path:
    """Where the paid LLM answers are."""
    return act_home() / "memo"


def dagster_home() -> Path:
    """DAGSTER_HOME under ACT_HOME, with the project's dagster.yaml in it."""
    home = act_home() / "dagster"
    home.mkdir(exist_ok=True)
    settings, target = PROJECT / "dagster.yaml", home / "dagster.yaml"
    if settings.is_file() and (not target.is_file() or target.read_bytes() != settings.read_bytes()):
        target.write_bytes(settings.read_bytes())
    return home
