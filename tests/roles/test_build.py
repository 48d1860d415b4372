"""Roles as a profile names them: a role that cannot be played is named once, under the key that has to be mended."""

from __future__ import annotations

import pytest

from act_assets.profile import LLMRole, Profile
from act_assets.roles.build import check_roles
from resources.errors import ProfileError

UNKNOWN = LLMRole(provider="embedded", model="no such rules")


def with_roles(profile: Profile, **roles: LLMRole) -> Profile:
    return profile.model_copy(update={"roles": profile.roles.model_copy(update=roles)})


def refused(profile: Profile) -> list[str]:
    """The keys that are named."""
    with pytest.raises(ProfileError, match="cannot be played") as caught:
        check_roles(profile)
    lines = caught.value.what.splitlines()[1:]
    assert all("has no model 'no such rules'" in line for line in lines)
    return [line.removeprefix("  - ").split(":")[0] for line in lines]


def test_roles_that_can_be_played_are_no_mistake(tiny_profile: Profile) -> None:
    check_roles(tiny_profile)


def test_every_role_that_cannot_be_played_is_named(tiny_profile: Profile) -> None:
    profile = with_roles(tiny_profile, generator=UNKNOWN, simulator=UNKNOWN)
    assert refused(profile) == ["roles.generator", "roles.simulator"], "no word of roles that the profile leaves out"


def test_a_model_that_perturbs_is_looked_at_where_the_profile_names_one(tiny_profile: Profile) -> None:
    assert refused(with_roles(tiny_profile, perturbation=UNKNOWN)) == ["roles.perturbation"]
    sound = tiny_profile.roles.generator
    assert refused(with_roles(tiny_profile, generator=UNKNOWN, perturbation=sound)) == ["roles.generator"]
