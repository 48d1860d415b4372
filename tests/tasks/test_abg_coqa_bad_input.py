"""Malformed Abg-CoQA files: each is refused with the file, the item, its id, and what to do."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act_assets.tasks.abg_coqa.task import AbgCoqaReader, read_file
from resources.errors import DataError

Item = dict[str, Any]

CLEAR: Item = {
    "id": "s-1|4|1",
    "story": "Ann had a red kite. Ben had a blue one.",
    "target_turn": {"turn_id": 4, "question": "What colour was Ann's kite?", "answer": "red"},
    "history_turns": [{"turn_id": 3, "question": "Who had a kite?", "answer": "Ann and Ben"}],
    "ambiguity": "non_ambiguous",
    "clarification_turn": {},
    "source": "invented",
}
AMBIGUOUS: Item = {
    **copy.deepcopy(CLEAR),
    "id": "s-1|5|1",
    "target_turn": {"turn_id": 5, "question": "What colour was it?", "answer": "red"},
    "ambiguity": "ambiguous",
    "clarification_turn": {
        "question": "Do you mean Ann's?",
        "answers": [
            {"clr_ans": "Yes.", "org_ans": "Red.", "org_ans_2": "red", "org_ans_3": " "},
            {"clr_ans": "No, Ben's.", "org_ans": "Blue."},
        ],
    },
    "clarification_turn_2": {"question": "Whose kite?", "answers": [{"clr_ans": "Ann's", "org_ans": "red"}]},
}


def write(path: Path, *items: object) -> Path:
    path.write_text(json.dumps({"version": "1.0", "data": items}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coqa_abg_train.json"


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(path) in caught.value.where, "the file is named"
    assert caught.value.todo, "what to do is said"
    return caught.value


def spoilt(path: Path, item: Item, spoil: Callable[[Item], object]) -> DataError:
    """How a file is refused whose second item is spoilt; the error names that item."""
    other = {**copy.deepcopy(CLEAR), "id": "s-0|1|1"}
    item = copy.deepcopy(item)
    spoil(item)
    error = refusal(write(path, other, item))
    assert error.where == f"task abg_coqa, {path}, item 2 ({item.get('id', '?')})"
    assert "mend this item" in error.todo
    return error


def test_the_sound_file_is_read(path: Path):
    clear, ambiguous = read_file(write(path, CLEAR, AMBIGUOUS))
    assert clear.turns[0].action == "ANSWER"
    first, second = ambiguous.turns[0].readings
    assert ambiguous.turns[0].response.alternatives == ("Whose kite?",)
    assert (first.goal.alternatives, second.goal.alternatives) == (("red",), ())
    assert second.clear_request == "What colour was it? Do you mean Ann's? No, Ben's."
    assert clear.group_id == ambiguous.group_id


def test_keys_that_are_not_used_may_be_missing_or_strange(path: Path):
    item = copy.deepcopy(AMBIGUOUS)
    for key in ("source", "clarification_turn_2"):
        item.pop(key)
    item["target_turn"]["turn_id"] = "x"
    item["history_turns"] = []
    (conversation,) = read_file(write(path, item))
    assert conversation.turns[0].response.alternatives == ()
    assert conversation.history == ()


@pytest.mark.parametrize("end", [0, 1, 300, -1])
def test_truncated_json_is_refused(path: Path, end: int):
    path.write_text(json.dumps({"data": [CLEAR, AMBIGUOUS]})[:end])
    error = refusal(path)
    assert "cannot be read" in str(error)
    assert "fetch" in error.todo


def test_truncated_gz_is_refused(tmp_path: Path):
    packed = tmp_path / "coqa_abg_val.json.gz"
    packed.write_bytes(gzip.compress(json.dumps({"data": [CLEAR]}).encode())[:-12])
    assert "cannot be read" in str(refusal(packed))


def test_other_encodings_are_refused(path: Path):
    path.write_bytes(b"\xff\xfe{}")
    assert "cannot be read" in str(refusal(path))


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '"text"', "3", '{"data": []}', '{"data": {}}', '{"data": null}', '[{"id": "a"}]']
)
def test_another_top_level_is_refused(path: Path, content: str):
    path.write_text(content)
    error = refusal(path)
    assert "no list of items" in str(error)
    assert "task abg_coqa" in error.where


@pytest.mark.parametrize("item", [None, 3, "text", [], ["id"]])
def test_an_item_that_is_no_mapping_is_refused_by_its_number(path: Path, item: object):
    error = refusal(write(path, CLEAR, item))
    assert "an item must be a mapping" in str(error)
    assert "item 2 (?)" in error.where


def drop(*keys: str) -> Callable[[Item], object]:
    """Without the last of the keys, which lead there."""

    def spoil(item: Item) -> None:
        inside: Any = item
        for key in keys[:-1]:
            inside = inside[int(key) if key.isdigit() else key]
        inside.pop(keys[-1])

    return spoil


def put(value: object, *keys: str) -> Callable[[Item], object]:
    def spoil(item: Item) -> None:
        inside: Any = item
        for key in keys[:-1]:
            inside = inside[int(key) if key.isdigit() else key]
        inside[keys[-1]] = value

    return spoil


ANSWERS = ("clarification_turn", "answers")
FAULTS: dict[str, tuple[Item, Callable[[Item], object], str]] = {
    **{
        f"no {key}": (CLEAR, drop(key), f"missing key '{key}'")
        for key in ("id", "story", "target_turn", "history_turns", "ambiguity", "clarification_turn")
    },
    **{f"no target {key}": (CLEAR, drop("target_turn", key), f"missing key '{key}'") for key in ("question", "answer")},
    **{
        f"no earlier {key}": (CLEAR, drop("history_turns", "0", key), f"missing key '{key}'")
        for key in ("question", "answer")
    },
    **{
        f"{key} is a number": (CLEAR, put(5, key), f"'{key}' must be a string, not 5")
        for key in ("id", "story", "ambiguity")
    },
    **{f"blank {key}": (CLEAR, put(" \n", key), f"'{key}' is blank") for key in ("id", "story")},
    **{
        f"blank target {key}": (CLEAR, put("", "target_turn", key), f"'{key}' is blank")
        for key in ("question", "answer")
    },
    "blank earlier answer": (CLEAR, put(" ", "history_turns", "0", "answer"), "'answer' is blank"),
    "target is a text": (CLEAR, put("What?", "target_turn"), "'target_turn' must be a mapping, not 'What?'"),
    "history is a mapping": (CLEAR, put({}, "history_turns"), "'history_turns' must be a list of mappings, not {}"),
    "history of texts": (CLEAR, put(["a"], "history_turns"), "'history_turns' must be a list of mappings"),
    "answer is null": (CLEAR, put(None, "target_turn", "answer"), "'answer' must be a string, not None"),
    "another ambiguity": (
        CLEAR,
        put("perhaps", "ambiguity"),
        "'ambiguity' must be 'ambiguous' or 'non_ambiguous', not 'perhaps'",
    ),
    "clarification is null": (
        CLEAR,
        put(None, "clarification_turn"),
        "'clarification_turn' must be a mapping, not None",
    ),
    "clear with clarification": (
        AMBIGUOUS,
        put("non_ambiguous", "ambiguity"),
        "a clarification in an item that is not ambiguous",
    ),
    "clear with a second clarification": (
        CLEAR,
        put({"question": "Whose?"}, "clarification_turn_2"),
        "a clarification in an item that is not ambiguous",
    ),
    "ambiguous without clarification": (
        AMBIGUOUS,
        put({}, "clarification_turn"),
        "an ambiguous item without clarification",
    ),
    "ambiguous without answers": (AMBIGUOUS, put([], *ANSWERS), "an ambiguous item without answers"),
    "no answers": (AMBIGUOUS, drop(*ANSWERS), "missing key 'answers'"),
    "answers are a mapping": (AMBIGUOUS, put({}, *ANSWERS), "'answers' must be a list of mappings"),
    "no clarifying question": (AMBIGUOUS, drop("clarification_turn", "question"), "missing key 'question'"),
    "blank clarifying question": (AMBIGUOUS, put(" ", "clarification_turn", "question"), "'question' is blank"),
    "no second question": (AMBIGUOUS, drop("clarification_turn_2", "question"), "missing key 'question'"),
    "second is a text": (AMBIGUOUS, put("Whose?", "clarification_turn_2"), "'clarification_turn_2' must be a mapping"),
    "no clr_ans": (
        AMBIGUOUS,
        drop(*ANSWERS, "1", "clr_ans"),
        "an answer without clarification: answer 2 has no 'clr_ans'",
    ),
    "no org_ans": (
        AMBIGUOUS,
        drop(*ANSWERS, "0", "org_ans"),
        "an answer without clarification: answer 1 has no 'org_ans'",
    ),
    "clr_ans is null": (AMBIGUOUS, put(None, *ANSWERS, "0", "clr_ans"), "an answer without clarification: answer 1"),
    "blank org_ans": (AMBIGUOUS, put(" ", *ANSWERS, "0", "org_ans"), "'org_ans' is blank"),
    "clr_ans is a number": (AMBIGUOUS, put(3, *ANSWERS, "0", "clr_ans"), "'clr_ans' must be a string, not 3"),
    "org_ans_2 is a number": (AMBIGUOUS, put(3, *ANSWERS, "0", "org_ans_2"), "'org_ans_2' must be a string, not 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_item_is_refused_by_its_number_and_id(path: Path, fault: str):
    item, spoil, said = FAULTS[fault]
    assert said in str(spoilt(path, item, spoil))


def test_an_id_used_twice_in_a_file_is_refused(path: Path):
    assert "an earlier item has the same id" in str(spoilt(path, CLEAR, put("s-0|1|1", "id")))


def test_an_id_on_two_sides_is_refused(tmp_path: Path):
    for name, number in zip(AbgCoqaReader.files, (1, 2, 1), strict=True):
        write(tmp_path / name, {**CLEAR, "id": f"s-1|{number}|1"})
    with pytest.raises(DataError, match=r"stands twice: in coqa_abg_train\.json and in coqa_abg_test\.json") as caught:
        AbgCoqaReader().read(tmp_path)
    assert caught.value.where == f"task abg_coqa, {tmp_path / 'coqa_abg_test.json'}, item 1 (s-1|1|1)"
    assert caught.value.todo


def test_a_missing_file_is_refused_by_the_reader(tmp_path: Path):
    write(tmp_path / "coqa_abg_train.json", CLEAR)
    with pytest.raises(DataError, match=r"coqa_abg_val\.json is missing"):
        AbgCoqaReader().read(tmp_path)
