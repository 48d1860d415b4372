"""An environment without keys and proxies, the loopback server, and the memo of a folder."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.llm.memo.memo import Memo, close_memos, memo_at

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for the helpers beside the tests: scripted.py


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `loopback`. What the environment says of keys, servers and proxies does not count meanwhile."""
    for name in os.environ:
        if name.upper().startswith(("GEMINI_", "GOOGLE_", "OPENAI_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(HERE.parents[1]))
    return importlib.import_module("loopback")


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    yield memo_at(tmp_path / "memo")
    close_memos()
