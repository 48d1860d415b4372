"""Keys are in the environment and on the wire, and nowhere else: a search of everything that a run leaves behind,
as files and unpacked, and of every error with its traceback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from scripted import asking

from act_assets.roles.build import usage_facts
from resources.errors import ActError
from resources.llm import service
from resources.llm.base import LLMFailure
from resources.llm.client import LLM
from resources.llm.memo.memo import close_memos
from resources.llm.rate_limit import Limits
from resources.llm.retry import RetrySettings
from resources.llm.service import CallSettings, Endpoint, open_llm

pytestmark = pytest.mark.integration

REPO = Path(__file__).resolve().parents[3]
KEYS = ("AIzaFirstKeyOfThisTest0123456789abcdefgh", "second-key-of-this-test-0123456789")
TRACES = (*KEYS, "x-goog-api-key", "Authorization", "Bearer ")
ECHO = f"the key {KEYS[0]} or {KEYS[1]} is wrong"


@pytest.fixture(params=["gemini", "openai"])
def protocol(request: pytest.FixtureRequest, loopback: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A provider with two keys, used for the first time."""
    monkeypatch.setattr(service, "_limiters", {})
    monkeypatch.setenv("GEMINI_API_KEYS", " ".join(KEYS))
    monkeypatch.setenv("OPENAI_API_KEYS", ",".join(KEYS))
    yield request.param
    close_memos()


def opened(protocol: str, server: Any, folder: Path) -> LLM:
    url = server.url if protocol == "gemini" else f"{server.url}/v1"
    endpoint = Endpoint(protocol, "m", url, Limits(4), RetrySettings(attempts=1, patience_s=0.0))
    settings = CallSettings(folder).for_asset("contrastive_pairs", "pacific|50")
    return open_llm(endpoint, settings, lambda: None)  # type: ignore[arg-type]


def found_in(text: str) -> list[str]:
    return [t for t in TRACES if t.lower() in text.lower()]


def found_below(folder: Path) -> dict[str, list[str]]:
    """Traces of keys in every file, compressed ones as DuckDB and Parquet write them included where they are plain."""
    files = {str(p): p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file()}
    assert files, "nothing was searched"
    return {name: traces for name, text in files.items() if (traces := found_in(text))}


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "leak.bin").write_bytes(b"\x00\xff" + KEYS[1].encode() + b"\x00 authorization: x")
    assert list(found_below(tmp_path).values()) == [[KEYS[1], "Authorization"]]


def test_no_key_in_memo_logs_messages_and_facts(
    loopback: Any, protocol: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kinds = ("ok", "ok", "400", "429", "503", "safety", "truncated", "malformed", "html", "reset", "invalid-key", "401")
    seen: set[str] = set()

    def plan(number: int, request: Any) -> Any:
        seen.add(request.key)
        kind = "ok" if number < 8 else kinds[number % len(kinds)]
        return loopback.Behaviour(kind, message=ECHO, retry_after_s=0.01)

    with loopback.Loopback(plan) as server:
        llm = opened(protocol, server, tmp_path)
        results = llm.complete_all(asking(*(f"question {i}" for i in range(40))))
    assert seen == set(KEYS), "the keys were on the wire"
    failures = [r for r in results if isinstance(r, LLMFailure)]
    assert 8 <= 40 - len(failures) < 40 and any("[key]" in f.message for f in failures)
    assert found_in(json.dumps([usage_facts(llm.usage), *(asdict(f) for f in failures)])) == []
    # httpx logs URLs and the libraries log requests at DEBUG level: the headers' names may be there, no key may.
    assert [k for k in KEYS if k in caplog.text] == []
    assert found_below(tmp_path) == {}
    close_memos()  # folded into the database and the archive
    assert found_below(tmp_path) == {}
    rows = []
    with duckdb.connect(str(tmp_path / "memo.duckdb"), read_only=True) as connection:
        for table in ("answers", "history", "uses"):
            rows += connection.execute(f"SELECT * FROM {table}").fetchall()
    for segment in (tmp_path / "archive").glob("*.parquet"):
        rows += pq.read_table(segment).to_pylist()
    assert len(rows) >= 2 * (40 - len(failures)) + 2 and found_in(repr(rows)) == []


def test_no_key_is_in_an_error(loopback: Any, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the providers' own errors, test_providers.py says the same."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with loopback.Loopback() as server, pytest.raises(ActError) as caught:
        opened(protocol, server, tmp_path).complete_all(asking("a"))
    assert found_in("".join(traceback.format_exception(caught.value))) == []


def test_no_key_in_what_a_run_leaves_behind(loopback: Any, middling_data: Path, tmp_path: Path) -> None:
    """`act run` with a real client library, as far as the pairs: artifacts, Dagster's records, output."""
    with loopback.Loopback(loopback.at_rates({"safety": 0.05}, seed=1)) as server:
        profile = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
        profile["roles"]["generator"] = {"provider": "openai", "model": "m", "base_url": f"{server.url}/v1"}
        path = tmp_path / "served.yaml"
        path.write_text(yaml.safe_dump(profile))
        environment = {**os.environ, "ACT_HOME": str(tmp_path / "home"), "DAGSTER_DISABLE_TELEMETRY": "1"}
        environment |= {"OPENAI_API_KEY": KEYS[1], "ACT_DATA_DIR": str(middling_data)}
        command = [sys.executable, "-m", "act_assets.cli.app", "run", "--profile", str(path)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert len(server.calls) > 100 and server.calls[0].request.key == KEYS[1]
    assert ran.returncode == 1, "some pairs are blocked, so the run ends there"
    assert "questions have no answer" in ran.stderr
    assert found_in(ran.stdout + ran.stderr) == []
    assert any((tmp_path / "home" / "dagster").rglob("*.db")), "Dagster's records are there"
    assert found_below(tmp_path / "home") == {}
