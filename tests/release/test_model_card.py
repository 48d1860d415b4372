"""The model card: what the hub and people read, and nothing of the machine it was written on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
from huggingface_hub import HfApi, ModelCard

from act_assets.profile import Lora, Profile
from act_assets.release import model_card as module
from act_assets.release.model_card import BaseModel, TrainingData, hub_licence, model_card, without_paths
from act_assets.tasks import get_task
from act_assets.tasks.catalog import Published, load_catalog
from resources.artifacts import Artifact, Key

pytestmark = pytest.mark.integration


@pytest.fixture
def card(checkpoint_run: Any) -> Callable[..., ModelCard]:
    """The card of a made-up checkpoint; `profile` and `evaluation` are changed settings."""

    def made(method: str = "act", *, profile: Any = None, evaluation: Any = None, **options: Any) -> ModelCard:
        artifact = checkpoint_run.store.require(Key(f"{method}_checkpoint", "pacific", 50))
        changed = checkpoint_run.profile.model_copy(update=profile or {})
        if evaluation:
            changed = changed.model_copy(update={"evaluation": changed.evaluation.model_copy(update=evaluation)})
        return model_card(replace(checkpoint_run, profile=changed), artifact, method, **options)

    return made


def section(card: ModelCard, name: str) -> str:
    return card.text.split(f"\n## {name}\n\n")[1].split("\n## ")[0]


def rows(card: ModelCard, name: str) -> dict[str, str]:
    """A section's table: the cells after the first, by the first."""
    cells = [line[2:-2].split(" | ") for line in section(card, name).splitlines() if line.startswith("| ")]
    return {first: " | ".join(others) for first, *others in cells}


def test_what_the_hub_reads(card: Any, tmp_path: Path) -> None:
    card().save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["clarifying-questions", "conversational", "act", "pacific"],
    }
    (result,) = index["results"]
    assert index["name"] == "ACT for PACIFIC"
    assert result["dataset"] == {"name": "PACIFIC", "type": "pacific", "split": "validation"}
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("accuracy", "accuracy", 0.5),
        ("f1", "macro F1", 0.4629),
        ("trajectory_official", "trajectory official", 0.125),
    ]


@pytest.mark.parametrize(("adapter", "relation"), [(False, "finetune"), (True, "adapter")])
def test_a_base_model_of_the_hub_is_linked_with_its_commit(
    card: Any, monkeypatch: pytest.MonkeyPatch, adapter: bool, relation: str
) -> None:
    monkeypatch.setattr(module, "_base", lambda *_: BaseModel("org/base", "org/base", "c" * 40, "mit"))
    made = card(adapter=adapter)
    assert (made.data.license, made.data.base_model, made.data["base_model_relation"]) == ("mit", "org/base", relation)
    assert f"[org/base](https://huggingface.co/org/base), commit `{'c' * 40}`\n" in made.text


def test_where_it_comes_from_is_said_in_full(card: Any, checkpoint_run: Any) -> None:
    artifact = checkpoint_run.store.require(Key("act_checkpoint", "pacific", 50))
    said = rows(card(), "Identity")
    assert said["artifact identity"] == f"`{artifact.identity_hash}`"
    assert said["content"] == f"`{artifact.content_hash}`"
    assert (said["made"], said["seed"]) == (artifact.created_at, "0")
    assert said["profile"] == f"tiny, settings `{checkpoint_run.profile.digest()}`"
    sft = checkpoint_run.store.require(Key("sft_checkpoint", "pacific", 50))
    assert said["made from sft_checkpoint"] == f"`{sft.content_hash[:16]}`"
    assert said["made by"] == "`act run --task pacific --train-size 50 --method act --profile tiny.yaml --seed 0`"
    assert "--profile laptop --seed" in rows(card(profile={"name": "laptop"}), "Identity")["made by"]
    assert rows(card(profile={"name": "a|b\nc"}), "Identity")["profile"].startswith("a\\|b c,"), "one cell"


