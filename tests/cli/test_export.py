"""`act export`, as it is typed; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from act_assets.cli.app import app
from act_assets.release import publish
from resources.errors import ActError

pytestmark = pytest.mark.integration

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.mark.parametrize(("what", "keys"), [("messages", 1), ("preferences", 9)])
def test_rows_are_exported(checkpoint_run: Any, tmp_path: Path, what: str, keys: int) -> None:
    ended = CliRunner().invoke(app, ["export", what, "--profile", TINY, "--out", str(tmp_path / "x.jsonl")])
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert (ended.exit_code, ended.stdout) == (0, f"{len(lines)} lines in {tmp_path / 'x.jsonl'}\n")
    assert len(lines) >= 50
    assert all(len(json.loads(line)) == keys for line in lines)


@pytest.mark.parametrize(
    ("options", "said", "unsaid"),
    [
        ([], ["vllm serve"], ["no figures", "pushed"]),
        (["--method", "sft"], ["vllm serve", "no figures"], ["pushed"]),
        (["--adapter"], [], ["vllm serve", "no figures"]),
        (["--push", "user/name"], ["pushed to https://huggingface.co/user/name"], ["vllm serve"]),
    ],
    ids=str,
)
def test_a_model_is_exported_and_what_to_do_with_it_is_said(
    checkpoint_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    said: list[str],
    unsaid: list[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_1")
    monkeypatch.setattr(publish, "HfApi", create_autospec(HfApi))
    ended = CliRunner().invoke(app, ["export", "model", "--profile", TINY, "--out", str(tmp_path / "out"), *options])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert f" in {tmp_path / 'out'}\n" in ended.stdout
    assert (tmp_path / "out" / "README.md").is_file()
    assert [text for text in said if text not in ended.stdout] == []
    assert [text for text in unsaid if text in ended.stdout] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model", "--method", "dpo"], "unknown method 'dpo'"),
        (["model", "--push", "u/n"], "HF_TOKEN is not set"),
        (["messages", "--adapter"], "--adapter and --push are of a model"),
        (["preferences", "--push", "u/n"], "--adapter and --push are of a model"),
        (["tables"], "cannot export 'tables'"),
    ],
    ids=str,
)
def test_a_mistake_is_a_typed_error_and_leaves_nothing(
    checkpoint_run: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    ended = CliRunner().invoke(app, ["export", *arguments, "--out", str(tmp_path / "x"), "--profile", TINY])
    assert isinstance(ended.exception, ActError)
    assert said in ended.exception.what
    assert ended.exception.todo
    assert not list(tmp_path.iterdir())
