"""What a call costs: the shipped list of prices (`prices.yaml`), and a file of your own on top of it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from resources.errors import ActError, all_mistakes, mistake_of

SHIPPED = Path(__file__).with_name("prices.yaml")
GEMINI_URL = "https://generativelanguage.googleapis.com"
OPENAI_URL = "https://api.openai.com/v1"
OWN_ENDPOINTS = {"gemini": GEMINI_URL, "openai": OPENAI_URL}
EMBEDDED = "embedded"  # the provider that runs in this process
# -2024-08-06, -001, -20250514. Not -preview-05-06, nor one digit or two: those are other models, with other prices.
_DATE_SUFFIX = re.compile(r"-\d{3,}(-\d+)*")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, with the page and the day that they were listed."""

    input: float
    output: float
    as_of: datetime.date | None = None
    source: str = ""

    def cost(self, prompt_tokens: int, output_tokens: int) -> float:
        """US dollars for a call; reasoning tokens are output tokens."""
        return (prompt_tokens * self.input + output_tokens * self.output) / 1e6


FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by provider, base URL and model. Another server at another URL charges something else, so a price holds
    at one URL only."""

    rows: Mapping[tuple[str, str, str], Price]

    @classmethod
    def load(cls, override: Path | None = None) -> PriceTable:
        """The shipped prices, then those of `override`, which win. Raises ActError with all mistakes of a file."""
        return cls({**_read(SHIPPED), **(_read(override) if override is not None else {})})

    def price(self, provider: str, base_url: str, model: str) -> Price | None:
        """The price of the row for exactly this model, else of the longest name that it only adds a date to."""
        if provider == EMBEDDED:
            return FREE
        url = _same_url(base_url)
        names = (model[:end] for end in range(len(model), 0, -1) if end == len(model) or model[end] == "-")
        for name in names:
            found = self.rows.get((provider, url, name))
            if found is not None and (name == model or _DATE_SUFFIX.fullmatch(model, len(name))):
                return found
        return None


def _same_url(url: str) -> str:
    """One spelling of a base URL: the case of the host and a slash at the end make no difference."""
    parts = urlsplit(url.strip())
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


Dollars = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    provider: Text
    model: Text
    input: Dollars
    output: Dollars
    as_of: datetime.date
    source: Text
    base_url: Annotated[str | None, Field(validate_default=True)] = None

    @field_validator("provider")
    @classmethod
    def _costs(cls, provider: str) -> str:
        if provider == EMBEDDED:
            raise ValueError("the embedded provider costs nothing and takes no price")
        return provider

    @field_validator("base_url")
    @classmethod
    def _somewhere(cls, url: str | None, info: ValidationInfo) -> str | None:
        provider = info.data.get("provider")  # None where it is a mistake itself
        if url is None and provider is not None and provider not in OWN_ENDPOINTS:
            raise ValueError(f"needed: only {' and '.join(OWN_ENDPOINTS)} have an endpoint of their own")
        if url is not None and not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url.strip()):
            raise ValueError("a URL like https://host/v1 is needed")
        return url

    @property
    def key(self) -> tuple[str, str, str]:
        return self.provider, _same_url(self.base_url or OWN_ENDPOINTS[self.provider]), self.model


def _read(path: Path) -> dict[tuple[str, str, str], Price]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ActError(
            f"the price file cannot be read: {error.strerror}",
            where=str(path),
            todo="set the environment variable ACT_PRICES to a price file, or unset it",
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        raise ActError(f"the price file is not valid YAML: {error}", where=str(path), todo="fix the file") from error
    if not isinstance(content, list):
        raise ActError(
            "the price file holds no list of prices",
            where=str(path),
            todo="write rows like '- {provider: openai, model: gpt-4o, input: 2.5, output: 10, as_of: 2026-09-29, "
            "source: the page, base_url: only for a server of your own}'",
        )
    mistakes: list[str] = []
    prices: dict[tuple[str, str, str], Price] = {}
    for number, given in enumerate(content, 1):
        if not isinstance(given, dict):
            mistakes.append(f"row {number}: not a row with keys (given: {given!r})")
            continue
        name = f"row {number} ({given.get('provider', '?')} {given.get('model', '?')})"
        try:
            row = _Row.model_validate(given)
        except ValidationError as error:
            mistakes += [f"{name}: {mistake_of(e)}" for e in error.errors()]
            continue
        if row.key in prices:
            mistakes.append(f"{name}: there is a row for this provider, base_url and model before")
        prices[row.key] = Price(row.input, row.output, row.as_of, row.source)
    if mistakes:
        raise ActError(
            all_mistakes("the price file", mistakes),
            where=str(path),
            todo="fix all of them, then run again",
        )
    return prices