def test_settings_and_facts_of_the_training(card: Any, checkpoint_run: Any) -> None:
    said = rows(card(), "Training")
    assert (said["ACT beta"], said["ACT learning rate"], said["SFT epochs"]) == ("0.1", "0.001", "1")
    assert (said["ACT pairs"], said["ACT losers replaced by a sample"]) == ("355", "352")
    assert said["ACT reward margin of the kept epoch"] == "-0.0846"
    assert said["ACT tolerance epsilon"].endswith("(DROP F1)")
    assert (said["user simulated by"], said["libraries"]) == ("embedded (embedded-rules-1)", "torch 2")
    assert not {"LoRA", "SFT pairs"} & set(said)
    lora = checkpoint_run.profile.policy.model_copy(update={"lora": Lora(r=4, alpha=8)})
    assert rows(card(profile={"policy": lora}), "Training")["LoRA"] == "r 4, alpha 8"
    assert not [name for name in rows(card("sft"), "Training") if name.startswith("ACT")]


def test_figures_stand_with_their_interval_and_number_of_examples(card: Any) -> None:
    made = card()
    said = rows(made, "Metrics")
    assert (said["accuracy"], said["macro F1"]) == ("0.500 | 10", "0.463 [0.453, 0.474] | 10")
    assert said["post-clarification official"] == "– | 0"
    assert "\n- 10 turns of 3 conversations\n" in section(made, "Metrics")
    assert "the validation side of PACIFIC, with a simulated" in section(made, "Limits")


@pytest.mark.parametrize(("method", "evaluation"), [("sft", {}), ("act", {"bootstrap_samples": 7})])
def test_without_an_evaluation_that_is_up_to_date_no_figure_is_named(
    card: Any, method: str, evaluation: dict[str, Any]
) -> None:
    made = card(method, evaluation=evaluation)
    assert made.data.eval_results is None
    assert rows(made, "Metrics") == {}
    assert "no evaluation that is up to date" in section(made, "Metrics")
    assert "evaluated on nothing" in section(made, "Limits")
    assert "figures above" not in section(made, "Use")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_python_of_the_card_is_python_and_vllm_decodes_as_in_the_evaluation(
    card: Any, checkpoint_run: Any, temperature: float
) -> None:
    use = section(card(evaluation={"temperature": temperature}, push="user/name"), "Use")
    code = use.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'AutoModelForCausalLM.from_pretrained("user/name")' in code
    assert json.dumps(checkpoint_run.task.reader.system_message(()), ensure_ascii=False) in code
    assert "vllm serve user/name" in use
    assert ("--override-generation-config '{\"temperature\": 0.0}'" in use) == (temperature == 0)


def test_an_adapter_says_that_its_base_is_the_sft_checkpoint(card: Any) -> None:
    made = card(adapter=True, push="user/name")
    assert made.data.library_name == "peft"
    assert "its base is the SFT checkpoint of the same run" in made.text
    assert 'AutoModelForCausalLM.from_pretrained("BASE"), "user/name")' in section(made, "Use")


def test_no_folder_of_this_machine_is_in_the_card(card: Any, checkpoint_run: Any) -> None:
    text = str(card())
    run = checkpoint_run
    folders = (run.store.root, run.data_dir, run.prompts_dir, Path.home(), "/home", "/srv/models")
    assert [folder for folder in folders if f"{folder}/" in text] == []
    assert "openai (user)" in text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("openai (/srv/models/user)", "openai (user)"),
        ("~/models/x and /y", "x and y"),
        ("org/name at https://host:8000/v1/x, 3 / 4", "org/name at https://host:8000/v1/x, 3 / 4"),
        ("a/b/c ./d ../e/f", "a/b/c ./d ../e/f"),
    ],
)
def test_paths_are_cut_and_nothing_else(text: str, plain: str) -> None:
    assert without_paths(text) == plain


