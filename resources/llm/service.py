"""From settings to a model that can be asked: provider, keys, rate limits, memo, prices and budget
put together.

    llm = open_llm(endpoint, settings)
    results = llm.complete_all(requests)

Providers, rate limiters, memos and budgets are one per process, so that roles share limits and a
budget counts them all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from resources.errors import ActError
from resources.llm.base import LLMRequest, LLMResponse, Provider, ProviderError
from resources.llm.budget import Budget
from resources.llm.client import LLM, Memory, Mode
from resources.llm.gemini import GeminiProvider
from resources.llm.keys import GEMINI_KEYS, OPENAI_KEYS, api_keys, clean_base_url
from resources.llm.memo.memo import Memo, memo_at
from resources.llm.memo.records import Asker
from resources.llm.openai_chat import OpenAIProvider
from resources.llm.prices import EMBEDDED, OPENAI_URL, OWN_ENDPOINTS, PriceTable
from resources.llm.rate_limit import Limits, RateLimiter
from resources.llm.retry import RetrySettings
from resources.llm.runtime import call_loop

LONGEST_TIMEOUT_S = 600.0  # of a client library; a role's timeout_s ends a call before
PRICES = "ACT_PRICES"  # environment variable: a YAML file whose rows win over the shipped prices


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which model answers, where, and how fast it may be asked. `base_url` None: the provider's own; `accept_models`:
    further names that its answers may report; `max_tokens_name`: of the parameter, where not the server's usual one."""

    provider: str
    model: str
    base_url: str | None = None
    limits: Limits = field(default_factory=Limits)
    retry: RetrySettings = field(default_factory=RetrySettings)
    accept_models: tuple[str, ...] = ()
    max_tokens_name: str | None = None


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How a run makes its calls, and for whom. `since` (seconds since 1970): in mode `refresh`,
    answers older than this are asked again. A budget counts everything that was paid under
    `asker.budget`, by any process."""

    memo_folder: Path
    mode: Mode = "normal"
    since: float = 0.0
    max_cost_usd: float | None = None
    max_calls: int | None = None
    asker: Asker = field(default_factory=Asker)

    def for_asset(self, asset: str, partition: str) -> CallSettings:
        """The same, asking for an asset's partition."""
        return replace(self, asker=replace(self.asker, asset=asset, partition=partition))

    def to_json(self) -> dict[str, Any]:
        """For a training process; `from_json` reads it."""
        return {**asdict(self), "memo_folder": str(self.memo_folder)}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> CallSettings:
        return CallSettings(**{**raw, "memo_folder": Path(raw["memo_folder"]), "asker": Asker(**raw["asker"])})


ProviderFactory = Callable[[], Provider]

_lock = threading.Lock()
_limiters: dict[tuple[int, str, str, str, tuple[str, ...], str | None], tuple[list[Provider], RateLimiter]] = {}
_budgets: dict[tuple[int, Path, str, float | None, int | None], Budget] = {}


def open_llm(endpoint: Endpoint, settings: CallSettings, embedded: ProviderFactory) -> LLM:
    """The model of an endpoint, with this process's memo, limits and budget; `embedded` makes the
    built-in provider.

    Raises ActError for a base URL or a price table with mistakes, and for a budget in dollars
    without a known price.
    """
    base_url = served_at(endpoint)
    price = price_table().price(endpoint.provider, base_url, endpoint.model)
    if settings.max_cost_usd is not None and price is None:
        raise ActError(
            f"a budget in dollars needs the price of {endpoint.model}, which is not known",
            where=f"provider {endpoint.provider} at {base_url}",
            todo=f"name it in a file and set {PRICES} to its path (docs/llm-calls.md), or limit max_calls instead",
        )
    memo = memo_at(settings.memo_folder)
    with _lock:
        keys = api_keys(*key_variables(endpoint.provider))
        identity = (os.getpid(), endpoint.provider, base_url, endpoint.model, keys, endpoint.max_tokens_name)
        if identity not in _limiters:
            providers = _providers(endpoint, base_url, keys, embedded)
            _limiters[identity] = (providers, RateLimiter(providers))
        providers, limiter = _limiters[identity]
        budget = _budget(settings, memo)
    call_loop().call_soon_threadsafe(limiter.restrict, endpoint.limits)
    return LLM(
        providers,
        max_concurrency=endpoint.limits.max_concurrency,
        limiter=limiter,
        memory=Memory(
            memo,
            # The embedded provider asks nobody and costs nothing, so it may always answer.
            offline=settings.mode == "offline" and endpoint.provider != EMBEDDED,
            not_before=settings.since if settings.mode == "refresh" else 0.0,
        ),
        budget=budget,
        price=price,
        retry=endpoint.retry,
        accept_models=endpoint.accept_models,
        asker=settings.asker,
    )


def _budget(settings: CallSettings, memo: Memo) -> Budget:
    """The budget of these settings, with what other processes have spent under it so far."""
    spender, limits = settings.asker.budget, (settings.max_cost_usd, settings.max_calls)
    if limits == (None, None) or not spender:
        return Budget(*limits)
    purse = (os.getpid(), settings.memo_folder, spender, *limits)
    spent, calls = memo.spent(spender)
    if purse in _budgets:
        call_loop().call_soon_threadsafe(_budgets[purse].raise_to, spent, calls)
    else:
        _budgets[purse] = Budget(*limits, spent, calls)
    return _budgets[purse]


def served_at(endpoint: Endpoint) -> str:
    """The base URL that answers; a part of the key. "" for the embedded provider."""
    if endpoint.provider == EMBEDDED:
        return ""
    return clean_base_url(endpoint.base_url or OWN_ENDPOINTS[endpoint.provider])


def key_variables(provider: str) -> tuple[str, ...]:
    """The environment variables that may hold a provider's keys."""
    return {"gemini": GEMINI_KEYS, "openai": OPENAI_KEYS}.get(provider, ())


def price_table() -> PriceTable:
    """The shipped prices and those of ACT_PRICES."""
    chosen = os.environ.get(PRICES)
    return PriceTable.load(Path(chosen).expanduser() if chosen else None)


def _providers(endpoint: Endpoint, base_url: str, keys: tuple[str, ...], embedded: ProviderFactory) -> list[Provider]:
    """One provider for each key. Roles share them, so a role's own timeout is kept by retry.py."""
    if endpoint.provider == EMBEDDED:
        return [embedded()]
    if not keys and endpoint.provider == "openai" and base_url != OPENAI_URL:
        keys = ("EMPTY",)  # what servers without keys are given, vLLM's among them
    timeout_s = max(LONGEST_TIMEOUT_S, endpoint.retry.timeout_s)
    name = endpoint.max_tokens_name
    found: list[Provider] = [
        GeminiProvider(key, base_url=base_url, timeout_s=timeout_s)
        if endpoint.provider == "gemini"
        else OpenAIProvider(key, base_url=base_url, timeout_s=timeout_s, max_tokens_name=name)
        for key in keys
    ]
    return found or [_WithoutKey(endpoint.provider, base_url)]


class _WithoutKey:
    """Stands for a provider whose key is not set: what the memo holds needs none, a call fails at once."""

    def __init__(self, name: str, base_url: str) -> None:
        self.name, self.base_url = name, base_url

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """Raises ProviderError: there is no key."""
        variable = key_variables(self.name)[0]
        raise ProviderError("rejected", f"no key for {self.name}: set {variable} in the environment", retryable=True)

    def fingerprint(self, request: LLMRequest) -> None:
        return None
