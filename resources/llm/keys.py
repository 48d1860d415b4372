"""Credentials: taken from the environment only, and kept out of every message."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from resources.errors import ActError

# Each variable may hold several keys, separated by commas or whitespace.
GEMINI_KEYS = ("GEMINI_API_KEY", "GEMINI_API_KEYS", "GOOGLE_API_KEY")
OPENAI_KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEYS")

_SECRETS = (*GEMINI_KEYS, *OPENAI_KEYS, "HF_TOKEN")
_MARK = "[key]"
# Shorter ones are placeholders like `none` or `EMPTY`, and words of ordinary messages.
_SHORTEST = 8

_CREDENTIALS = (
    (re.compile(r"\b(bearer\s+)[^\s\"',;]+", re.IGNORECASE), rf"\1{_MARK}"),
    (
        re.compile(r"\b((?:x-)?(?:goog-)?api[-_]?key[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}\]]+", re.IGNORECASE),
        rf"\1{_MARK}",
    ),
    (re.compile(r"([?&](?:key|token|access_token)=)[^\s\"'&]+", re.IGNORECASE), rf"\1{_MARK}"),
    # `*`: keys that the provider has masked in the middle.
    (re.compile(r"\bsk-[\w*-]{8,}"), _MARK),
    (re.compile(r"\bAIza[\w*-]{8,}"), _MARK),
    (re.compile(r"\bhf_\w{8,}"), _MARK),
)


def api_keys(*names: str) -> tuple[str, ...]:
    """The keys that these environment variables hold, each once, in order."""
    found = (key for name in names for key in re.split(r"[\s,]+", os.environ.get(name, "")) if key)
    return tuple(dict.fromkeys(found))


def redact(text: str, *keys: str) -> str:
    """`text` with `[key]` for `keys`, for the keys of the environment, and for what looks like a credential.

    Providers echo keys in their messages, and libraries put requests into theirs.
    """
    known = {key for key in (*keys, *api_keys(*_SECRETS)) if len(key) >= _SHORTEST}
    for key in sorted(known, key=len, reverse=True):  # the longer first: one may be the start of another
        text = text.replace(key, _MARK)
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def clean_base_url(url: str) -> str:
    """The URL in one spelling. Raises ActError for anything but an http(s) URL without credentials.

    The errors repeat no more of it than the host: what is wrong may be a key in the wrong place.
    """
    url = url.strip()
    try:
        parts = urlsplit("" if re.search(r"[\s\\]", url) else url)
        _ = parts.port  # raises ValueError where it is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ActError(
            "the base URL of the language model's server is no http(s) URL",
            todo="write it as https://host or http://host:port/path",
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ActError(
            "the base URL of the language model's server has a user name, a query or a fragment",
            where=parts.hostname,
            todo="leave credentials out of the URL; keys are taken from the environment",
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))