@pytest.mark.parametrize(
    ("base", "data", "license", "name"),
    [
        ("Apache-2.0", "MIT", "apache-2.0", None),
        ("apache-2.0", "MIT", "apache-2.0", None),
        ("llama3.1", "MIT", "llama3.1", None),
        ("Apache-2.0", "CC BY-SA 4.0", "other", "apache-2.0-and-cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "CC BY-SA 4.0", "cc-by-sa-4.0", None),
        (None, "MIT", "other", "unknown-and-mit"),
        ("other (Some Licence)", None, "other", "other-some-licence--and-unknown"),
    ],
)
def test_the_licence_follows_base_model_and_data(
    base: str | None, data: str | None, license: str, name: str | None
) -> None:
    assert hub_licence(base, data) == (license, name)


@pytest.mark.parametrize("licence", ["MIT", "CC BY-SA 4.0", None])
def test_a_reader_is_told_of_both_licences(card: Any, monkeypatch: pytest.MonkeyPatch, licence: str | None) -> None:
    monkeypatch.setattr(module, "_data", lambda *_: TrainingData("Other", "somewhere", licence=licence))
    said = section(card(), "Licence")
    assert "Apache-2.0\n" in said
    assert f"- training data (Other): {licence or 'not known'}" in said
    assert ("Read the licence of the data" in said) == (licence != "MIT")


def test_of_the_task_of_another_package_nothing_is_claimed(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_own", lambda task: False)
    made = card()
    assert (made.data.language, made.data["license_name"]) == (None, "apache-2.0-and-unknown")
    assert "files of the task's own package" in section(made, "Data")


def raw(origin: str, files: list[dict[str, str]]) -> Artifact:
    facts = {"origin": origin, "folder": "/home/someone/data", "files": files}
    return Artifact(Key("raw_dataset", "pacific"), Path(), {}, "", "", facts, 0.0, "")


def test_official_files_are_told_by_gits_ids(checkpoint_run: Any) -> None:
    entry = load_catalog()["pacific"]
    assert isinstance(entry, Published)
    official = [{"name": f.name, "git_blob": f.blob} for f in entry.files if not f.optional]
    given = module._data(checkpoint_run, raw("ACT_DATA_DIR", official))
    assert (given.official, given.origin, given.licence) == (True, entry.origin, "MIT")
    changed = [*official[:-1], {**official[-1], "git_blob": "0" * 40}]
    for origin, files in (("ACT_DATA_DIR", changed), ("ACT_DATA_DIR", []), ("bundled sample", [])):
        other = module._data(checkpoint_run, raw(origin, files))
        assert not other.official
        assert other.origin.endswith(entry.origin)
        assert ("bundled sample" in other.origin) == (origin == "bundled sample")
    sql = module._data(replace(checkpoint_run, task=get_task("ambig_sql")), raw("bundled sample", []))
    assert (sql.licence, sql.official) == ("CC BY-SA 4.0", False)


@pytest.mark.parametrize(
    ("meta", "licence"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "own"}, "other (own)"),
        ({"license": ["mit"]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_licence_is_what_the_front_matter_of_a_card_names(meta: Any, licence: str | None) -> None:
    assert module._licence(lambda: meta) == licence


def test_what_is_known_of_a_base_model(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, folder, commit = create_autospec(HfApi), tmp_path / "my-base", "c" * 40
    (tmp_path / "source.json").write_text(json.dumps({"commit": commit}))
    artifact = Artifact(Key("base_policy", "pacific"), tmp_path, {}, "", "", {}, 0.0, "")
    folder.mkdir()

    def base(model: str, hub: Any = None) -> BaseModel:
        policy = tiny_profile.policy.model_copy(update={"model": model, "scratch": None})
        return module._base(tiny_profile.model_copy(update={"policy": policy}), artifact, hub)

    assert base(str(folder)) == BaseModel("my-base, a local folder")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base(str(folder)) == BaseModel("my-base, a local folder", licence="mit")
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_, **__: str(folder / "README.md"))
    assert base("org/base", hub) == BaseModel("org/base", "org/base", commit, "mit")
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_, **__: None)
    hub.model_info.side_effect = [Mock(card_data={"license": "llama3.1"}), OSError("no network")]
    licences = [base("org/base", asked).licence for asked in (None, hub, hub)]
    assert licences == [None, "llama3.1", None], "an export alone needs no network"
    hub.model_info.assert_called_with("org/base", revision=commit)
