"""Profiles: one file of settings, refused as a whole with every mistake named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from act_assets.profile import REPLY_TOKENS, Profile, Settings, load_profile, profile_names
from act_assets.tasks import get_task
from resources.errors import ProfileError

TINY = Path(__file__).parent / "tiny.yaml"
RULES = {"provider": "embedded", "model": "embedded-rules-1"}
MOST = 1280 - 2 * 16 - REPLY_TOKENS

Raw = dict[str, Any]


def written(folder: Path, changes: Raw) -> str:
    """The path of tiny.yaml with changes, each under its dotted key; `...` removes a key."""
    raw = yaml.safe_load(TINY.read_text())
    for dotted, value in changes.items():
        section, (*path, key) = raw, dotted.split(".")
        for name in path:
            section = section.setdefault(name, {})
        section[key] = value
        if value is ...:
            del section[key]
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def mistakes(name_or_path: str) -> dict[str, str]:
    """What is said of each key, of a profile that is refused."""
    with pytest.raises(ProfileError) as caught:
        load_profile(name_or_path)
    first, *lines = caught.value.what.splitlines()
    assert first.startswith(f"the profile has {len(lines)} mistake")
    assert caught.value.where == name_or_path
    assert caught.value.todo
    return dict(line.removeprefix("  - ").split(": ", 1) for line in lines)


def test_every_shipped_profile_loads_under_its_name_and_is_read_back() -> None:
    """A training process gets it as JSON."""
    assert {"laptop", "paper"} <= set(profile_names())
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert Profile.model_validate(json.loads(json.dumps(profile.model_dump(mode="json")))) == profile


def test_the_paper_profile_holds_the_papers_values() -> None:
    paper = load_profile("paper")
    assert paper.policy.model == "HuggingFaceH4/zephyr-7b-beta"
    assert (paper.policy.scratch, paper.policy.lora) == (None, None)
    assert (paper.policy.max_length, paper.policy.mixed_precision) == (1280, True)
    assert (paper.act.epochs, paper.act.learning_rate) == (12, 5e-7)
    assert (paper.compute.processes, paper.compute.device_memory_gb) == (8, 80)
    assert [o.batch_size / paper.compute.processes for o in (paper.sft, paper.act)] == [4, 4], "4 on each GPU"
    betas = {name: paper.act.beta.get(name, get_task(name).beta) for name in ("pacific", "abg_coqa", "ambig_sql")}
    assert betas == {"pacific": 0.01, "abg_coqa": 0.01, "ambig_sql": 0.5}
    assert (paper.sft.epochs, paper.sft.candidates) == (8, (1e-4, 2e-5, 1e-5))
    assert paper.roles.in_context_conversations == 10
    assert (paper.labels_from, paper.act.mask_user_tokens) == ("gold", True)
    assert paper.embedder == "all-MiniLM-L6-v2"


def test_the_laptop_profile_needs_no_key_and_no_weights() -> None:
    laptop = load_profile("laptop")
    assert laptop.policy.model == "scratch"
    assert {role.provider for role in laptop.roles.played().values()} == {"embedded"}


TOGETHER = "model 'scratch' and the 'scratch' block go together"
SPREAD = {"compute": {"launcher": "accelerate", "strategy": "zero3", "processes": 2}}


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"compute.launcher": "accelerate"}, "compute", "launcher 'accelerate' and a strategy go together"),
        ({"compute.strategy": "ddp"}, "compute", "launcher 'accelerate' and a strategy go together"),
        ({"compute.processes": 2}, "compute", "launcher 'local' is one process"),
        ({"engine.mode": "server"}, "engine", "mode: of the engine vllm only"),
        ({"engine.name": "vllm", "engine.devices": "1"}, "engine", "devices is of vllm's mode server"),
        ({"engine.name": "vllm"}, "(whole profile)", "one from scratch samples in transformers"),
        ({"act.rollout_lag": 2}, "act.rollout_lag", ""),
        ({"act.batch_size": 16, "act.rollout_group": 24}, "act", "rollout_group 24 is no multiple of batch_size 16"),
        ({**SPREAD, "act.rollout_lag": 1}, "(whole profile)", "act.rollout_lag 1 samples a copy of the policy"),
        ({**SPREAD, "engine.name": "vllm"}, "(whole profile)", "engine.mode colocated does not go with"),
        (
            {**SPREAD, "policy.lora": {"r": 8, "alpha": 16, "quantized": True}},
            "(whole profile)",
            "policy.lora.quantized does not go with compute.strategy zero3",
        ),
        ({"policy.max_prompt_tokens": MOST + 1}, "policy", f"max_prompt_tokens {MOST + 1}"),
        ({"policy.max_length": 300}, "policy", "exceed max_length 300"),
        ({"policy.revision": "main"}, "policy", "revision is of a Hugging Face model"),
        ({"policy.scratch": None}, "policy", TOGETHER),
        ({"policy.model": "some/model"}, "policy", TOGETHER),
        ({"policy.scratch.heads": 3}, "policy", "hidden_size must be a multiple"),
        ({"roles.annotator.source": "llm"}, "roles.annotator", "source 'llm' and an 'llm' block"),
        ({"roles.classifier.llm": RULES}, "roles.classifier", "source 'llm' and an 'llm' block"),
        ({"roles.annotator": {"source": "llm", "llm": RULES}}, "(whole profile)", "action_supervision is gold"),
        *(({"sft.learning_rate": x}, "sft.learning_rate", "") for x in (float("inf"), float("nan"), -1.0, 0.0)),
        *(({"ambiguous_requests.train": x}, "ambiguous_requests.train", "") for x in (0, -1, 2.5)),
        ({"name": "a/b"}, "name", ""),
    ],
)
def test_settings_that_are_out_of_range_or_contradict_each_other(
    tmp_path: Path, changes: Raw, key: str, said: str
) -> None:
    found = mistakes(written(tmp_path, changes))
    assert list(found) == [key]
    assert said in found[key]


def test_several_contradictions_are_reported_together(tmp_path: Path) -> None:
    policy = {"policy.model": "some/model", "policy.max_length": 300, "policy.scratch.heads": 3}
    found = mistakes(written(tmp_path, policy))["policy"]
    assert [said in found for said in ("go together", "exceed max_length 300", "must be a multiple")] == [True] * 3
    spread = {**SPREAD, "act.rollout_lag": 1, "engine.name": "vllm", "compute.strategy": "fsdp"}
    found = mistakes(written(tmp_path, spread))["(whole profile)"]
    assert [said in found for said in ("rollout_lag", "colocated", "strategy fsdp", "scratch")] == [True] * 4


def test_settings_at_the_limit_are_accepted(tmp_path: Path) -> None:
    """Two responses and the reply between them may fill the whole length."""
    changes = {"policy.max_prompt_tokens": MOST, "ambiguous_requests.train": None, "name": "yours"}
    profile = load_profile(written(tmp_path, changes))
    assert (profile.name, profile.ambiguous_requests.train) == ("yours", None)
    assert load_profile(written(tmp_path, {})).name == "mine", "after its file, unless it says otherwise"


def test_all_mistakes_are_reported_at_once_each_with_its_key(tmp_path: Path) -> None:
    spoilt = {
        "sft.epochs": 0,
        "sft.batch_size": 2.5,
        "sft.learning_rate": "fast",
        "act.bta": 0.1,
        "act.warm_up_ratio": 1.0,
        "act.beta.pacific": -1,
        "roles.generator.provider": "oracle",
        "roles.critic": RULES,
        "policy.scratch.heads": "many",
        "sede": 1,
        "evaluation.batch_size": ...,
        "rollout_batch_size": ...,
    }
    found = mistakes(written(tmp_path, spoilt))
    assert set(found) == set(spoilt)
    assert found["sede"] == found["act.bta"] == found["roles.critic"] == "unknown key"
    assert found["rollout_batch_size"] == "missing"
    assert "'oracle'" in found["roles.generator.provider"], "a message repeats the value that was given"


def every_section(raw: Raw, path: str = "") -> Iterator[str]:
    yield path
    for key, value in raw.items():
        if isinstance(value, dict) and key != "beta":
            yield from every_section(value, f"{path}{key}.")


def test_an_unknown_key_is_an_error_in_every_section(tmp_path: Path) -> None:
    unknown = {f"{section}tempratur": 1.0 for section in every_section(yaml.safe_load(TINY.read_text()))}
    assert mistakes(written(tmp_path, unknown)) == dict.fromkeys(unknown, "unknown key")
    assert len(unknown) >= 10


def test_labels_come_from_gold_unless_the_profile_asks_for_pseudo_labels(tmp_path: Path) -> None:
    """Section 5.4."""
    pseudo: Raw = {"action_supervision": "pseudo"}
    model = pseudo | {"roles.annotator": {"source": "llm", "llm": RULES}}
    found = [load_profile(written(tmp_path, changes)).labels_from for changes in ({}, pseudo, model)]
    assert found == ["gold", "rule", "llm"]


def test_requests_are_perturbed_by_the_generators_model_unless_another_is_named(tmp_path: Path) -> None:
    tiny = load_profile(written(tmp_path, {}))
    assert tiny.roles.played()["perturbation"] == tiny.roles.generator
    own = load_profile(written(tmp_path, {"roles.perturbation": {"provider": "openai", "model": "m"}}))
    assert own.roles.played()["perturbation"].model == "m"


@pytest.mark.parametrize(
    "content", [b"roles: [1, 2", b"a: b: c", b"\xff\xfe\x00", b"", b"- roles\n", b"just a text", None]
)
def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert caught.value.where == str(path)
    assert caught.value.todo


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ProfileError, match="'labtop'") as caught:
        load_profile("labtop")
    assert all(name in caught.value.todo for name in profile_names())


def variants(model: Settings) -> Iterator[Settings]:
    """The model once for every setting in it, with that one changed."""
    for name, value in model:
        if isinstance(value, Settings):
            for changed in variants(value):
                yield model.model_copy(update={name: changed})
        elif isinstance(value, bool):
            yield model.model_copy(update={name: not value})
        elif isinstance(value, int | float):
            yield model.model_copy(update={name: value * 2 + 1})
        elif isinstance(value, dict):
            yield model.model_copy(update={name: {**value, "pacific": 9.0}})
        else:
            yield model.model_copy(update={name: f"{value} changed"})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_digest_changes_with_any_setting_and_with_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, {"policy.lora": {"r": 4, "alpha": 8}})
    profile = load_profile(path)
    assert load_profile(path).digest() == profile.digest()
    digests = [v.digest() for v in variants(profile) if isinstance(v, Profile)]
    assert len(digests) >= 50
    assert len({profile.digest(), *digests}) == len(digests) + 1


def test_a_profile_cannot_be_changed(tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny_profile.sft.epochs = 3  # type: ignore[misc]
