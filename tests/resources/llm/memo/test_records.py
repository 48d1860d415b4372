"""The key of a question changes with everything that can change the answer, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import ActError
from resources.llm import service
from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, Sampling
from resources.llm.memo.memo import close_memos, memo_at
from resources.llm.memo.records import (
    LATER,
    Answer,
    Asker,
    Use,
    canonical,
    from_json,
    key_of,
    new_answer,
    question_of,
    to_json,
)
from resources.llm.rate_limit import Limits
from resources.llm.retry import RetrySettings

ASKED = LLMRequest(
    "generator",
    "model-1",
    (ChatMessage("system", "Be brief."), ChatMessage("user", "How much? 5 €")),
    Sampling(0.7, 64, 0.9, 3, ("\n", "END"), {"top_k": 5, "schema": {"type": "object", "of": [1, {"deep": True}]}}),
    "example 1",
    sample_index=2,
)
PINNED = "3b1ad21b73c5f924d461ce8cda3f36244b37ca778630dce2e9fafe965b882198"


def key(
    request: LLMRequest = ASKED,
    provider: str = "gemini",
    base_url: str = "https://x.example/v1",
    fingerprint: str | None = "rules 1",
) -> str:
    return key_of(question_of(provider, base_url, request, fingerprint))


def sampled(**changes: Any) -> LLMRequest:
    return dataclasses.replace(ASKED, sampling=dataclasses.replace(ASKED.sampling, **changes))


def said(*messages: tuple[str, str]) -> LLMRequest:
    return dataclasses.replace(ASKED, messages=tuple(ChatMessage(role, text) for role, text in messages))


texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["", "\0", "😀", "\u2028", "e\u0301"])
roles = st.sampled_from(["system", "user", "assistant"])
numbers = st.none() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False, width=32) | st.booleans()
plain_json = st.recursive(
    numbers | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
# Each field with the values it can take; what a field is set to must show in the key.
FIELDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], str]]] = {
    "provider": (texts, lambda v: key(provider=v)),
    "base_url": (texts, lambda v: key(base_url=v)),
    "model": (texts, lambda v: key(dataclasses.replace(ASKED, model=v))),
    "messages": (st.lists(st.tuples(roles, texts), max_size=4), lambda v: key(said(*v))),
    "temperature": (st.floats(0, 2), lambda v: key(sampled(temperature=v))),
    "max_output_tokens": (st.integers(0, 9999), lambda v: key(sampled(max_output_tokens=v))),
    "top_p": (st.none() | st.floats(0, 1), lambda v: key(sampled(top_p=v))),
    "seed": (st.none() | st.integers(), lambda v: key(sampled(seed=v))),
    "stop": (st.lists(texts, max_size=3).map(tuple), lambda v: key(sampled(stop=v))),
    "extra": (st.dictionaries(texts, plain_json, max_size=3), lambda v: key(sampled(extra=v))),
    "sample_index": (st.integers(0, 99), lambda v: key(dataclasses.replace(ASKED, sample_index=v))),
    "fingerprint": (st.none() | texts, lambda v: key(fingerprint=v)),
}


@pytest.mark.parametrize("field", FIELDS)
def test_another_value_of_a_field_is_another_key_and_the_same_value_the_same(field: str) -> None:
    values, key_with = FIELDS[field]

    @given(values, values)
    def check(one: Any, other: Any) -> None:
        same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # 1, 1.0 and true differ in JSON
        same = same or (field in ("temperature", "top_p") and one == other)
        assert (key_with(one) == key_with(other)) == same

    check()


@given(plain_json, st.sampled_from([("schema", "of", 1, "deep"), ("schema", "type"), ("top_k",), ("new",)]))
def test_a_value_deep_inside_extra_is_part_of_the_key(value: Any, path: tuple[Any, ...]) -> None:
    changed = json.loads(json.dumps(ASKED.sampling.extra))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    before = inner.get(path[-1], "absent\udc00")
    inner[path[-1]] = value
    assert (key(sampled(extra=changed)) == key()) == (json.dumps(value) == json.dumps(before))


def test_fields_do_not_run_into_each_other() -> None:
    assert key(said(("user", "ab"))) != key(said(("user", "a"), ("user", "b")))
    assert key(provider="ab", base_url="c") != key(provider="a", base_url="bc")
    assert key(sampled(extra={"seed": 3}, seed=None)) != key(sampled(extra={}, seed=3))
    assert key(sampled(stop=("a", "b"))) != key(sampled(stop=("b", "a")))
    assert key(said(("user", "a"), ("user", "b"))) != key(said(("user", "b"), ("user", "a")))


def test_absent_null_and_zero_are_three_things() -> None:
    for one, other in (
        (sampled(top_p=None), sampled(top_p=0.0)),
        (sampled(seed=None), sampled(seed=0)),
        (sampled(extra={}), sampled(extra={"top_k": None})),
        (sampled(extra={"top_k": None}), sampled(extra={"top_k": 0})),
        (sampled(extra={"top_k": 0}), sampled(extra={"top_k": False})),
        (sampled(extra={"top_k": 0}), sampled(extra={"top_k": ""})),
    ):
        assert key(one) != key(other)
    assert len({key(fingerprint=f) for f in (None, "", "0")}) == 3


def test_whole_and_fractional_numbers_that_are_equal_ask_the_same() -> None:
    assert key(sampled(temperature=1)) == key(sampled(temperature=1.0))
    assert key(sampled(top_p=1)) == key(sampled(top_p=1.0))


@given(st.text(), st.text(), st.integers())
def test_who_asks_and_why_is_no_part_of_the_key(role: str, label: str, context: object) -> None:
    assert key(dataclasses.replace(ASKED, role=role, label=label, context=context)) == key()


@given(st.dictionaries(texts, plain_json, max_size=5), st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order(value: dict[str, Any], rng: random.Random) -> None:
    items = list(value.items())
    rng.shuffle(items)
    assert canonical(dict(items)) == canonical(value)
    assert json.loads(canonical(value)) == value
    assert canonical(value).isascii() and canonical({"b": 1, "a": [1, 2]}) == '{"a":[1,2],"b":1}'


def test_the_key_of_a_known_question_stays_what_it_is() -> None:
    # Another key means that every answer paid so far is asked for again: KEY_VERSION must then be raised.
    assert key() == PINNED
    assert key_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, b"bytes", object(), {"deep": [math.nan]}])
def test_what_is_not_plain_json_is_refused_and_the_error_says_where(bad: Any) -> None:
    with pytest.raises(ActError, match="not plain JSON") as caught:
        key(sampled(extra={"bad": bad}))
    assert "generator" in str(caught.value) and "example 1" in str(caught.value)


def test_a_temperature_that_is_no_number_is_refused() -> None:
    with pytest.raises(ActError, match="not plain JSON"):
        key(sampled(temperature=math.nan))


@given(st.text(st.characters(), max_size=20))  # lone surrogates, NUL and emoji among them
def test_every_text_can_be_asked_and_is_kept_in_the_question(text: str) -> None:
    question = question_of("gemini", "", said(("user", text)))
    assert json.loads(question)["messages"][0]["content"] == text
    assert question.isascii()


def test_transport_settings_and_keys_do_not_change_the_key(
    tmp_path: Path, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = dataclasses.replace(ASKED, sampling=Sampling())
    settings = service.CallSettings(tmp_path / "memo")
    with loopback.Loopback() as server:

        def ask(api_key: str, limits: Limits, persistence: RetrySettings) -> Any:
            monkeypatch.setattr(service, "_limiters", {})  # as in another process
            monkeypatch.setenv("OPENAI_API_KEY", api_key)
            endpoint = service.Endpoint("openai", "model-1", f"{server.url}/v1", limits, persistence)
            [answer] = service.open_llm(endpoint, settings, embedded=lambda: None).complete_all([request])
            return answer

        first = ask("key-number-one", Limits(1), RetrySettings())
        other = ask("key-number-two", Limits(9, 1000, 100_000), RetrySettings(5.0, 2, 7.0, 0.1))
        assert isinstance(first, LLMResponse) and first == other
        assert len(server.calls) == 1
        close_memos()
        assert memo_at(tmp_path / "memo").database.query("SELECT count(*), count(DISTINCT key) FROM answers") == [
            (1, 1)
        ]
        close_memos()


# --- records as JSON -------------------------------------------------------------------------------------------

ANSWER = new_answer(
    "gemini",
    "https://x.example/v1",
    ASKED,
    question_of("gemini", "https://x.example/v1", ASKED),
    LLMResponse("text\0 😀", "model-1-001", "stop", 3, 4, 0.5),
    Asker("pairs", "pacific/50", "run-1", "budget-1"),
    0.25,
)


@given(st.text(st.characters(codec="utf-8")), st.none() | st.floats(0, 9), st.integers(0, 2**60))
def test_an_answer_comes_back_as_it_was(text: str, cost: float | None, tokens: int) -> None:
    answer = dataclasses.replace(ANSWER, text=text, cost_usd=cost, prompt_tokens=tokens)
    assert from_json(json.loads(canonical(to_json(answer)))) == answer


def test_a_use_comes_back_as_it_was() -> None:
    use = Use(provider="gemini", hits=3, saved_usd=0.5, failures=1, lost_output_tokens=7)
    assert from_json(json.loads(canonical(to_json(use)))) == use


def test_what_the_database_cannot_hold_is_written_as_what_it_can() -> None:
    asked = dataclasses.replace(ASKED, label="\ud800", model="\udfff")
    response = LLMResponse("one \ud83d half", "\ud800", "stop", 10**30, 4)
    answer = new_answer("gemini", "", asked, question_of("gemini", "", asked), response, Asker("\udc00"), None)
    assert answer.stored().response().text == "one ? half"
    read = from_json(json.loads(canonical(to_json(answer))))
    assert isinstance(read, Answer)
    assert (read.text, read.label, read.model, read.reported_model, read.asset) == ("one ? half", "?", "?", "?", "?")
    assert read.prompt_tokens == 2**63 - 1


@pytest.mark.parametrize("record", [ANSWER, Use()], ids=["answer", "use"])
def test_every_malformed_record_is_a_value_error(record: Answer | Use) -> None:
    whole = to_json(record)
    assert from_json(whole) == record
    wrong: list[dict[str, Any]] = [{}, {**whole, "more": 1}, {**whole, "kind": "else"}, {**whole, "kind": None}]
    wrong += [{**whole, "kind": []}, {**whole, "kind": "use" if isinstance(record, Answer) else "answer"}]
    for name, value in whole.items():
        missing = {n: v for n, v in whole.items() if n != name}
        if name in LATER and isinstance(record, Answer):
            assert from_json(missing) == record, "older rows lack it"
        else:
            wrong.append(missing)
        others = [True, [], {}, *([1] if isinstance(value, str) else ["1"])]
        others += [None] if name != "cost_usd" else []
        others += [1.5] if isinstance(value, int) else []
        wrong += [{**whole, name: other} for other in others]
    for raw in wrong:
        with pytest.raises(ValueError):
            from_json(raw)
