"""The loopback server of tests/loopback.py, and an environment without keys and proxies."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `loopback`. What the environment says of keys, servers and proxies does not count meanwhile."""
    for name in os.environ:
        if name.upper().startswith(("GEMINI_", "GOOGLE_", "OPENAI_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(TESTS))
    return importlib.import_module("loopback")
