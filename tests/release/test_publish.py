"""Exported checkpoints: whole or not there, loaded by plain transformers, pushed only with a token."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call, create_autospec

import pytest
from huggingface_hub import HfApi

from act_assets.conversation import TurnState
from act_assets.profile import Profile
from act_assets.release import publish
from act_assets.release.publish import checkpoint_of, export_model, generation_config
from act_assets.tasks.base import Task
from act_assets.training.chat_template import ChatFormat
from resources.artifacts import Key
from resources.errors import ActError

pytestmark = pytest.mark.integration


def test_plain_transformers_writes_what_our_policy_writes(
    checkpoint_run: Any, pacific: Task, few_turns: list[TurnState], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from act_assets.training.generation import TransformersEngine
    from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model
    from act_assets.trajectory import Dialogue

    export_model(checkpoint_run, "act", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours, chat = load_model(checkpoint_of(checkpoint_run, "act").file("model"))
    limits = checkpoint_run.profile.policy
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
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|system|>a<|end|><|user|>b<|end|><|assistant|>"


@pytest.mark.parametrize("there", [False, True], ids=["new", "an empty folder"])
def test_an_export_is_the_artifacts_own_files_with_a_card_and_how_to_decode(
    checkpoint_run: Any, tmp_path: Path, there: bool
) -> None:
    artifact = checkpoint_run.store.require(Key("act_checkpoint", "pacific", 50))
    before = {p: p.stat().st_mtime_ns for p in artifact.path.rglob("*")}
    out = tmp_path / "new" / "out"
    if there:
        out.mkdir(parents=True)
    card = export_model(checkpoint_run, "act", out)
    kept = {p.name for p in artifact.file("model").iterdir()} - {"generation_config.json"}
    looked_for = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert looked_for <= kept, "by vLLM"
    for name in kept:
        assert (out / name).read_bytes() == (artifact.file("model") / name).read_bytes()
    assert {p.name for p in out.iterdir()} == kept | {"generation_config.json", "README.md"}
    assert (out / "README.md").read_text() == str(card)
    assert [p.name for p in out.parent.iterdir()] == ["out"], "nothing is left beside it"
    assert {p: p.stat().st_mtime_ns for p in artifact.path.rglob("*")} == before


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_decoding_is_the_evaluations_and_stops_where_a_turn_ends(
    temperature: float, tiny_tokenizer: Any, tiny_profile: Profile, tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|system|>"  # the base model's end need not be the chat's
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.save_pretrained(tmp_path)
    evaluation = tiny_profile.evaluation.model_copy(update={"temperature": temperature})
    settings = generation_config(tmp_path, tiny_profile.model_copy(update={"evaluation": evaluation}))
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    read = GenerationConfig.from_pretrained(tmp_path)
    read.validate(strict=True)
    assert read.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>") != tokenizer.eos_token_id
    assert (read.pad_token_id, read.max_new_tokens) == (
        ChatFormat(tokenizer).pad_id,
        tiny_profile.policy.max_new_tokens,
    )
    assert read.do_sample == (temperature > 0)
    assert settings.get("temperature") == (temperature or None)
    assert settings.get("top_k") == (0 if temperature else None), "pi_theta itself, not its 50 likeliest tokens"


def test_an_adapter_comes_alone_and_fits_the_exported_sft_checkpoint(checkpoint_run: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, sft = tmp_path / "adapter", tmp_path / "sft"
    card = export_model(checkpoint_run, "act", folder, adapter=True)
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    assert "model.safetensors" not in names
    for path in folder.iterdir():
        assert b"/home/someone" not in path.read_bytes(), path.name
    assert (folder / "README.md").read_text() == str(card), "our card, not the library's"
    export_model(checkpoint_run, "sft", sft)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), folder)
    assert any("lora" in name for name, _ in loaded.named_parameters())


def test_weights_in_several_files_stay_together_without_a_pickle(checkpoint_run: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint_of(checkpoint_run, "act").file("model"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    (tmp_path / "sharded" / "pytorch_model.bin").write_bytes(b"a pickle")
    (tmp_path / "copy").mkdir()
    publish._copy(tmp_path / "sharded", tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("*.safetensors"))) > 1
    assert not (tmp_path / "copy" / "pytorch_model.bin").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mine", ["out/mine.txt", "out"], ids=["a folder with files", "a file"])
def test_what_is_there_is_never_overwritten(checkpoint_run: Any, tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(ActError, match="not an empty folder") as caught:
        export_model(checkpoint_run, "act", tmp_path / "out")
    assert caught.value.where == str(tmp_path / "out")
    assert (tmp_path / mine).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_nothing_half_written(
    checkpoint_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Mock(side_effect=[None, None, OSError(errno.ENOSPC, "No space left on device")])
    monkeypatch.setattr(shutil, "copyfile", copies)
    with pytest.raises(ActError, match="No space left") as caught:
        export_model(checkpoint_run, "act", tmp_path / "out")
    assert caught.value.where == str(tmp_path / "out")
    assert copies.call_count == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "sft", "adapter": True}, "has no adapter"),
        ({"folder": "file/out"}, "cannot be exported"),
        ({"train_size": 100}, "act_checkpoint pacific|100 has not been materialized"),
        ({"epochs": 2}, "act_checkpoint pacific|50 is not up to date"),
        ({"push": "user/name"}, "HF_TOKEN is not set"),
        ({"push": "user/name", "token": "  "}, "HF_TOKEN is not set"),
        *(
            ({"push": name, "token": "hf_secret_token_1"}, "not a repository of the hub")
            for name in ("name", "user/", "user/a/b", "../x", "user/a b", "https://hf.co/user/name", "u/a--b")
        ),
    ],
    ids=str,
)
def test_what_cannot_be_exported_leaves_nothing(
    checkpoint_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    (tmp_path / "file").write_text("")
    if "token" in given:
        monkeypatch.setenv("HF_TOKEN", given["token"])
    act = checkpoint_run.profile.act.model_copy(update={"epochs": given.get("epochs", 1)})
    profile = checkpoint_run.profile.model_copy(update={"act": act})
    run = replace(checkpoint_run, train_size=given.get("train_size", 50), profile=profile)
    method, folder = given.get("method", "act"), tmp_path / given.get("folder", "out")
    with pytest.raises(ActError) as caught:
        export_model(run, method, folder, adapter="adapter" in given, push=given.get("push"))
    assert said in caught.value.what
    assert caught.value.todo
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for the hub's client: takes the calls that the real one takes, and keeps them."""
    client = create_autospec(HfApi)
    monkeypatch.setattr(publish, "HfApi", client)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_1")
    return client


