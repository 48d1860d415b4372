"""What names of models say: whether an answer is of the model that was asked, and which parameters a family refuses."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

# Hosts that serve OpenAI's own models: the provider's, and Azure's.
_OPENAI_HOSTS = (".api.openai.com", ".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")
_GEMINI_HOSTS = (".generativelanguage.googleapis.com", ".aiplatform.googleapis.com")
# -2024-08-06, -001, -20250514. Not -preview-05-06, nor one digit or two: those are other models, with other prices.
DATE_SUFFIX = re.compile(r"-\d{3,}(-\d+)*")
_REASONING = re.compile(r"(o\d|gpt-[5-9])(?!.*-chat)")
_GEMINI_VERSION = re.compile(r"gemini-(\d+)")


def is_asked_model(asked: str, reported: str, accepted: Collection[str] = ()) -> bool:
    """Whether an answer that `reported` gave is one of the model that was `asked`: the same name, one of its dated
    versions (gpt-4o, gpt-4o-2024-08-06; mistral-small-latest, mistral-small-2603), or a name that is `accepted`."""
    if reported in accepted:
        return True
    wanted, found = (_bare(name) for name in (asked, reported))
    stem = wanted.removesuffix("-latest")
    return found == wanted or (found.startswith(stem) and bool(DATE_SUFFIX.fullmatch(found, len(stem))))


def _bare(name: str) -> str:
    """Without the folder or publisher before it, in small letters: models/gemini-2.5-pro, openai/gpt-4o."""
    return name.lower().rstrip("/").rpartition("/")[2]


def served_by_owner(provider: str, base_url: str | None) -> bool:
    """Whether a URL (None: the provider's own) is one where the provider's own models answer."""
    if base_url is None:
        return True
    hosts = {"openai": _OPENAI_HOSTS, "gemini": _GEMINI_HOSTS}.get(provider, ())
    return f".{urlsplit(base_url).hostname}".endswith(hosts)


def refused_parameters(provider: str, base_url: str | None, model: str) -> frozenset[str]:
    """The parameters that a model refuses, or is said to do worse with, where its owner serves it: OpenAI's reasoning
    models (gpt-5 and later, the o series) and Gemini 3 and later."""
    if not served_by_owner(provider, base_url):
        return frozenset()
    name = _bare(model)
    if provider == "openai" and _REASONING.match(name):
        return frozenset({"temperature", "top_p", "stop"})
    version = _GEMINI_VERSION.match(name)
    if provider == "gemini" and version and int(version[1]) >= 3:
        return frozenset({"temperature", "top_p", "top_k", "candidate_count"})
    return frozenset()


# What a provider's message may name, and the key of a role in the profile that says otherwise.
_SETTINGS = {
    r"max_completion_tokens|max_tokens": "max_tokens_name",
    r"temperature": "temperature: null",
    r"top_?p": "top_p: null",
    r"stop|stop_?sequences": "stop: false",
    r"seed": "send_seed: false",
    r"thinking_?level|thinking_?budget|thinking_?config": "extra: {thinking_config: ...}",
}


def setting_for(message: str) -> str:
    """The setting of a role that a refusal calls for, by the parameter that its message names first; "" for none."""
    found = []
    for pattern, setting in _SETTINGS.items():
        if match := re.search(rf"(?<![A-Za-z_])(?:{pattern})(?![A-Za-z_])", message, re.IGNORECASE):
            found.append((match.start(), setting))
    return min(found)[1] if found else ""
