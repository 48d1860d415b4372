"""Malformed official files of every task: each is refused with the file, the item, and what to do."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from act_assets.tasks import get_task
from act_assets.tasks.ambig_sql.spider import database_names, plain_database, read_spider
from act_assets.tasks.base import TaskData
from resources.errors import DataError

Item = dict[str, Any]
DROP: Any = object()  # in place of a value: the key goes


def finance_question(uid: str, text: str, answer: object, answer_type: str = "span", **more: object) -> Item:
    return {
        "uid": uid,
        "question": text,
        "original_question": text,
        "answer": answer,
        "derivation": "",
        "answer_type": answer_type,
        "scale": "",
        "req_clari": answer_type == "question",
        **more,
    }


def page(number: int, *questions: Item) -> Item:
    return {
        "table": {"uid": f"t-{number}", "table": [["", "2019"], ["Sales", "5"]]},
        "paragraphs": [{"order": 1, "text": "Sales rose."}],
        "questions": list(questions),
    }


def story(item_id: str, **more: object) -> Item:
    return {
        "id": item_id,
        "story": "Ann had a red kite. Ben had a blue one.",
        "target_turn": {"question": "What colour was it?", "answer": "red"},
        "history_turns": [{"question": "Who had a kite?", "answer": "Ann and Ben"}],
        "ambiguity": "non_ambiguous",
        "clarification_turn": {},
        **more,
    }


def schema(db_id: str) -> Item:
    return {
        "db_id": db_id,
        "table_names_original": ["Singer", "In_Band"],
        "table_names": ["singer", "in band"],
        "column_names_original": [[-1, "*"], [0, "Id"], [0, "Name"], [1, "Singer_Id"], [1, "Band"]],
        "column_names": [[-1, "*"], [0, "id"], [0, "name"], [1, "singer id"], [1, "band"]],
        "column_types": ["text", "number", "text", "number", "text"],
        "primary_keys": [1, [3, 4]],
        "foreign_keys": [[3, 1]],
    }


def sql_question(db_id: str, **more: object) -> Item:
    return {"db_id": db_id, "question": " How  many singers?\n", "query": " SELECT count(*) FROM Singer", **more}


AMBIGUOUS = story(
    "s-3",
    ambiguity="ambiguous",
    clarification_turn={
        "question": "Do you mean Ann's?",
        "answers": [
            {"clr_ans": "Yes.", "org_ans": "Red.", "org_ans_2": "red", "org_ans_3": " "},
            {"clr_ans": "No, Ben's.", "org_ans": "Blue."},
        ],
    },
    clarification_turn_2={"question": "Whose kite?"},
)
SOUND: dict[str, dict[str, Any]] = {
    "pacific": {
        "train.json": [
            page(1, finance_question("q-1", "What were the sales?", ["5"], order="x", new_key={})),
            page(
                2,
                finance_question("q-2", "What were the costs?", ["Which year?"], "question"),
                finance_question("q-3", "2018", 3, "arithmetic", derivation="5 - 2", scale="million"),
            ),
        ],
        "validation.json": [page(3, finance_question("q-4", "And now?", ["5"]))],
    },
    "abg_coqa": {
        "coqa_abg_train.json": {"version": "1.0", "data": [story("s-1"), story("s-2", history_turns=[])]},
        "coqa_abg_val.json": {"data": [AMBIGUOUS]},
        "coqa_abg_test.json": {"data": [story("s-4")]},
    },
    "ambig_sql": {
        "tables.json": [schema("one"), schema("two")],
        "train_spider.json": [sql_question("one", sql={"from": 1}), sql_question("one", question="Who?")],
        "dev.json": [sql_question("two")],
    },
}
FILES = [(task, name) for task, files in SOUND.items() for name in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for files in SOUND.values():
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
    for db_id in ("one", "two"):
        (tmp_path / "database" / db_id).mkdir(parents=True)
        with closing(sqlite3.connect(tmp_path / "database" / db_id / f"{db_id}.sqlite")) as connection:
            connection.execute("CREATE TABLE Singer (Id, Name)")
    return tmp_path


def read(task: str, folder: Path) -> TaskData:
    return get_task(task).reader.read(folder)


def refusal(task: str, folder: Path, where: str | None = None) -> DataError:
    """The error, of the file and item that `where` names."""
    with pytest.raises(DataError) as caught:
        read(task, folder)
    assert caught.value.todo and (where is None or caught.value.where == where), caught.value.where
    return caught.value


def change(folder: Path, task: str, name: str, spoil: Callable[[Any], object]) -> None:
    content = copy.deepcopy(SOUND[task][name])
    spoil(content)
    (folder / name).write_text(json.dumps(content))


def test_the_sound_files_are_read(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    pacific = read("pacific", folder)
    assert [t.action for c in pacific.train for t in c.turns] == ["ANSWER", "CLARIFY", "ANSWER"]
    assert pacific.train[1].turns[1].response.text == "5 - 2 = 3 (in millions)"
    clear, _ = read("abg_coqa", folder).train
    (ambiguous,) = read("abg_coqa", folder).validation
    first, second = ambiguous.turns[0].readings
    assert ambiguous.turns[0].response.alternatives == ("Whose kite?",)
    assert (first.goal.alternatives, second.goal.alternatives) == (("red",), ())
    assert second.clear_request == "What colour was it? Do you mean Ann's? No, Ben's."
    assert clear.group_id == ambiguous.group_id
    spider = read_spider(folder)
    assert [(q.question, q.query) for q in spider.dev] == [("How many singers?", "SELECT count(*) FROM Singer")]
    assert spider.schemas["one"].text.splitlines() == [
        "Singer (Id number primary key, Name text)",
        "In_Band (Singer_Id number, Band text; primary key (Singer_Id, Band); Singer_Id -> Singer.Id)",
    ]
    change(folder, "ambig_sql", "tables.json", lambda s: s[0].update(primary_keys=[1, 3, 4]))  # the other form of keys
    assert read_spider(folder).schemas["one"] == spider.schemas["one"]
    change(folder, "ambig_sql", "tables.json", lambda _: None)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before, "a database is not written to"


@pytest.mark.parametrize(("task", "name"), FILES)
@pytest.mark.parametrize(
    "content", [b"", b"[{", b"\xff\xfe[]", b"\xef\xbb\xbf[]", b"{}", b"[]", b"null", b'"text"', b'{"items": []}']
)
def test_a_file_that_is_no_list_of_items_is_refused(folder: Path, task: str, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refusal(task, folder, f"task {task}, {folder / name}")


@pytest.mark.parametrize(("task", "name"), FILES)
def test_a_missing_or_truncated_file_is_refused(folder: Path, task: str, name: str) -> None:
    packed = folder / f"{name}.gz"
    packed.write_bytes(gzip.compress((folder / name).read_bytes())[:-9])
    (folder / name).unlink()
    refusal(task, folder, str(packed))
    packed.unlink()
    assert name in refusal(task, folder, f"task {task}, folder {folder}").what


TEXTS = (DROP, 5)
NO_ITEMS = (None, 3, "text", [], ["id"])
# (task, file, the item's place, where the error is): {a key below: the values that are refused}
FAULTS: dict[tuple[str, str, tuple[Any, ...], str], dict[tuple[Any, ...], tuple[Any, ...]]] = {
    ("pacific", "train.json", (1,), "item 2"): {
        (): NO_ITEMS,
        ("table",): (DROP,),
        ("table", "uid"): (DROP, 7),
        ("table", "table"): (DROP, 7, ["ab"], [["a", 1]]),
        ("paragraphs",): (DROP, "text"),
        ("paragraphs", 0, "text"): (DROP, None),
        ("paragraphs", 0, "order"): (DROP, "first"),
        ("questions",): (DROP, {}, []),
    },
    ("pacific", "train.json", (1, "questions", 1), "item 2 (t-2), question q-3"): {
        **{(key,): TEXTS for key in ("question", "original_question", "derivation")},
        ("answer_type",): (*TEXTS, "essay"),
        ("scale",): (*TEXTS, "dozen"),
        ("req_clari",): (DROP, True, "false", 0, None),
        ("answer",): ("3", True, DROP, None),
        (): (
            {"answer_type": "question", "answer": ["Which?"]},
            {"answer_type": "span", "answer": "3"},
            {"answer_type": "span", "answer": [3]},
            {"answer_type": "multi-span", "answer": []},
            {"answer_type": "count", "answer": ["3"]},
        ),
    },
    ("pacific", "train.json", (1, "questions", 1), "item 2 (t-2), question ?"): {(): NO_ITEMS, ("uid",): (DROP,)},
    ("pacific", "train.json", (1, "questions", 1), "item 2, question q-2"): {(): (DROP,)},  # a clarification is last
    ("abg_coqa", "coqa_abg_train.json", ("data", 1), "item 2 (?)"): {(): NO_ITEMS, ("id",): (DROP,)},
    ("abg_coqa", "coqa_abg_train.json", ("data", 0), "item 1 (s-1)"): {
        ("story",): (DROP, 5, " \n"),
        ("target_turn",): (DROP, "What?"),
        ("target_turn", "question"): (DROP, ""),
        ("target_turn", "answer"): (DROP, "", None),
        ("history_turns",): (DROP, {}, ["a"]),
        ("history_turns", 0, "question"): (DROP,),
        ("history_turns", 0, "answer"): (DROP, " "),
        ("ambiguity",): (DROP, 5, "perhaps"),
        ("clarification_turn",): (DROP, None),
        ("clarification_turn_2",): ({"question": "Whose?"},),
    },
    ("abg_coqa", "coqa_abg_val.json", ("data", 0), "item 1 (s-3)"): {
        ("ambiguity",): ("non_ambiguous",),
        ("clarification_turn",): ({},),
        ("clarification_turn", "question"): (DROP, " "),
        ("clarification_turn", "answers"): (DROP, [], {}),
        ("clarification_turn_2",): ("Whose?", {"answers": []}),
        ("clarification_turn", "answers", 1, "clr_ans"): (DROP, None, 3),
        ("clarification_turn", "answers", 0, "org_ans"): (DROP, " "),
        ("clarification_turn", "answers", 0, "org_ans_2"): (3,),
    },
    ("ambig_sql", "train_spider.json", (1,), "item 2"): {
        (): NO_ITEMS,
        ("db_id",): (*TEXTS, "three", "../one"),
        ("question",): (*TEXTS, " \n"),
        ("query",): (*TEXTS, ""),
    },
    ("ambig_sql", "dev.json", (0,), "item 1"): {("db_id",): ("one",)},  # it has questions on the other side
    ("ambig_sql", "tables.json", (1,), "item 2 (?)"): {(): NO_ITEMS, ("db_id",): (DROP,)},
    ("ambig_sql", "tables.json", (1,), "item 2 (7)"): {("db_id",): (7,)},
    ("ambig_sql", "tables.json", (1,), "item 2 (one)"): {("db_id",): ("one",)},
    ("ambig_sql", "tables.json", (1,), "item 2 (two)"): {
        **{(key,): (DROP, "x") for key in schema("x") if key != "db_id"},
        ("table_names",): (["singer", 1], ["singer"]),
        ("table_names_original",): (["Singer", " "],),
        (): ({"table_names_original": [], "table_names": []},),
        ("column_types",): (["text"], ["text", "big int", "text", "text", "text"]),
        ("column_names",): ([[-1, "*"]], ["*"], [[True, "x"]], [[0, ""]]),
        ("column_names_original", 1): ([2, "Id"],),
        ("column_names_original", 0): ([-2, "*"],),
        ("primary_keys",): ([5], [[1, 9]], [0], [-1], ["Id"]),
        ("foreign_keys",): ([[3, 8]], [[3, 1, 2]], [3]),
    },
}


def faults() -> Iterator[Any]:
    for (task, name, place, where), spoilt in FAULTS.items():
        for below, values in spoilt.items():
            for value in values:
                shown = "missing" if value is DROP else json.dumps(value)
                label = f"{task} {name} {'.'.join(map(str, (*place, *below)))} {shown}"
                yield pytest.param(task, name, (*place, *below), value, where, id=label)


@pytest.mark.parametrize(("task", "name", "path", "value", "where"), faults())
def test_a_malformed_item_is_refused_by_its_place(
    folder: Path, task: str, name: str, path: tuple[Any, ...], value: object, where: str
) -> None:
    def spoil(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is DROP:
            del content[path[-1]]
        elif isinstance(value, dict) and value and path[-1] in (0, 1):
            content[path[-1]].update(value)
        else:
            content[path[-1]] = value

    change(folder, task, name, spoil)
    refusal(task, folder, f"task {task}, {folder / name}, {where}")


@pytest.mark.parametrize("number", [0, 1], ids=["of another item", "of the same item"])
def test_a_uid_used_twice_is_refused(folder: Path, number: int) -> None:
    uid = SOUND["pacific"]["train.json"][number]["questions"][0]["uid"]
    change(folder, "pacific", "train.json", lambda items: items[1]["questions"][1].update(uid=uid))
    assert uid in refusal("pacific", folder, f"task pacific, {folder / 'train.json'}").what


@pytest.mark.parametrize(
    ("task", "name", "spoil"),
    [
        ("pacific", "validation.json", lambda items: items[0]["table"].update(uid="t-1")),
        ("abg_coqa", "coqa_abg_test.json", lambda content: content["data"][0].update(id="s-1")),
    ],
)
def test_an_item_on_two_sides_is_refused(folder: Path, task: str, name: str, spoil: Callable[[Any], object]) -> None:
    change(folder, task, name, spoil)
    error = refusal(task, folder)
    assert str(folder / name) in error.where and next(iter(SOUND[task])) in error.what, "both files are named"


def test_an_item_that_stands_twice_in_a_file_is_refused(folder: Path) -> None:
    change(folder, "abg_coqa", "coqa_abg_train.json", lambda content: content["data"][1].update(id="s-1"))
    refusal("abg_coqa", folder, f"task abg_coqa, {folder / 'coqa_abg_train.json'}, item 2 (s-1)")


def test_the_official_test_file_is_recognised(folder: Path) -> None:
    def spoil(items: list[Item]) -> None:
        for q in (q for item in items for q in item["questions"]):
            for key in set(q) - {"uid", "question", "original_question"}:
                del q[key]

    change(folder, "pacific", "train.json", spoil)
    error = refusal("pacific", folder, f"task pacific, {folder / 'train.json'}, item 1 (t-1), question q-1")
    assert "test.json" in error.what and "train.json" in error.todo


def test_a_missing_database_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "database" / "two")
    assert "database/two/two.sqlite" in refusal("ambig_sql", folder).what
    assert "database/two/two.sqlite" in database_names(folder)
    with pytest.raises(DataError), plain_database(folder, "two"):
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one.sqlite", b""),
        ("one.sqlite", b"CREATE TABLE t (a)"),
        ("one.sqlite", b"SQLite format 3\0 and nothing"),
        ("one.sqlite.gz", b"no gz"),
        ("one.sqlite.gz", gzip.compress(b"no database", mtime=0)),
    ],
)
def test_a_file_that_is_no_database_is_refused(folder: Path, name: str, content: bytes) -> None:
    place = folder / "database" / "one"
    (place / "one.sqlite").unlink()
    (place / name).write_bytes(content)
    refusal("ambig_sql", folder, f"task ambig_sql, {place / name}")
