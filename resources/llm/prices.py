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
from resources.llm.models import DATE_SUFFIX

SHIPPED = Path(__file__).with_name("prices.yaml")
GEMINI_URL = "https://generativelanguage.googleapis.com"
OPENAI_URL = "https://api.openai.com/v1"
OWN_ENDPOINTS = {"gemini": GEMINI_URL, "openai": OPENAI_URL}
EMBEDDED = "embedded"  # the provider that runs in this process


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, with the page and the day that they were listed."""

    input: float
    output: float
    as_of: datetime.date | None = None
    source: str = ""
    cached_input: float | None = None  # None: as other input
    since: datetime.date = datetime.date.min  # the day from which it holds

    def cost(self, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """US dollars for a call; `cached_tokens` are a part of the prompt's, reasoning tokens are output tokens."""
        cached = min(cached_tokens, prompt_tokens) if self.cached_input is not None else 0
        prompt = (prompt_tokens - cached) * self.input + cached * (self.cached_input or 0.0)
        return (prompt + output_tokens * self.output) / 1e6


FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by provider, base URL and model. Another server at another URL charges something else, so a price holds
    at one URL only."""

    rows: Mapping[tuple[str, str, str], tuple[Price, ...]]  # of one model by the day from which they hold

    @classmethod
    def load(cls, override: Path | None = None) -> PriceTable:
        """The shipped prices, then those of `override`, which win. Raises ActError with all mistakes of a file."""
        return cls({**_read(SHIPPED), **(_read(override) if override is not None else {})})

    def price(self, provider: str, base_url: str, model: str, on: datetime.date | None = None) -> Price | None:
        """The price on a day (default: today) of the row for exactly this model, else of the longest name that it only
        adds a date to."""
        if provider == EMBEDDED:
            return FREE
        url = _same_url(base_url)
        names = (model[:end] for end in range(len(model), 0, -1) if end == len(model) or model[end] == "-")
        for name in names:
            found = self.rows.get((provider, url, name))
            if found and (name == model or DATE_SUFFIX.fullmatch(model, len(name))):
                today = on or datetime.datetime.now(datetime.UTC).date()
                return next((price for price in reversed(found) if price.since <= today), None)
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
    cached_input: Dollars | None = None
    as_of: datetime.date
    since: datetime.date = datetime.date.min
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


def _read(path: Path) -> dict[tuple[str, str, str], tuple[Price, ...]]:
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
    prices: dict[tuple[str, str, str], tuple[Price, ...]] = {}
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
        others = prices.get(row.key, ())
        if any(price.since == row.since for price in others):
            mistakes.append(f"{name}: there is a row for this provider, base_url and model before")
        price = Price(row.input, row.output, row.as_of, row.source, row.cached_input, row.since)
        prices[row.key] = tuple(sorted((*others, price), key=lambda p: p.since))
    if mistakes:
        raise ActError(
            all_mistakes("the price file", mistakes),
            where=str(path),
            todo="fix all of them, then run again",
        )
    return prices
