"""`why_miss` names what differs from the nearest stored question, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.errors import ActError
from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, Sampling
from resources.llm.memo import explain as misses
from resources.llm.memo.explain import (
    KEPT,
    Explanation,
    differences,
    find_miss,
    read_question,
    record_miss,
    similarity,
    text_diff,
    visible,
    why_miss,
)
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, Asker, canonical, key_of, new_answer, question_of

SYSTEM = ChatMessage("system", "You label turns.\nAnswer with one word.\n" + "Here is an example. " * 40)
USER = ChatMessage("user", "What was the revenue in 2019?\nAnd the year before?")
REQUEST = LLMRequest(
    "classifier", "model-1", (SYSTEM, USER), Sampling(seed=7, extra={"top_k": 3, "deep": {"a": [1, 2]}}), "conv-1"
)
URL = "https://x.example"


def question(
    request: LLMRequest = REQUEST, provider: str = "openai", base_url: str = URL, fingerprint: str | None = None
) -> str:
    return question_of(provider, base_url, request, fingerprint)


def answered(request: LLMRequest = REQUEST, at: float = 100.0) -> Answer:
    response = LLMResponse("ANSWER", request.model, "stop", 10, 3, 0.25)
    answer = new_answer("openai", URL, request, question(request), response, Asker("labels", "pacific|50"), 0.5)
    return replace(answer, created_at=at)


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    made = Memo(tmp_path / "memo")
    yield made
    made.close()


@pytest.fixture(params=["in the database", "in a journal"])
def stored(request: pytest.FixtureRequest, memo: Memo) -> Memo:
    """A memo with REQUEST and many that have nothing to do with it."""
    others = [
        answered(replace(REQUEST, label=f"conv-{n}", messages=(ChatMessage("user", f"{n} is a number"),)), n)
        for n in range(2, 40)
    ]
    keep(memo, *others)
    if request.param == "in the database":
        keep(memo, answered())
    else:
        memo.append([answered()])
    return memo


def keep(memo: Memo, *answers: Answer) -> None:
    other = Memo(memo.folder)
    other.append(answers)
    other.close()


def sampled(**changed: Any) -> LLMRequest:
    return replace(REQUEST, sampling=replace(REQUEST.sampling, **changed))


# What is asked, the path, and the JSON of what was asked and of what is stored (None: absent).
CHANGES: dict[str, tuple[str, str, str | None, str | None]] = {
    "temperature": (question(sampled(temperature=0.5)), "sampling.temperature", "0.5", "0.0"),
    "another seed": (question(sampled(seed=8)), "sampling.seed", "8", "7"),
    "seed 0": (question(sampled(seed=0)), "sampling.seed", "0", "7"),
    "no seed": (question(sampled(seed=None)), "sampling.seed", None, "7"),
    "top_p": (question(sampled(top_p=0.9)), "sampling.top_p", "0.9", None),
    "max_output_tokens": (question(sampled(max_output_tokens=64)), "sampling.max_output_tokens", "64", "256"),
    "stop": (question(sampled(stop=("a", "b"))), "sampling.stop", '["a","b"]', None),
    "model": (question(replace(REQUEST, model="model-2")), "model", '"model-2"', '"model-1"'),
    "base_url": (question(base_url="https://y.example"), "base_url", '"https://y.example"', f'"{URL}"'),
    "provider": (question(provider="gemini"), "provider", '"gemini"', '"openai"'),
    "extra": (question(sampled(extra={"top_k": 4, "deep": {"a": [1, 2]}})), "extra.top_k", "4", "3"),
    "extra null": (question(sampled(extra={"top_k": None, "deep": {"a": [1, 2]}})), "extra.top_k", "null", "3"),
    "extra, deep": (question(sampled(extra={"top_k": 3, "deep": {"a": [1, 3]}})), "extra.deep.a", "[1,3]", "[1,2]"),
    "extra, added": (question(sampled(extra={**REQUEST.sampling.extra, "new": {"b": 0}})), "extra.new.b", "0", None),
    "sample_index": (question(replace(REQUEST, sample_index=2)), "sample_index", "2", "0"),
    "fingerprint": (question(fingerprint="rules 2"), "fingerprint", '"rules 2"', None),
    "an integer for a float": (
        question().replace('"temperature":0.0', '"temperature":0'),
        "sampling.temperature",
        "0",
        "0.0",
    ),
}


@pytest.mark.parametrize("known", [True, False], ids=["known asker", "unknown asker"])
@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_changed_field_is_named(stored: Memo, change: str, known: bool) -> None:
    asked, path, new, old = CHANGES[change]
    found = why_miss(stored, asked, *(("classifier", "conv-1") if known else ()))
    assert (found.held, found.empty, found.how, found.similarity) == (False, False, "same messages", 1.0)
    assert found.nearest is not None
    assert found.nearest.key == answered().key
    assert [(d.path, d.asked, d.stored, d.diff) for d in found.differences] == [(path, new, old, ())]
    shown = json.loads(json.dumps(found.to_json()))["differences"][0]
    assert shown["kind"] == ("only asked" if old is None else "only stored" if new is None else "changed")
    assert ("asked" in shown, "stored" in shown) == (new is not None, old is not None)


@pytest.mark.parametrize("known", [True, False], ids=["known asker", "unknown asker"])
def test_one_word_in_a_message(stored: Memo, known: bool) -> None:
    changed = ChatMessage("user", USER.content.replace("2019", "2018"))
    found = why_miss(
        stored, question(replace(REQUEST, messages=(SYSTEM, changed))), *(("classifier", "conv-1") if known else ())
    )
    assert found.nearest is not None
    assert found.nearest.key == answered().key
    assert found.how == ("same example" if known else "similar messages")
    assert 0.9 < found.similarity < 1
    (difference,) = found.differences
    assert difference.path == "messages.1.content"
    assert difference.diff == ("@@ line 1 @@", "- What was the revenue in 2019?", "+ What was the revenue in 2018?")


def test_a_message_more_and_another_role(stored: Memo) -> None:
    more = (*REQUEST.messages, ChatMessage("assistant", "In 2018?"))
    found = why_miss(stored, question(replace(REQUEST, messages=more)), "classifier", "conv-1")
    assert [(d.path, d.asked, d.stored) for d in found.differences] == [
        ("messages.2.content", '"In 2018?"', None),
        ("messages.2.role", '"assistant"', None),
    ]
    turned = (SYSTEM, ChatMessage("assistant", USER.content))
    found = why_miss(stored, question(replace(REQUEST, messages=turned)), "classifier", "conv-1")
    assert [(d.path, d.asked, d.stored) for d in found.differences] == [("messages.1.role", '"assistant"', '"user"')]


def test_the_fewest_differences_win_then_the_newest(memo: Memo) -> None:
    asked = sampled(temperature=0.5)
    two = replace(asked, model="model-2", sampling=replace(asked.sampling, temperature=0.6))
    one_old, one_new = sampled(temperature=0.1), sampled(temperature=0.2)
    keep(memo, answered(two, 9.0), answered(one_old, 5.0), answered(one_new, 6.0))
    for known in ((), ("classifier", "conv-1"), ("classifier", "another")):
        found = why_miss(memo, question(asked), *known)
        assert found.nearest is not None
        assert found.nearest.key == key_of(question(one_new))
        assert [d.path for d in found.differences] == ["sampling.temperature"]


def test_the_same_example_of_the_same_role_is_preferred_to_similar_messages(memo: Memo) -> None:
    def asking(role: str, label: str, text: str) -> LLMRequest:
        return replace(REQUEST, role=role, label=label, messages=(ChatMessage("user", text),))

    keep(
        memo,
        answered(asking("classifier", "conv-1", "something else entirely"), 1.0),
        answered(asking("classifier", "conv-2", "What was the revenue in 2019!"), 2.0),
        answered(asking("generator", "conv-1", "What was the revenue in 2019."), 3.0),
    )
    asked = question(asking("classifier", "conv-1", "What was the revenue in 2019?"))
    for role, label, how, expected in (
        ("classifier", "conv-1", "same example", "something else entirely"),
        ("generator", "conv-1", "same example", "What was the revenue in 2019."),
        ("", "conv-2", "same example", "What was the revenue in 2019!"),
        ("classifier", "conv-9", "similar messages", "What was the revenue in 2019."),
        ("", "", "similar messages", "What was the revenue in 2019."),
    ):
        found = why_miss(memo, asked, role, label)
        assert found.nearest is not None
        assert (found.how, json.loads(found.nearest.question)["messages"][0]["content"]) == (how, expected)


def test_a_question_that_the_memo_holds(stored: Memo) -> None:
    assert why_miss(stored, question()) == Explanation(answered().key, held=True)


def test_an_empty_memo(memo: Memo) -> None:
    assert why_miss(memo, question()) == Explanation(answered().key, empty=True)
    assert not memo.database.path.exists()


def test_a_search_that_takes_too_long_is_cut_short_and_says_so(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [replace(REQUEST, label=f"{n}", messages=(ChatMessage("user", f"{n}"),)) for n in range(10)]
    keep(memo, *(answered(r, float(n)) for n, r in enumerate(requests)))
    monkeypatch.setattr(misses, "SCAN_ROWS", 4)
    asked = question(replace(requests[0], sampling=Sampling(temperature=0.5)))
    assert why_miss(memo, asked).how == "same messages", "found in the last portion"
    monkeypatch.setattr(misses, "SEARCH_S", 0.0)
    found = why_miss(memo, asked)
    assert (found.how, found.unsearched) == ("similar messages", 10)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '"x"', '{"model": "m"}', "[" * 100_000, b"\xff\xfe{}"])
def test_a_text_that_is_no_question(text: str | bytes) -> None:
    with pytest.raises(ActError, match="a question cannot be read"):
        read_question(text)


def test_a_question_in_any_spelling() -> None:
    parsed = json.loads(question())
    for text in (question(), json.dumps(parsed, indent=3), json.dumps({"key": "x", "request": parsed})):
        assert read_question(text) == question()


def test_a_label_and_a_model_that_the_database_cannot_hold(memo: Memo) -> None:
    strange = replace(REQUEST, label="a\ud800", model="m\udfff")
    keep(memo, answered(strange))
    found = why_miss(memo, question(replace(strange, messages=(USER,))), "classifier", "a\ud800")
    assert found.how == "same example"
    assert json.loads(json.dumps(found.to_json()))["differences"]


# --- differences -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, min_size=1, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["messages", "sampling", "x"]), JSON, max_size=3), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_there_are_no_differences_only_between_equals(one: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(st.dictionaries(st.sampled_from(["messages", "sampling", "x"]), JSON, max_size=3) | st.just(one))
    assert bool(differences(one, other)) == (canonical(one) != canonical(other))
    turned = {(d.path, d.stored, d.asked) for d in differences(other, one)}
    assert turned == {(d.path, d.asked, d.stored) for d in differences(one, other)}


@settings(deadline=None)
@given(st.text(max_size=3000), st.text(max_size=3000))
def test_a_shown_difference_is_short_and_harmless(one: str, other: str) -> None:
    shown = text_diff(one, other)
    assert len(shown) <= 20
    for line in shown:
        assert line.isprintable()
        assert len(line) < 2200
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == 1


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("a\nb\nc", "a\nB\nc", ("@@ line 2 @@", "- b", "+ B")),
        ("a ", "a", ("@@ line 1 @@", "- a·", "+ a")),
        ("a", "a\n", ("@@ line 2 @@", "+ ")),
        ("a\r\n", "a\n", ("@@ line 1 @@", "- a\\r", "+ a")),
        ("a\xa0b", "a b", ("@@ line 1 @@", "- a\\xa0b", "+ a b")),
        ("\u00e9", "e\u0301", ("@@ line 1 @@", "- \\xe9", "+ e\\u0301")),
        ("\x1b[31m", "\x00", ("@@ line 1 @@", "- \\x1b[31m", "+ \\x00")),
    ],
)
def test_what_cannot_be_seen_is_shown(old: str, new: str, shown: tuple[str, ...]) -> None:
    assert text_diff(old, new) == shown


def test_long_lines_and_long_texts_are_cut_around_the_difference() -> None:
    old = "x" * 5_000 + " old " + "y" * 5_000
    shown = text_diff(old, old.replace("old", "new"))
    assert [line[:2] for line in shown] == ["@@", "- ", "+ "]
    assert " old yyy" in shown[1]
    assert " new yyy" in shown[2]
    assert max(map(len, shown)) < 180
    shown = text_diff("\n".join(map(str, range(9_000))), "\n".join(map(str, range(9_000, 20_000))))
    assert len(shown) == 18
    assert shown[-1].endswith("more lines")


def test_similarity_looks_beyond_what_all_prompts_begin_with() -> None:
    head = "The same instructions for everybody. " * 100
    asked = head + "What was the revenue in 2019?"
    near, far = head + "What was the revenue in 2018?", head + "Who wrote this table, and why?"
    assert similarity(asked, near) > similarity(asked, far)


def test_visible_texts() -> None:
    assert visible("Ünïcode 漢字 ✓") == "Ünïcode 漢字 ✓"
    assert visible("\x07\x1b\ud800\u202e") == "\\x07\\x1b\\ud800\\u202e"


# --- what was missed ---------------------------------------------------------------------------------------------


def test_a_miss_is_found_by_the_beginning_of_its_key(tmp_path: Path) -> None:
    began = time.time()
    record_miss(tmp_path, answered().key, question(), "classifier", "ü\ud800\n")
    record_miss(tmp_path, "f" * 64, "{}", "judge", "x")
    for digits in (6, 64):
        found = find_miss(tmp_path, answered().key[:digits].upper())
        assert found is not None
        assert (found.key, found.question, found.role, found.label) == (
            answered().key,
            question(),
            "classifier",
            "ü\ud800\n",
        )
        assert began <= found.at <= time.time()
    assert find_miss(tmp_path, "0" * 64) is None
    assert stat.S_IMODE((tmp_path / "missed.jsonl").stat().st_mode) == 0o600


def test_misses_that_cannot_be_told_apart(tmp_path: Path) -> None:
    assert find_miss(tmp_path, "abcdef") is None, "no file yet"
    for end in "01":
        record_miss(tmp_path, "abcdef" + end * 58, "{}", "r", "x")
    with pytest.raises(ActError, match="several keys begin with abcdef"):
        find_miss(tmp_path, "abcdef")
    with pytest.raises(ActError, match="not a key"):
        find_miss(tmp_path, "abc")


def test_the_last_thousand_are_kept(tmp_path: Path) -> None:
    keys = [f"{number:064x}" for number in range(2_345)]
    for key in keys:
        record_miss(tmp_path, key, "{}", "r", "x")
        if int(key, 16) % 200 == 0 or int(key, 16) > 2_300:
            lines = (tmp_path / "missed.jsonl").read_text().splitlines()
            assert len(lines) == min(int(key, 16) + 1, len(lines)) <= KEPT
    kept = [json.loads(line)["key"] for line in (tmp_path / "missed.jsonl").read_text().splitlines()]
    assert kept == keys[-len(kept) :]
    assert KEPT * 0.9 <= len(kept) <= KEPT


@pytest.mark.parametrize("end", [b'{"key": "0', b"\x00\xff\n", b'{"n": 5}', b"\n\n", b'"n": 1000000}\n'])
def test_a_torn_or_damaged_line_disturbs_no_other(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "missed.jsonl"
    record_miss(tmp_path, "a" * 64, "{}", "r", "x")
    with path.open("ab") as stream:
        stream.write(end)
    record_miss(tmp_path, "b" * 64, "{}", "r", "x")
    record_miss(tmp_path, "c" * 64, "{}", "r", "x")
    for letter in "abc":
        found = find_miss(tmp_path, letter * 64)
        assert found is not None
        assert found.question == "{}"


def test_a_miss_that_cannot_be_noted_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_miss(tmp_path / "gone", "a" * 64, "{}", "r", "x")
    assert "could not be noted" in caplog.text


def _miss_many(folder: Path, letter: str) -> None:
    for number in range(700):
        record_miss(folder, f"{letter}{number:063x}", '{"x":"' + letter * 300 + '"}', "r", "x")


def test_several_processes_miss_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_miss_many, args=(tmp_path, letter)) for letter in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = (tmp_path / "missed.jsonl").read_text().splitlines()
    assert KEPT * 0.9 <= len(lines) <= KEPT
    kept = [json.loads(line)["key"] for line in lines]
    assert len(set(kept)) == len(kept)
    for letter in "abc":
        mine = [key for key in kept if key[0] == letter]
        assert mine == sorted(mine)
    assert any(f"{letter}{699:063x}" == kept[-1] for letter in "abc")


def test_noting_is_cheap(tmp_path: Path) -> None:
    text = canonical({"x": "y" * 4_000})
    for _ in range(KEPT):
        record_miss(tmp_path, "a" * 64, text, "r", "x")
    began = time.monotonic()
    for _ in range(300):
        record_miss(tmp_path, "a" * 64, text, "r", "x")
    assert (time.monotonic() - began) / 300 < 0.005
