"""Packages that stand in the documents, installed as a reader would install them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def files_of(page: Path) -> dict[str, str]:
    """A page's files by path: a path in backticks on a line of its own, then the fenced text."""
    return dict(re.findall(r"^`([\w-]+/[\w.]+)`\n\n```\w+\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))


def installed(page: Path, folder: Path) -> dict[str, str]:
    """An environment in which the page's package is installed, with an empty ACT_HOME."""
    files = files_of(page)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([sys.executable, *install, str(folder / next(iter(files))).rpartition("/")[0]], check=True)
    path = os.pathsep.join(p for p in (str(folder / "site"), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path, "ACT_HOME": str(folder / "home"), "COLUMNS": "100"}


def act(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`act` in a process of its own."""
    command = [sys.executable, "-m", "act_assets.cli.app", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
