"""Malformed PACIFIC files: each is refused with the file, the item, the question, and what to do."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act_assets.tasks.base import Task
from act_assets.tasks.pacific.task import read_file
from resources.errors import DataError

Item = dict[str, Any]


def question(uid: str, text: str, answer: object, answer_type: str = "span", **more: object) -> Item:
    return {
        "uid": uid,
        "order": 1,
        "question": text,
        "original_question": text,
        "answer": answer,
        "derivation": "",
        "answer_type": answer_type,
        "answer_from": "table",
        "scale": "",
        "req_clari": answer_type == "question",
        **more,
    }


SOUND: list[Item] = [
    {
        "table": {"uid": "t-1", "table": [["", "2019"], ["Sales", "5"]]},
        "paragraphs": [{"uid": "p-1", "order": 1, "text": "Sales rose."}],
        "questions": [question("q-1", "What were the sales?", ["5"])],
    },
    {
        "table": {"uid": "t-2", "table": [["", "2018"], ["Costs", "3"]]},
        "paragraphs": [{"uid": "p-2", "order": 1, "text": "Costs fell."}],
        "questions": [
            question("q-2", "What were the costs?", ["Which year?"], "question"),
            question("q-3", "2018", 3, "arithmetic", derivation="5 - 2", scale="million"),
        ],
    },
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.json"


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(path) in caught.value.where, "the file is named"
    assert caught.value.todo, "what to do is said"
    return caught.value


def spoilt(path: Path, spoil: Callable[[list[Item]], object]) -> DataError:
    """How the sound file is refused after one change to its second item or third question."""
    items = copy.deepcopy(SOUND)
    spoil(items)
    path.write_text(json.dumps(items))
    return refusal(path)


def test_the_sound_file_is_read(path: Path) -> None:
    path.write_text(json.dumps(SOUND))
    first, second = read_file(path)
    assert [t.action for t in (*first.turns, *second.turns)] == ["ANSWER", "CLARIFY", "ANSWER"]
    assert second.turns[1].response.text == "5 - 2 = 3 (in millions)"


@pytest.mark.parametrize("end", [0, 1, 300, -1])
def test_truncated_json_is_refused(path: Path, end: int) -> None:
    path.write_text(json.dumps(SOUND)[:end])
    error = refusal(path)
    assert "cannot be read" in str(error)
    assert "fetch the official file again" in error.todo


def test_truncated_gz_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "train.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(SOUND).encode())[:-12])
    assert "fetch it again" in refusal(packed).todo


@pytest.mark.parametrize("content", [b"\xff\xfe[]", b"\xef\xbb\xbf[]"])
def test_other_encodings_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cannot be read" in str(refusal(path))


@pytest.mark.parametrize("content", ["{}", "[]", "null", '"text"', "3", '{"items": []}'])
def test_a_file_that_is_no_list_of_items_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    error = refusal(path)
    assert "no list of items" in str(error)
    assert "task pacific" in error.where


def test_a_missing_file_is_refused_by_the_reader(tmp_path: Path, pacific: Task) -> None:
    (tmp_path / "train.json").write_text(json.dumps(SOUND))
    with pytest.raises(DataError, match=r"validation\.json is missing"):
        pacific.reader.read(tmp_path)


ITEM_FAULTS: dict[str, tuple[Callable[[Item], object], str]] = {
    "no table": (lambda i: i.pop("table"), "missing key 'table'"),
    "no table uid": (lambda i: i["table"].pop("uid"), "missing key 'uid'"),
    "no rows": (lambda i: i["table"].pop("table"), "missing key 'table'"),
    "no paragraphs": (lambda i: i.pop("paragraphs"), "missing key 'paragraphs'"),
    "no paragraph text": (lambda i: i["paragraphs"][0].pop("text"), "missing key 'text'"),
    "no paragraph order": (lambda i: i["paragraphs"][0].pop("order"), "missing key 'order'"),
    "no questions": (lambda i: i.pop("questions"), "missing key 'questions'"),
    "numeric table uid": (lambda i: i["table"].update(uid=7), "'uid' must be a string, not 7"),
    "rows are a number": (lambda i: i["table"].update(table=7), "malformed"),
    "a row is a text": (lambda i: i["table"].update(table=["ab"]), "a table row must be a list of strings, not 'ab'"),
    "a cell is a number": (lambda i: i["table"].update(table=[["a", 1]]), "a table row must be a list of strings"),
    "paragraphs are a text": (lambda i: i.update(paragraphs="text"), "malformed"),
    "a paragraph is no text": (lambda i: i["paragraphs"][0].update(text=None), "'text' must be a string, not None"),
    "an order is a word": (lambda i: i["paragraphs"][0].update(order="first"), "malformed"),
    "questions are a mapping": (lambda i: i.update(questions={}), "'questions' must be a list that is not empty"),
    "questions are empty": (lambda i: i.update(questions=[]), "'questions' must be a list that is not empty"),
}


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_a_malformed_item_is_refused_by_its_number(path: Path, fault: str) -> None:
    spoil, said = ITEM_FAULTS[fault]
    error = spoilt(path, lambda items: spoil(items[1]))
    assert said in str(error)
    assert "item 2" in error.where
    assert "mend this item" in error.todo


@pytest.mark.parametrize("item", [None, 3, "text", [], ["table"]])
def test_an_item_that_is_no_mapping_is_refused_by_its_number(path: Path, item: object) -> None:
    error = spoilt(path, lambda items: items.append(item))
    assert "malformed" in str(error)
    assert "item 3" in error.where


def drop(key: str) -> Callable[[Item], object]:
    return lambda q: q.pop(key)


def put(**values: object) -> Callable[[Item], object]:
    return lambda q: q.update(values)


QUESTION_FAULTS: dict[str, tuple[Callable[[Item], object], str]] = {
    **{
        f"no {key}": (drop(key), f"missing key '{key}'")
        for key in ("question", "original_question", "answer_type", "scale", "derivation", "req_clari")
    },
    **{
        f"{key} is a number": (put(**{key: 5}), f"'{key}' must be a string, not 5")
        for key in ("question", "original_question", "answer_type", "scale", "derivation")
    },
    "unknown answer_type": (put(answer_type="essay"), "unknown answer_type 'essay'"),
    "unknown scale": (put(scale="dozen"), "unknown scale 'dozen'"),
    "clarifies but answers": (put(req_clari=True), "req_clari True contradicts answer_type 'arithmetic'"),
    "asks but does not clarify": (
        put(answer_type="question", answer=["Which?"]),
        "req_clari False contradicts answer_type 'question'",
    ),
    "req_clari is a word": (put(req_clari="false"), "req_clari 'false' contradicts"),
    "req_clari is a number": (put(req_clari=0), "req_clari 0 contradicts"),
    "req_clari is null": (put(req_clari=None), "req_clari None contradicts"),
    "arithmetic text": (put(answer="3"), "an arithmetic answer must be a number, not '3'"),
    "arithmetic truth": (put(answer=True), "an arithmetic answer must be a number, not True"),
    "span text": (put(answer_type="span", answer="3"), "a span answer must be a list of strings, not '3'"),
    "span of numbers": (put(answer_type="span", answer=[3]), "a span answer must be a list of strings, not [3]"),
    "empty span": (put(answer_type="multi-span", answer=[]), "a multi-span answer must be a list of strings, not []"),
    "count of many": (put(answer_type="count", answer=["3"]), "a count must be a string or a number, not ['3']"),
}


@pytest.mark.parametrize("fault", QUESTION_FAULTS)
def test_a_malformed_question_is_refused_by_its_id(path: Path, fault: str) -> None:
    spoil, said = QUESTION_FAULTS[fault]
    error = spoilt(path, lambda items: spoil(items[1]["questions"][1]))
    assert said in str(error)
    assert error.where == f"task pacific, {path}, item 2 (t-2), question q-3"
    assert "mend this question" in error.todo


@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_question_that_is_no_mapping_is_refused(path: Path, value: object) -> None:
    error = spoilt(path, lambda items: items[1]["questions"].insert(0, value))
    assert "item 2 (t-2), question ?" in error.where


def test_a_question_without_uid_is_refused(path: Path) -> None:
    error = spoilt(path, lambda items: items[1]["questions"][1].pop("uid"))
    assert "missing key 'uid'" in str(error)
    assert "item 2 (t-2), question ?" in error.where


def test_a_clarification_in_last_place_is_refused(path: Path) -> None:
    error = spoilt(path, lambda items: items[1]["questions"].pop())
    assert "a clarifying question in last place" in str(error)
    assert error.where == f"task pacific, {path}, item 2, question q-2"
    assert "remove the last question of this item" in error.todo


@pytest.mark.parametrize("number", [0, 1], ids=["of another item", "of the same item"])
def test_a_uid_used_twice_is_refused(path: Path, number: int) -> None:
    uid = SOUND[number]["questions"][0]["uid"]
    error = spoilt(path, lambda items: items[1]["questions"][1].update(uid=uid))
    assert f"two questions share the uid {uid}" in str(error)


def without_answers(items: list[Item]) -> None:
    for item in items:
        item["questions"] = [
            {key: q[key] for key in ("uid", "question", "original_question", "order")} for q in item["questions"]
        ]


@pytest.mark.parametrize(
    "spoil", [without_answers, lambda items: items[0]["questions"][0].update(answer=None)], ids=["absent", "null"]
)
def test_the_official_test_file_is_recognised(path: Path, spoil: Callable[[list[Item]], object]) -> None:
    error = spoilt(path, spoil)
    assert "looks like the official test.json" in str(error)
    assert error.where == f"task pacific, {path}, item 1 (t-1), question q-1"
    assert "use the official train.json and validation.json" in error.todo


def test_keys_that_are_not_used_may_be_missing_or_strange(path: Path) -> None:
    items = copy.deepcopy(SOUND)
    items[0]["questions"][0].update(order="x", answer_from=None, new_key={})
    path.write_text(json.dumps(items))
    assert len(read_file(path)) == 2
