"""From settings to a model: keys in turn, shared limits, prices, and what needs no key at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import asking

from resources.errors import ActError
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse
from resources.llm.client import LLM
from resources.llm.memo.memo import close_memos
from resources.llm.rate_limit import Limits
from resources.llm.service import CallSettings, Endpoint, open_llm

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CallSettings]:
    monkeypatch.delenv("ACT_PRICES", raising=False)
    yield CallSettings(tmp_path / "memo")
    close_memos()


def requests(number: int) -> list[LLMRequest]:
    return asking(*(f"question {i}" for i in range(number)))


def opened(settings: CallSettings, server: Any, *limits: int, provider: str = "openai") -> LLM:
    url = server.url if provider == "gemini" else f"{server.url}/v1"
    return open_llm(Endpoint(provider, "m", url, Limits(*limits)), settings, no_embedded)


def no_embedded() -> Any:
    raise AssertionError("not asked for")


def test_several_keys_are_used_in_turn(loopback: Any, settings: CallSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEYS", "first-key-of-two second-key-of-two")
    with loopback.Loopback() as server:
        llm = opened(settings, server, 8, provider="gemini")
        results = llm.complete_all(requests(40))
        keys = [call.request.key for call in server.calls]
    assert all(isinstance(r, LLMResponse) for r in results)
    assert {keys.count(k) for k in ("first-key-of-two", "second-key-of-two")} == {20}


@pytest.mark.parametrize("kind", ["429", "401", "insufficient-quota"])
def test_while_one_key_waits_or_once_it_is_refused_the_other_is_used(
    loopback: Any, settings: CallSettings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEYS", "tired-key-0001, fresh-key-0002")

    def plan(number: int, request: Any) -> Any:
        tired = request.key == "tired-key-0001"
        return loopback.Behaviour(kind, retry_after_s=600) if tired else loopback.Behaviour()

    with loopback.Loopback(plan) as server:
        results = opened(settings, server, 4).complete_all(requests(30))
        refused = [call for call in server.calls if call.answered == kind]
        early = [call for call in server.calls if call.early]
    assert all(isinstance(r, LLMResponse) for r in results)
    assert 1 <= len(refused) <= 4 and len(early) < 4, "only what was on its way"


def test_without_any_good_key_the_providers_message_is_given(
    loopback: Any, settings: CallSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-0001")
    with loopback.Loopback(loopback.always("401", message="this key is not known")) as server:
        llm = opened(settings, server, 1)
        first, second = llm.complete_all(requests(2))
        assert len(server.calls) == 1, "a refused key is not tried again"
    assert isinstance(first, LLMFailure) and "this key is not known" in first.message
    assert isinstance(second, LLMFailure) and second.kind == "rejected"


def test_no_key_is_no_mistake_until_something_has_to_be_asked(
    loopback: Any, settings: CallSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loopback.Loopback() as server:
        monkeypatch.setenv("GEMINI_API_KEY", "a-key-of-mine")
        paid = opened(settings, server, provider="gemini").complete_all(requests(5))
        monkeypatch.delenv("GEMINI_API_KEY")
        monkeypatch.setattr("resources.llm.service._limiters", {})  # as another process without a key
        llm = opened(settings, server, provider="gemini")
        assert llm.complete_all(requests(5)) == paid and llm.usage.hits == 5
        (failure,) = llm.complete_all(requests(6))[5:]
    assert isinstance(failure, LLMFailure)
    assert (failure.kind, failure.retryable) == ("rejected", True)
    assert "GEMINI_API_KEY" in failure.message


def test_a_server_of_ones_own_needs_no_key(loopback: Any, settings: CallSettings) -> None:
    with loopback.Loopback() as server:
        llm = open_llm(Endpoint("openai", "m", f"{server.url}/v1/"), settings, no_embedded)
        (answer,) = llm.complete_all(requests(1))
    assert isinstance(answer, LLMResponse)
    assert llm.usage.cost_usd == 0 and llm.sender.price is None, "its price is not known, and not taken for nothing"


def test_roles_of_one_endpoint_share_its_limits(loopback: Any, settings: CallSettings) -> None:
    with loopback.Loopback(loopback.always(latency_s=0.02)) as server:
        one = opened(settings, server, 2)
        two = opened(settings, server, 4, 900)
        assert one.sender.limiter is two.sender.limiter
        one.complete_all(requests(12))
        assert server.max_concurrency == 2, "a role keeps to its own bound"
        assert two.sender.limiter.limits == Limits(4, 900, None)


def test_costs_are_those_of_the_price_table(settings: CallSettings) -> None:
    llm = open_llm(Endpoint("gemini", "gemini-2.5-flash"), settings, no_embedded)
    assert llm.sender.price is not None
    assert llm.sender.cost(1_000_000, 0) == pytest.approx(llm.sender.price.input)


def test_dollars_cannot_bound_what_has_no_price(tmp_path: Path) -> None:
    with pytest.raises(ActError, match="price of m") as error:
        open_llm(Endpoint("openai", "m", "http://127.0.0.1:9"), CallSettings(tmp_path, max_cost_usd=1.0), no_embedded)
    assert "ACT_PRICES" in error.value.todo
    close_memos()


def test_settings_travel_to_a_training_process(tmp_path: Path) -> None:
    settings = CallSettings(tmp_path, "refresh", 12.5, 3.0, 7).for_asset("act_checkpoint", "pacific|50")
    assert CallSettings.from_json(settings.to_json()) == settings
