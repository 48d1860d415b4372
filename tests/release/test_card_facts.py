"""What a model card says of a checkpoint: from artifacts, the catalog and the base model's own card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from act_assets.profile import Profile
from act_assets.release import card_facts
from act_assets.release.card_facts import card_of
from act_assets.release.model_card import card_text
from act_assets.tasks import get_task
from act_assets.tasks.catalog import Published, load_catalog
from resources.artifacts import Artifact, Key


@pytest.fixture
def run(
    checkpoints: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("ACT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("ACT_DATA_DIR", raising=False)
    home = checkpoints.filled(lambda: tmp_path_factory.mktemp("checkpoints"), tiny_tokenizer)
    return checkpoints.settings(home)


def card(run: Any, method: str, **options: Any) -> Any:
    artifact = run.store.require(Key(f"{method}_checkpoint", "pacific", 50))
    return artifact, card_of(run, artifact, method, **options)


def test_a_card_is_of_its_artifact_and_its_evaluation(checkpoints: Any, run: Any) -> None:
    artifact, made = card(run, "act")
    assert (made.identity, made.content, made.created_at) == (
        artifact.identity_hash,
        artifact.content_hash,
        artifact.created_at,
    )
    assert made.evaluation == checkpoints.REPORT
    assert made.made_from["sft_checkpoint"] == run.store.require(Key("sft_checkpoint", "pacific", 50)).content_hash
    rows = dict(made.training)
    assert (rows["ACT beta"], rows["ACT learning rate"], rows["SFT epochs"]) == ("0.1", "0.001", "1")
    assert (rows["ACT pairs"], rows["ACT losers replaced by a sample"]) == ("355", "352")
    assert rows["ACT reward margin of the kept epoch"] == "-0.0846"
    assert made.base.licence == "Apache-2.0"


def test_sft_says_nothing_of_act_and_has_no_figures_of_it(run: Any) -> None:
    _, made = card(run, "sft")
    assert made.evaluation is None
    assert not any(name.startswith("ACT") for name, _ in made.training)


def test_an_evaluation_that_is_out_of_date_is_not_quoted(run: Any) -> None:
    evaluation = run.profile.evaluation.model_copy(update={"bootstrap_samples": 7})
    _, made = card(replace(run, profile=run.profile.model_copy(update={"evaluation": evaluation})), "act")
    assert made.evaluation is None


def test_no_folder_of_this_machine_is_in_the_card(run: Any) -> None:
    text = card_text(card(run, "act")[1])
    for folder in (run.store.root, run.data_dir, run.prompts_dir, Path.home(), Path("/home")):
        assert f"{folder}/" not in text


def raw(origin: str, files: list[dict[str, str]]) -> Artifact:
    facts = {"origin": origin, "folder": "/home/someone/data", "files": files}
    return Artifact(Key("raw_dataset", "pacific"), Path(), {}, "", "", facts, 0.0, "")


def data(run: Any, artifact: Artifact) -> Any:
    return card_facts._data(run, artifact)


def test_official_files_are_told_by_gits_ids(run: Any) -> None:
    entry = load_catalog()["pacific"]
    assert isinstance(entry, Published)
    official = [{"name": f.name, "git_blob": f.blob} for f in entry.files if not f.optional]
    assert data(run, raw("ACT_DATA_DIR", official)).official
    assert data(run, raw("ACT_DATA_DIR", official)).origin == entry.origin
    changed = data(run, raw("ACT_DATA_DIR", [*official[:-1], {**official[-1], "git_blob": "0" * 40}]))
    assert not changed.official
    assert changed.origin == f"files in the layout of {entry.origin}"
    assert not data(run, raw("ACT_DATA_DIR", [])).official


def test_the_bundled_sample_is_called_one(run: Any) -> None:
    made = card(run, "act")[1].data
    assert not made.official
    assert made.origin.startswith("this project's bundled sample, made from github.com/dengyang17/PACIFIC")
    assert made.licence == "MIT"


def test_the_sample_of_ambig_sql_is_share_alike(run: Any) -> None:
    made = data(replace(run, task=get_task("ambig_sql")), raw("bundled sample", []))
    assert (made.licence, made.official) == ("CC BY-SA 4.0", False)


class FakeHub:
    def __init__(self, card_data: Any) -> None:
        self.card_data, self.asked = card_data, []  # type: ignore[var-annotated]

    def model_info(self, repo_id: str, *, revision: str | None) -> Any:
        self.asked.append((repo_id, revision))
        if isinstance(self.card_data, Exception):
            raise self.card_data
        return SimpleNamespace(card_data=self.card_data)


def of(profile: Profile, model: str) -> Profile:
    policy = profile.policy.model_copy(update={"model": model, "scratch": None})
    return profile.model_copy(update={"policy": policy})


@pytest.fixture
def from_the_hub(tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(profile, base_policy artifact) of a model of the hub that is not in the cache."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    (tmp_path / "source.json").write_text(json.dumps({"model": "org/base", "commit": "c" * 40}))
    artifact = Artifact(Key("base_policy", "pacific"), tmp_path, {}, "", "", {}, 0.0, "")
    return of(tiny_profile, "org/base"), artifact


@pytest.mark.parametrize(
    ("answer", "licence"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "own"}, "other (own)"),
        ({}, None),
        (None, None),
        (OSError("no network"), None),
    ],
    ids=str,
)
def test_the_licence_of_a_hub_model_is_asked_for_where_the_hub_is_used(
    from_the_hub: Any, answer: Any, licence: str | None
) -> None:
    hub = FakeHub(answer)
    base = card_facts._base(*from_the_hub, hub)
    assert (base.hub_id, base.commit, base.licence) == ("org/base", "c" * 40, licence)
    assert hub.asked == [("org/base", "c" * 40)]


def test_without_the_hub_the_licence_of_its_model_is_not_known(from_the_hub: Any) -> None:
    assert card_facts._base(*from_the_hub, None).licence is None


@pytest.mark.parametrize(
    ("card", "licence"), [("---\nlicense: apache-2.0\n---\n", "apache-2.0"), ("no front matter", None), (None, None)]
)
def test_a_local_folder_is_named_by_its_last_part_and_licensed_by_its_own_card(
    tiny_profile: Profile, tmp_path: Path, card: str | None, licence: str | None
) -> None:
    folder = tmp_path / "my-base"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    artifact = Artifact(Key("base_policy", "pacific"), tmp_path, {}, "", "", {}, 0.0, "")
    base = card_facts._base(of(tiny_profile, str(folder)), artifact, None)
    assert (base.name, base.hub_id, base.licence) == ("my-base, a local folder", None, licence)
