"""Keys are in the environment and on the wire, and nowhere else: a search of everything that a run leaves behind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from act_assets.roles.build import usage_facts
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, Sampling
from resources.llm.memo.memo import close_memos
from resources.llm.rate_limit import Limits
from resources.llm.service import CallSettings, Endpoint, open_llm

REPO = Path(__file__).resolve().parents[3]
KEYS = ("AIzaFirstKeyOfThisTest0123456789abcdefgh", "second-gemini-key-of-this-test", "sk-openai-key-of-this-test")
TRACES = (*KEYS, "x-goog-api-key", "Authorization", "Bearer ")


@pytest.fixture
def keys(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GEMINI_API_KEYS", f"{KEYS[0]}, {KEYS[1]}")
    monkeypatch.setenv("OPENAI_API_KEY", KEYS[2])
    yield
    close_memos()


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


@pytest.mark.parametrize("protocol", ["gemini", "openai"])
def test_no_key_in_memo_logs_messages_and_facts(
    loopback: Any, keys: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"Incorrect API key provided: {KEYS[0]} {KEYS[1]} {KEYS[2]}"
    kinds = ("ok", "400", "safety", "truncated", "reset", "malformed", "html", "503", "401")

    def plan(number: int, request: Any) -> Any:
        return loopback.Behaviour(kinds[number % len(kinds)], message=echo)

    with loopback.Loopback(plan) as server:
        url = server.url if protocol == "gemini" else f"{server.url}/v1"
        settings = CallSettings(tmp_path / "memo").for_asset("contrastive_pairs", "pacific|50")
        llm = open_llm(Endpoint(protocol, "m", url, Limits(4)), settings, lambda: None)  # type: ignore[arg-type]
        requests = [
            LLMRequest("user", "m", (ChatMessage("user", f"question {i}"),), Sampling(), f"turn {i}") for i in range(12)
        ]
        results = llm.complete_all(requests)
        assert {call.request.key for call in server.calls} & set(KEYS), "the keys were on the wire"
    failures = [r for r in results if isinstance(r, LLMFailure)]
    assert failures and len(failures) < len(results), "some were answered, some failed"
    assert [f for f in failures if found_in(f.message)] == []
    assert any("[key]" in f.message for f in failures), "a message that echoed a key came through, without it"
    assert found_in(json.dumps(usage_facts(llm.usage))) == []
    assert found_in(json.dumps([asdict(f) for f in failures])) == []
    # httpx logs URLs and the libraries log requests at DEBUG level: the headers' names may be there, no key may.
    assert [k for k in KEYS if k in caplog.text] == []
    assert found_below(tmp_path) == {}
    close_memos()  # folded into the database and the archive
    assert (tmp_path / "memo" / "memo.duckdb").is_file()
    assert found_below(tmp_path) == {}


def test_no_key_in_what_a_run_leaves_behind(loopback: Any, keys: None, tmp_path: Path) -> None:
    """`act run` with a real client library, as far as the pairs: artifacts, Dagster's records, output."""
    with loopback.Loopback(loopback.at_rates({"401": 0.0, "safety": 0.05}, seed=1)) as server:
        profile = yaml.safe_load((REPO / "tests" / "tiny.yaml").read_text())
        profile["roles"]["generator"] = {"provider": "openai", "model": "m", "base_url": f"{server.url}/v1"}
        path = tmp_path / "served.yaml"
        path.write_text(yaml.safe_dump(profile))
        environment = {**os.environ, "ACT_HOME": str(tmp_path / "home"), "DAGSTER_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "act_assets.cli.app", "run", "--profile", str(path)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert len(server.calls) > 100 and server.calls[0].request.key == KEYS[2]
    assert ran.returncode == 1, "some pairs are blocked, so the run ends there"
    assert "questions have no answer" in ran.stderr
    assert found_in(ran.stdout + ran.stderr) == []
    assert any((tmp_path / "home" / "dagster").rglob("*.db")), "Dagster's records are there"
    assert found_below(tmp_path / "home") == {}