def test_a_push_makes_a_private_repository_and_sends_the_whole_folder(
    checkpoint_run: Any, tmp_path: Path, hub: Any
) -> None:
    out = tmp_path / "out"
    hub().upload_folder.side_effect = lambda **options: (options["folder_path"] / "README.md").read_text()
    export_model(checkpoint_run, "act", out, push="user/name")
    hub.assert_called_with(token="hf_secret_token_1")
    assert hub().method_calls == [
        call.create_repo("user/name", private=True, exist_ok=True, repo_type="model"),
        call.upload_folder(
            repo_id="user/name", folder_path=out, repo_type="model", commit_message="ACT for PACIFIC, seed 0"
        ),
    ]
    assert 'from_pretrained("user/name")' in (out / "README.md").read_text()
    for path in out.iterdir():
        assert b"hf_secret" not in path.read_bytes()


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, None], ids=["network", "server", "the real client"])
def test_a_push_that_fails_is_a_typed_error_without_the_token_and_leaves_the_folder_whole(
    checkpoint_run: Any, tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    if error is None:
        monkeypatch.setattr(publish, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:1"))
    else:
        hub().upload_folder.side_effect = error("refused, with hf_secret_token_1")
    with pytest.raises(ActError, match="the model was not pushed") as caught:
        export_model(checkpoint_run, "act", tmp_path / "out", push="user/name")
    assert "hf_secret" not in str(caught.value)
    assert caught.value.__suppress_context__, "the library's own traceback holds the request"
    assert f"hf upload user/name {tmp_path / 'out'}" in caught.value.todo
    assert (tmp_path / "out" / "README.md").is_file()
