"""Exports in the published code's formats, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Action, ContextBlock, Conversation, Message, PreferencePair, Reference, Turn
from act_assets.release.exports import messages_rows, preference_rows, write_jsonl
from act_assets.tasks.base import Task
from resources.errors import ActError

CONTEXT = [("text", "Sales rose."), ("text", "Costs fell."), ("table", " : 2019 | 2018"), ("table", "Sales : 5 | 4")]
CONVERSATION = Conversation(
    "pacific",
    "t-1",
    tuple(ContextBlock(kind, text, text.startswith(" :")) for kind, text in CONTEXT),
    (
        Turn("q-1", "What were the sales?", "2019?", Reference("Which year?"), "CLARIFY"),
        Turn("q-2", "2019", "2019?", Reference("5 (in millions)"), "ANSWER"),
    ),
)
SAID = [("system", "[context]\nSales rose."), ("user", "Sales?"), ("assistant", "Which year?"), ("user", "2019")]
PROMPT = tuple(Message(role, text) for role, text in SAID)
PAIR = PreferencePair("pacific", "t-1", "q-2", "ANSWER", "CLARIFY", PROMPT, "5 (in millions)", "Which?", "5 (goal)")


def test_a_conversation_is_one_list_of_messages_with_three_roles(pacific: Task) -> None:
    (row,) = messages_rows(pacific, [CONVERSATION])
    system = row["messages"][0]["content"]
    assert system.endswith("\n[context]\nSales rose. Costs fell.\n[data]\n : 2019 | 2018\nSales : 5 | 4")
    assert row == {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": "What were the sales?"},
            {"role": "model", "content": "Which year?", "requires_clarification": True},
            {"role": "user", "content": "2019"},
            {"role": "model", "content": "5 (in millions)", "requires_clarification": False},
        ]
    }


def test_what_was_said_before_comes_first_and_says_nothing_of_actions(pacific: Task) -> None:
    before = (Message("user", "Who is it?"), Message("assistant", "A baker."))
    (row,) = messages_rows(pacific, [replace(CONVERSATION, history=before)])
    (plain,) = messages_rows(pacific, [CONVERSATION])
    said = [{"role": "user", "content": "Who is it?"}, {"role": "model", "content": "A baker."}]
    assert row["messages"] == [plain["messages"][0], *said, *plain["messages"][1:]]


def test_whatever_leaves_a_request_open_requires_clarification(pacific: Task) -> None:
    task = replace(pacific, actions=(Action("HINT", False, "hints"), Action("DECLINE", True, "declines")))
    turns = tuple(replace(t, action=a) for t, a in zip(CONVERSATION.turns, ("HINT", "DECLINE"), strict=True))
    (row,) = messages_rows(task, [replace(CONVERSATION, turns=turns)])
    assert [m["requires_clarification"] for m in row["messages"] if m["role"] == "model"] == [True, False]


def test_a_pair_is_nine_strings_whose_trajectory_is_the_goal() -> None:
    (row,) = preference_rows([PAIR])
    assert row == {
        "input_text": "[context]\nSales rose.\nUser: Sales?\nAssistant: Which year?\nUser: 2019",
        "output_text": "5 (in millions)",
        "chosen": "5 (in millions)",
        "rejected": "Which?",
        "gold_target": "5 (in millions)",
        "gold_trajectory": "5 (goal)",
        "dialogue_policy": "ANSWER",
        "chosen_policy": "ANSWER",
        "rejected_policy": "CLARIFY",
    }


def test_a_line_is_one_json_object_in_plain_unicode_and_replaces_an_earlier_export(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "£5\n–\u2028"}, {"text": ""}]
    path = tmp_path / "new" / "folder" / "out.jsonl"
    write_jsonl(path, [{"n": n} for n in range(9)])
    assert write_jsonl(path, rows) == 2
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""
    assert "£5" in lines[0]
    assert [p.name for p in path.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("bad", [{"n": float("nan")}, {"n": object()}], ids=["nan", "no json"])
def test_an_export_that_fails_half_way_leaves_the_earlier_one(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("earlier\n")

    def rows() -> Iterator[dict[str, Any]]:
        yield {"n": 0}
        assert path.read_text() == "earlier\n", "nothing is seen before all is written"
        yield bad

    with pytest.raises((ValueError, TypeError)):
        write_jsonl(path, rows())
    assert path.read_text() == "earlier\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("where", ["file/out.jsonl", "folder"])
def test_a_path_that_cannot_be_written_is_a_typed_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(ActError) as caught:
        write_jsonl(tmp_path / where, [{"n": 0}])
    assert caught.value.where == str(tmp_path / where)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}, "nothing half-written is left"
