"""Exported checkpoints: whole or not there, loaded by plain transformers, pushed only with a token."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import TurnState
from act_assets.profile import Profile
from act_assets.release import publish
from act_assets.release.publish import checkpoint_of, export_model, generation_settings
from act_assets.tasks.base import Task
from act_assets.training.chat_template import ChatFormat
from resources.artifacts import Key
from resources.errors import ActError


@pytest.fixture
def home(
    checkpoints: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("ACT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("ACT_DATA_DIR", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return checkpoints.filled(lambda: tmp_path_factory.mktemp("checkpoints"), tiny_tokenizer)


@pytest.fixture
def run(checkpoints: Any, home: Path) -> Any:
    return checkpoints.settings(home)


def refused(call: Callable[[], Any], *said: str) -> None:
    with pytest.raises(ActError) as caught:
        call()
    for text in said:
        assert text in str(caught.value)


def test_plain_transformers_writes_what_our_policy_writes(
    run: Any, pacific: Task, few_turns: list[TurnState], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from act_assets.training.generation import TransformersEngine
    from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model
    from act_assets.trajectory import Dialogue

    folder = export_model(run, "act", tmp_path / "out").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ours, chat = load_model(checkpoint_of(run, "act").file("model"))
    limits = run.profile.policy
    prompts = PromptEncoder(pacific, chat, limits.max_prompt_tokens)
    policy = ModelPolicy(
        TransformersEngine(ours, chat.end_id, chat.pad_id, batch_size=8),
        chat,
        prompts,
        SamplingSettings(limits.max_length, limits.max_new_tokens, 0.0),
    )
    turns = few_turns[:8]
    said = policy.respond([Dialogue(t, (), 0) for t in turns])
    assert len({u.token_ids for u in said if u}) > 1, "texts that differ can be told apart"
    for turn, expected in zip(turns, said, strict=True):
        ids = prompts.ids(turn)
        output = model.generate(**tokenizer.pad({"input_ids": [list(ids)]}, return_tensors="pt"))
        assert expected is not None
        assert tuple(output[0, len(ids) :].tolist()) == expected.token_ids
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == "<|system|>a<|end|><|user|>b<|end|><|assistant|>"


def test_an_export_is_the_artifacts_own_files_with_a_card_and_how_to_decode(run: Any, tmp_path: Path) -> None:
    exported = export_model(run, "act", tmp_path / "new" / "out")
    model = checkpoint_of(run, "act").file("model")
    kept = {p.name for p in model.iterdir()} - {"generation_config.json"}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= kept
    assert any(name.endswith(".safetensors") for name in kept)
    for name in kept:
        assert (exported.folder / name).read_bytes() == (model / name).read_bytes()
    assert {p.name for p in exported.folder.iterdir()} == kept | {"generation_config.json", "README.md"}
    assert [p.name for p in exported.folder.parent.iterdir()] == ["out"], "nothing is left beside it"
    assert exported.evaluated
    assert exported.files == len(kept) + 2
    assert exported.bytes == sum(p.stat().st_size for p in exported.folder.iterdir())


def test_what_vllm_looks_for_is_there(run: Any, tmp_path: Path) -> None:
    folder = export_model(run, "sft", tmp_path / "out").folder
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] and config["max_position_embeddings"]
    assert (folder / "model.safetensors").is_file()
    assert "assistant" in (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_generation_settings_are_the_evaluations_and_transformers_accepts_them(
    temperature: float, tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    settings = generation_settings(4, 0, 48, temperature)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    read = GenerationConfig.from_pretrained(tmp_path)
    read.validate(strict=True)
    assert (read.eos_token_id, read.pad_token_id, read.max_new_tokens) == (4, 0, 48)
    assert read.do_sample == (temperature > 0)
    assert settings.get("temperature") == (temperature or None)
    assert settings.get("top_k") == (0 if temperature else None), "pi_theta itself, not its 50 likeliest tokens"


def test_it_stops_at_the_end_of_our_turn_whatever_the_tokenizer_calls_its_end(
    tiny_tokenizer: Any, tiny_profile: Profile, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|system|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.save_pretrained(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert ChatFormat(tokenizer).end_id == end != tokenizer.eos_token_id
    assert publish._generation(tmp_path, tiny_profile)["eos_token_id"] == end


def test_an_adapter_comes_alone_and_fits_the_exported_sft_checkpoint(run: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = export_model(run, "act", tmp_path / "adapter", adapter=True).folder
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    assert "model.safetensors" not in names
    for path in folder.iterdir():
        assert b"/home/someone" not in path.read_bytes(), path.name
    assert "library_name: peft" in (folder / "README.md").read_text(), "our card, not the library's"
    base = AutoModelForCausalLM.from_pretrained(export_model(run, "sft", tmp_path / "sft").folder)
    assert any("lora" in name for name, _ in PeftModel.from_pretrained(base, folder).named_parameters())


def test_a_checkpoint_without_an_adapter_has_none_to_export(run: Any, tmp_path: Path) -> None:
    refused(
        lambda: export_model(run, "sft", tmp_path / "out", adapter=True),
        "sft_checkpoint pacific|50 has no adapter",
        "export it without --adapter",
    )
    assert not list(tmp_path.iterdir())


def test_weights_in_several_files_stay_together(checkpoints: Any, run: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint_of(run, "act").file("model"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    (tmp_path / "sharded" / "pytorch_model.bin").write_bytes(b"a pickle")
    (tmp_path / "copy").mkdir()
    publish._copy(tmp_path / "sharded", tmp_path / "copy")
    shards = list((tmp_path / "copy").glob("*.safetensors"))
    assert len(shards) > 1
    assert not (tmp_path / "copy" / "pytorch_model.bin").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["a folder with files", "a file"])
def test_what_is_there_is_never_overwritten(run: Any, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    mine = out / "mine.txt" if what != "a file" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    refused(lambda: export_model(run, "act", out), "is not an empty folder", str(out), "choose a new folder")
    assert mine.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_filled(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_model(run, "act", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_full_disk_leaves_nothing_half_written(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def full(source: Path, target: Path) -> None:
        copied.append(target.name)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(b"")

    monkeypatch.setattr(shutil, "copyfile", full)
    refused(
        lambda: export_model(run, "act", tmp_path / "out"), "cannot be exported: No space left", str(tmp_path / "out")
    )
    assert len(copied) == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_a_clear_error(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: export_model(run, "act", tmp_path / "file" / "out"), "choose another --out")


def test_a_checkpoint_that_is_not_there_names_what_makes_it(checkpoints: Any, home: Path, tmp_path: Path) -> None:
    refused(
        lambda: export_model(checkpoints.settings(home, 100), "act", tmp_path / "out"),
        "act_checkpoint pacific|100 has not been materialized",
        "act run --task pacific --train-size 100",
    )


def test_a_checkpoint_of_other_settings_is_not_passed_off_as_one_of_these(run: Any, tmp_path: Path) -> None:
    act = run.profile.act.model_copy(update={"epochs": 2})
    changed = replace(run, profile=run.profile.model_copy(update={"act": act}))
    refused(
        lambda: export_model(changed, "act", tmp_path / "out"),
        "act_checkpoint pacific|50 is not up to date",
        "act run --task pacific --train-size 50 --method act",
    )
    export_model(changed, "sft", tmp_path / "sft")


class FakeHub:
    """Keeps what it is asked; `fails` is raised by the upload."""

    def __init__(self, token: str, fails: Exception | None = None) -> None:
        self.token, self.fails = token, fails
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.seen: set[str] = set()

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        self.seen = {p.name for p in options["folder_path"].iterdir()}
        if self.fails:
            raise self.fails

    def model_info(self, repo_id: str, *, revision: str | None) -> Any:
        raise AssertionError("a policy from scratch has no base model on the hub")


def test_a_push_makes_a_private_repository_and_sends_the_whole_folder(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_1")
    hubs: list[FakeHub] = []

    def hub(token: str) -> FakeHub:
        hubs.append(FakeHub(token))
        return hubs[-1]

    exported = export_model(run, "act", tmp_path / "out", push="user/name", hub=hub)
    (api,) = hubs
    assert api.token == "hf_secret_token_1"
    assert exported.url == "https://huggingface.co/user/name"
    assert [name for name, _ in api.calls] == ["create_repo", "upload_folder"]
    created, uploaded = (options for _, options in api.calls)
    assert created == {"repo_id": "user/name", "private": True, "exist_ok": True, "repo_type": "model"}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("user/name", tmp_path / "out")
    assert {"README.md", "config.json", "generation_config.json"} <= api.seen
    assert 'from_pretrained("user/name")' in (tmp_path / "out" / "README.md").read_text()
    for path in (tmp_path / "out").iterdir():
        assert b"hf_secret" not in path.read_bytes()


@pytest.mark.parametrize("token", [None, "", "  "])
def test_without_a_token_nothing_is_written(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    refused(
        lambda: export_model(run, "act", tmp_path / "out", push="user/name"),
        "HF_TOKEN is not set in the environment: nothing was written",
        "huggingface.co/settings/tokens",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["name", "user/", "user/a/b", "../x", "user/a b", "https://hf.co/user/name", "u/a--b"])
def test_a_name_that_no_repository_can_have(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_1")
    refused(lambda: export_model(run, "act", tmp_path / "out", push=name), "not a repository of the hub", "user/name")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("upload: 500"), ValueError("bad id")])
def test_a_push_that_fails_says_why_and_leaves_the_folder_whole(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_1")
    failing = type(error)(f"{error} with hf_secret_token_1")
    with pytest.raises(ActError) as caught:
        export_model(run, "act", tmp_path / "out", push="user/name", hub=lambda token: FakeHub(token, failing))
    assert str(error) in caught.value.what
    assert "hf_secret" not in str(caught.value)
    assert f"hf upload user/name {tmp_path / 'out'}" in caught.value.todo
    assert (tmp_path / "out" / "README.md").is_file()


def test_the_real_client_takes_these_calls() -> None:
    import inspect

    api = publish.hub_api("hf_secret_token_1")
    for name, options in (
        ("create_repo", {"private", "exist_ok", "repo_type"}),
        ("upload_folder", {"repo_id", "folder_path", "repo_type", "commit_message"}),
        ("model_info", {"revision"}),
    ):
        assert options <= set(inspect.signature(getattr(api, name)).parameters)


def test_the_real_client_without_a_network(tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    (tmp_path / "README.md").write_text("a card")
    api: Any = HfApi(endpoint="http://127.0.0.1:1", token="hf_secret_token_1")
    refused(
        lambda: publish.push_folder(tmp_path, "user/name", api, "message"),
        "the model was not pushed",
        "check the network",
    )


def test_an_exported_checkpoint_is_left_as_it_was(run: Any, tmp_path: Path) -> None:
    artifact = run.store.require(Key("act_checkpoint", "pacific", 50))
    before = {p: p.stat().st_mtime_ns for p in artifact.path.rglob("*")}
    export_model(run, "act", tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in artifact.path.rglob("*")} == before
