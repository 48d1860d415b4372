"""Which names are of the asked model, and what a family of models refuses."""

from __future__ import annotations

import pytest

from act_assets.profile import LLMRole
from resources.llm.models import is_asked_model, refused_parameters, setting_for


@pytest.mark.parametrize(
    ("asked", "reported", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", False),
        ("gemini-2.5-pro", "gemini-2.5-pro", True),
        ("gemini-2.5-pro", "models/gemini-2.5-pro-001", True),
        ("gemini-2.5-pro", "gemini-3.8-flash", False),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite", False),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-05-20", False),
        ("mistral-small-latest", "mistral-small-2603", True),
        ("mistral-small-latest", "mistral-medium-2603", False),
        ("openai/gpt-oss-120b", "gpt-oss-120b", True),
        ("/models/zephyr-7b/", "zephyr-7b", True),
    ],
)
def test_an_answer_is_of_the_asked_model_or_a_dated_version(asked: str, reported: str, same: bool) -> None:
    assert is_asked_model(asked, reported) is same
    assert is_asked_model(asked, reported, [reported])


@pytest.mark.parametrize(
    ("provider", "base_url", "model", "refused"),
    [
        ("openai", None, "gpt-4o", set()),
        ("openai", None, "gpt-5-mini", {"temperature", "top_p", "stop"}),
        ("openai", None, "o4-mini", {"temperature", "top_p", "stop"}),
        ("openai", None, "gpt-5-chat-latest", set()),
        ("openai", "https://mine.openai.azure.com/openai/v1", "gpt-5", {"temperature", "top_p", "stop"}),
        ("openai", "http://127.0.0.1:8000/v1", "gpt-5", set()),
        ("gemini", None, "gemini-2.5-pro", set()),
        ("gemini", None, "gemini-3.8-flash", {"temperature", "top_p", "top_k", "candidate_count"}),
        ("gemini", None, "gemini-4-argon", {"temperature", "top_p", "top_k", "candidate_count"}),
        ("embedded", None, "embedded-rules-1", set()),
    ],
)
def test_what_a_family_refuses_where_its_owner_serves_it(
    provider: str, base_url: str | None, model: str, refused: set[str]
) -> None:
    assert refused_parameters(provider, base_url, model) == refused


def test_a_role_leaves_out_what_its_model_refuses_and_says_so_where_it_is_set() -> None:
    role = LLMRole(provider="openai", model="gpt-5-mini")
    assert (role.temperature, role.top_p, role.stop) == (None, None, False)
    assert LLMRole(provider="gemini", model="gemini-3.8-flash").stop, "Gemini takes stop sequences"
    assert LLMRole(provider="openai", model="gpt-4o").temperature == 0.0
    with pytest.raises(ValueError) as refused:
        LLMRole(provider="openai", model="gpt-5", temperature=0.0, stop=True)
    assert "temperature: null" in str(refused.value)
    assert "stop: false" in str(refused.value)
    with pytest.raises(ValueError, match="top_k"):
        LLMRole(provider="gemini", model="gemini-3.8-flash", extra={"top_k": 5})


@pytest.mark.parametrize(
    ("message", "setting"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         "max_tokens_name"),
        ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported",
         "temperature: null"),
        ("Invalid value at 'generation_config.topP'", "top_p: null"),
        ("`stop` is not supported", "stop: false"),
        ("seed: Extra inputs are not permitted", "send_seed: false"),
        ("You can only set one of thinking_level and thinking_budget", "extra: {thinking_config: ...}"),
        ("Request contains an invalid argument.", ""),
        ("the stopping criterion of the tokenizer", ""),
    ],
)  # fmt: skip
def test_a_refusal_that_names_a_parameter_names_the_setting(message: str, setting: str) -> None:
    assert setting_for(message) == setting
