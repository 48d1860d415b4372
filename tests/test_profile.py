"""Profiles: one file of settings, refused as a whole with every mistake named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from act_assets.profile import REPLY_TOKENS, Lora, Profile, Settings, load_profile, profile_names
from act_assets.tasks import get_task
from resources.errors import ProfileError

TINY = Path(__file__).parent / "tiny.yaml"

Raw = dict[str, Any]


def written(folder: Path, *changes: Callable[[Raw], object]) -> str:
    """The path of tiny.yaml with changes."""
    raw = yaml.safe_load(TINY.read_text())
    for change in changes:
        change(raw)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def refusal(name_or_path: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(name_or_path)
    assert caught.value.todo
    return str(caught.value)


def test_every_shipped_profile_loads_under_its_name() -> None:
    assert {"laptop", "paper"} <= set(profile_names())
    for name in profile_names():
        assert load_profile(name).name == name


def test_the_paper_profile_holds_the_papers_values() -> None:
    paper = load_profile("paper")
    assert paper.policy.model == "HuggingFaceH4/zephyr-7b-beta"
    assert paper.policy.scratch is None
    assert paper.policy.lora is None
    assert (paper.policy.max_length, paper.policy.mixed_precision) == (1280, True)
    assert (paper.act.epochs, paper.act.learning_rate) == (12, 5e-7)
    assert (paper.compute.processes, paper.compute.device_memory_gb) == (8, 80)
    assert [o.batch_size / paper.compute.processes for o in (paper.sft, paper.act)] == [4, 4], "4 on each GPU"
    betas = {name: paper.act.beta.get(name, get_task(name).beta) for name in ("pacific", "abg_coqa", "ambig_sql")}
    assert betas == {"pacific": 0.01, "abg_coqa": 0.01, "ambig_sql": 0.5}
    assert paper.sft.epochs == 8
    assert paper.sft.candidates == (1e-4, 2e-5, 1e-5)
    assert paper.roles.in_context_conversations == 10
    assert (paper.labels_from, paper.act.mask_user_tokens) == ("gold", True)
    assert paper.embedder == "all-MiniLM-L6-v2"


def test_the_laptop_profile_needs_no_key_and_no_weights() -> None:
    laptop = load_profile("laptop")
    assert laptop.policy.model == "scratch"
    assert {r.provider for r in (laptop.roles.generator, laptop.roles.intent, laptop.roles.simulator)} == {"embedded"}
    assert (laptop.roles.annotator.llm, laptop.roles.classifier.llm) == (None, None)


@pytest.mark.parametrize("name", ["laptop", "paper"])
def test_a_profile_that_is_written_down_is_read_back(name: str) -> None:
    """A training process gets it as JSON."""
    profile = load_profile(name)
    assert Profile.model_validate(json.loads(json.dumps(profile.model_dump(mode="json")))) == profile


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("compute", {"launcher": "accelerate"}, "launcher 'accelerate' and a strategy go together"),
        ("compute", {"strategy": "ddp"}, "launcher 'accelerate' and a strategy go together"),
        ("compute", {"processes": 2}, "launcher 'local' is one process"),
        ("engine", {"mode": "server"}, "mode: of the engine vllm only"),
        ("engine", {"name": "vllm", "devices": "1"}, "devices is of vllm's mode server"),
        ("engine", {"name": "vllm"}, "one from scratch samples in transformers"),
        ("act", {"rollout_lag": 2}, "rollout_lag"),
        ("act", {"batch_size": 16, "rollout_group": 24}, "rollout_group 24 is no multiple of batch_size 16"),
    ],
)
def test_settings_of_training_that_do_not_fit_together(
    tmp_path: Path, section: str, values: dict[str, Any], said: str
) -> None:
    assert said in refusal(written(tmp_path, lambda raw: raw.setdefault(section, {}).update(values)))


@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_what_samples_a_copy_or_beside_needs_a_policy_that_is_whole(tmp_path: Path, strategy: str) -> None:
    def spoil(raw: Raw) -> None:
        raw["compute"] = {"launcher": "accelerate", "strategy": strategy, "processes": 2}
        raw["act"]["rollout_lag"] = 1
        raw["engine"] = {"name": "vllm"}

    message = refusal(written(tmp_path, spoil))
    assert f"act.rollout_lag 1 samples a copy of the policy, which compute.strategy {strategy} spreads" in message
    assert f"engine.mode colocated does not go with compute.strategy {strategy}" in message


def test_a_four_bit_base_is_not_spread_over_processes(tmp_path: Path) -> None:
    def spoil(raw: Raw) -> None:
        raw["policy"]["lora"] = {"r": 8, "alpha": 16, "quantized": True}
        raw["compute"] = {"launcher": "accelerate", "strategy": "zero3", "processes": 2}

    assert "policy.lora.quantized does not go with compute.strategy zero3" in refusal(written(tmp_path, spoil))


def test_an_own_profile_is_named_after_its_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert load_profile(written(tmp_path)).name == "mine"
    assert load_profile(written(tmp_path, lambda raw: raw.update(name="yours"))).name == "yours"


def test_all_mistakes_are_reported_at_once_each_with_its_key(tmp_path: Path) -> None:
    def spoil(raw: Raw) -> None:
        raw["sft"].update(epochs=0, batch_size=2.5, learning_rate="fast")
        raw["act"].update(bta=0.1, warm_up_ratio=1.0, beta={"pacific": -1})
        raw["roles"]["generator"]["provider"] = "oracle"
        raw["roles"]["critic"] = {"provider": "embedded"}
        raw["policy"]["scratch"]["heads"] = "many"
        raw["sede"] = 1
        del raw["evaluation"]["batch_size"]
        del raw["rollout_batch_size"]

    message = refusal(written(tmp_path, spoil))
    lines = message.splitlines()
    assert lines[0] == "the profile has 12 mistakes:"
    named = {line.removeprefix("  - ").split(":")[0]: line for line in lines if line.startswith("  - ")}
    assert set(named) == {
        "sft.epochs",
        "sft.batch_size",
        "sft.learning_rate",
        "act.bta",
        "act.warm_up_ratio",
        "act.beta.pacific",
        "roles.generator.provider",
        "roles.critic",
        "policy.scratch.heads",
        "sede",
        "evaluation.batch_size",
        "rollout_batch_size",
    }
    assert "unknown key" in named["sede"]
    assert "unknown key" in named["act.bta"]
    assert "missing" in named["rollout_batch_size"]
    assert "'oracle'" in named["roles.generator.provider"], "a message repeats the value that was given"
    assert f"where: {tmp_path / 'mine.yaml'}" in message


def every_section(raw: Raw, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for key, value in raw.items():
        if isinstance(value, dict) and key != "beta":
            yield from every_section(value, (*path, key))


@pytest.mark.parametrize("section", list(every_section(yaml.safe_load(TINY.read_text()))), ids=".".join)
def test_an_unknown_key_is_an_error_in_every_section(tmp_path: Path, section: tuple[str, ...]) -> None:
    def add(raw: Raw) -> None:
        for key in section:
            raw = raw[key]
        raw["tempratur"] = 1.0

    assert f"{'.'.join((*section, 'tempratur'))}: unknown key" in refusal(written(tmp_path, add))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 0.0])
def test_a_learning_rate_is_a_positive_finite_number(tmp_path: Path, value: float) -> None:
    message = refusal(written(tmp_path, lambda raw: raw["sft"].update(learning_rate=value)))
    assert "sft.learning_rate: " in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_prompt_tokens": 1265}, "max_prompt_tokens 1265"),
        ({"max_length": 300}, "exceed max_length 300"),
        ({"revision": "main"}, "revision is of a Hugging Face model"),
        ({"scratch": None}, "model 'scratch' and the 'scratch' block go together"),
        ({"model": "some/model"}, "model 'scratch' and the 'scratch' block go together"),
        ({"dtype": "bfloat16"}, "policy.dtype: unknown key"),
    ],
)
def test_settings_of_the_policy_that_contradict_each_other_are_refused(tmp_path: Path, change: Raw, said: str) -> None:
    assert said in refusal(written(tmp_path, lambda raw: raw["policy"].update(change)))


def test_two_responses_and_the_reply_between_them_fit_behind_a_prompt_and_may_fill_the_whole_length(
    tmp_path: Path,
) -> None:
    most = 1280 - 2 * 16 - REPLY_TOKENS
    load_profile(written(tmp_path, lambda raw: raw["policy"].update(max_prompt_tokens=most)))
    refusal(written(tmp_path, lambda raw: raw["policy"].update(max_prompt_tokens=most + 1)))


def test_several_contradictions_are_reported_together(tmp_path: Path) -> None:
    def spoil(raw: Raw) -> None:
        raw["policy"].update(model="some/model", max_length=300)
        raw["policy"]["scratch"]["heads"] = 3

    message = refusal(written(tmp_path, spoil))
    for said in ("go together", "exceed max_length 300", "hidden_size must be a multiple"):
        assert said in message


@pytest.mark.parametrize("role", ["annotator", "classifier"])
def test_a_role_played_by_a_model_names_the_model_and_no_other_does(tmp_path: Path, role: str) -> None:
    llm = {"provider": "embedded", "model": "embedded-rules-1"}

    def as_(**settings: object) -> str:
        pseudo = lambda raw: raw.update(action_supervision="pseudo")  # noqa: E731
        return written(tmp_path, lambda raw: raw["roles"].update({role: settings}), pseudo)

    load_profile(as_(source="llm", llm=llm))
    assert f"roles.{role}: source 'llm' and an 'llm' block" in refusal(as_(source="llm"))
    assert f"roles.{role}: source 'llm' and an 'llm' block" in refusal(as_(source="rule", llm=llm))


def test_labels_come_from_gold_unless_the_profile_asks_for_pseudo_labels(tmp_path: Path) -> None:
    """Section 5.4. A model that would never be asked is a mistake."""
    llm = {"source": "llm", "llm": {"provider": "embedded", "model": "embedded-rules-1"}}
    pseudo = lambda raw: raw.update(action_supervision="pseudo")  # noqa: E731
    by_model = lambda raw: raw["roles"].update(annotator=llm)  # noqa: E731
    assert load_profile(written(tmp_path)).labels_from == "gold"
    assert load_profile(written(tmp_path, pseudo)).labels_from == "rule"
    assert load_profile(written(tmp_path, pseudo, by_model)).labels_from == "llm"
    assert "action_supervision is gold" in refusal(written(tmp_path, by_model))


def test_requests_are_perturbed_by_the_generators_model_unless_another_is_named(tmp_path: Path) -> None:
    tiny = load_profile(written(tmp_path))
    assert tiny.roles.played()["perturbation"] == tiny.roles.generator
    named = {"provider": "openai", "model": "m"}
    own = load_profile(written(tmp_path, lambda raw: raw["roles"].update(perturbation=named)))
    assert own.roles.played()["perturbation"].model == "m"


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_a_number_of_ambiguous_requests_is_positive_or_all(tmp_path: Path, number: object) -> None:
    assert "ambiguous_requests.train: " in refusal(
        written(tmp_path, lambda raw: raw.update(ambiguous_requests={"train": number}))
    )
    everything = load_profile(written(tmp_path, lambda raw: raw.update(ambiguous_requests={"train": None})))
    assert everything.ambiguous_requests.train is None


def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    assert "name: " in refusal(written(tmp_path, lambda raw: raw.update(name="a/b")))


def test_an_unknown_name_lists_the_choices() -> None:
    message = refusal("labtop")
    assert "'labtop'" in message
    assert all(name in message for name in profile_names())


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refusal(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"roles: [1, 2", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"", "holds no settings"),
        (b"- roles\n- policy\n", "holds no settings"),
        (b"just a text", "holds no settings"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_bytes(content)
    message = refusal(str(path))
    assert said in message
    assert str(path) in message


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
    path = written(tmp_path, lambda raw: raw["policy"].update(lora={"r": 4, "alpha": 8}))
    profile = load_profile(path)
    assert profile.policy.lora == Lora(r=4, alpha=8)
    assert load_profile(path).digest() == profile.digest()
    digests = [v.digest() for v in variants(profile) if isinstance(v, Profile)]
    assert len(digests) >= 50
    assert len({profile.digest(), *digests}) == len(digests) + 1


def test_a_profile_cannot_be_changed(tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny_profile.sft.epochs = 3  # type: ignore[misc]
