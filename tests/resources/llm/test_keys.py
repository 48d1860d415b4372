"""Keys come from the environment, and leave it in no message."""

from __future__ import annotations

import pytest

from resources.errors import ActError
from resources.llm.keys import GEMINI_KEYS, OPENAI_KEYS, api_keys, clean_base_url, redact


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GEMINI_KEYS, *OPENAI_KEYS, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_keys_keep_their_order_and_come_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", " first ")
    monkeypatch.setenv("GEMINI_API_KEYS", "second, third\nfirst,,\tfourth")
    monkeypatch.setenv("GOOGLE_API_KEY", "third")
    assert api_keys(*GEMINI_KEYS) == ("first", "second", "third", "fourth")


def test_no_variable_means_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEYS", " ,\n")
    assert api_keys(*OPENAI_KEYS) == ()


@pytest.mark.parametrize("name", [*GEMINI_KEYS, *OPENAI_KEYS, "HF_TOKEN"])
def test_set_keys_are_redacted_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "plain/words+1")
    assert redact("refused: plain/words+1.") == "refused: [key]."


def test_of_two_keys_the_longer_is_replaced_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEYS", "abcdefgh,abcdefgh-and-more")
    assert redact("x abcdefgh-and-more y abcdefgh z") == "x [key] y [key] z"


def test_keys_that_are_not_in_the_environment_can_be_named() -> None:
    assert redact("refused: of-the-caller", "of-the-caller") == "refused: [key]"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("key sk-proj-abc_DEF-123456789.", "key [key]."),
        ("provided: sk-ab********wxyz. You", "provided: [key]. You"),
        ("key AIzaSyA-1234567890_abcdef is", "key [key] is"),
        ("token hf_abcdefghijkl", "token [key]"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer [key]"),
        ("{'authorization': 'bearer abc.def-1'}", "{'authorization': 'bearer [key]'}"),
        ("x-goog-api-key: abc", "x-goog-api-key: [key]"),
        ("{'x-goog-api-key': 'abc', 'a': 1}", "{'x-goog-api-key': '[key]', 'a': 1}"),
        ("https://h/v1?api_key=abc&x=1", "https://h/v1?api_key=[key]&x=1"),
        ("https://h/v1?a=1&key=abc", "https://h/v1?a=1&key=[key]"),
    ],
)
def test_what_looks_like_a_credential_is_redacted(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "API key not valid. Please pass a valid API key.",
        "a risk-adjusted, task-specific answer; sk-learn",
        "Request contains an invalid argument.\nSecond line",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_placeholders_of_keyless_servers_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert redact("none of the models") == "none of the models"


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("HTTPS://API.OpenAI.com/V1", "https://api.openai.com/V1"),
        (" http://LocalHost:8000/v1// ", "http://localhost:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_base_url_has_one_spelling(url: str, clean: str) -> None:
    assert clean_base_url(url) == clean
    assert clean_base_url(clean) == clean


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "secretsecret",
        "ftp://host/secretsecret",
        "http://",
        "http:///secretsecret",
        "http://host:secretsecret/v1",
        "http://host/a secretsecret",
        "http://host\\@secretsecret",
        "https://user:secretsecret@host/v1",
        "https://secretsecret@host/v1",
        "https://host/v1?key=secretsecret",
        "https://host/v1#secretsecret",
        "http://[secretsecret/v1",
    ],
)
def test_other_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ActError) as caught:
        clean_base_url(url)
    assert "secretsecret" not in str(caught.value)
    assert caught.value.todo
