"""Roles as a profile names them: who plays which, and a role that cannot be played is named once, under its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from act_assets.home import PACKAGE
from act_assets.profile import LLMRole, Profile
from act_assets.roles import Annotator, Classifier, GoldAnnotator, RuleAnnotator, RuleClassifier
from act_assets.roles.build import RoleFactory, check_roles
from act_assets.tasks.base import Task, TaskData
from resources.errors import ProfileError
from resources.llm.service import CallSettings

UNKNOWN = LLMRole(provider="embedded", model="no such rules", top_p=0.5)
UNPRICED = LLMRole(provider="openai", model="m", base_url="http://localhost:1/v1")


def with_roles(profile: Profile, **roles: LLMRole) -> Profile:
    return profile.model_copy(update={"roles": profile.roles.model_copy(update=roles)})


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        ({}, []),
        ({"generator": UNKNOWN, "simulator": UNKNOWN}, ["generator", "generator", "simulator", "simulator"]),
        ({"perturbation": UNKNOWN}, ["perturbation", "perturbation"]),
        ({"intent": UNPRICED}, ["intent"]),
        ({"intent": UNPRICED.model_copy(update={"base_url": "no address"})}, ["intent"]),
    ],
    ids=["all can be played", "unknown models", "perturbation", "no price", "no address"],
)
def test_every_role_that_cannot_be_played_is_named(
    tiny_profile: Profile, roles: dict[str, LLMRole], named: list[str]
) -> None:
    profile = with_roles(tiny_profile, **roles)
    if not named:
        return check_roles(profile, max_cost_usd=1.0)
    with pytest.raises(ProfileError) as caught:
        check_roles(profile, max_cost_usd=1.0)
    lines = [line.removeprefix("  - ").split(":")[0] for line in caught.value.what.splitlines()[1:]]
    assert lines == [f"roles.{name}" for name in named], "no word of roles that the profile leaves out"
    if roles == {"intent": UNPRICED}:
        check_roles(profile)  # a price is needed for a budget in dollars only


def test_the_task_or_a_model_labels_as_the_profile_says(
    tiny_profile: Profile, pacific: Task, sample: TaskData, tmp_path: Path
) -> None:
    def factory(supervision: str, role: dict[str, object]) -> RoleFactory:
        raw = tiny_profile.model_dump(mode="json") | {"action_supervision": supervision}
        annotator = role if supervision == "pseudo" else {}
        raw["roles"] |= {"annotator": annotator, "classifier": role, "in_context_conversations": 3}
        return RoleFactory(Profile.model_validate(raw), pacific, PACKAGE / "prompts", 7, CallSettings(tmp_path))

    model = {"source": "llm", "llm": {"provider": "embedded", "model": "embedded-rules-1", "temperature": 0.5}}
    assert isinstance(factory("gold", {}).annotator(), GoldAnnotator)
    assert isinstance(factory("pseudo", {}).annotator(), RuleAnnotator)
    assert isinstance(factory("pseudo", {}).classifier(sample.train), RuleClassifier)
    assert isinstance(factory("pseudo", model).annotator(), Annotator)
    classifier = factory("gold", model).classifier(sample.train)
    assert isinstance(classifier, Classifier)
    assert (classifier.examples_shown, classifier.seed) == (3, 7)
