"""Records as Parquet rows: what was written is what is read, or a message that says why not."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_assets import conversation
from act_assets.conversation import Conversation, IntentSummary, Message, Trajectory, Turn, TurnState
from act_assets.evaluation.evaluate import EvaluatedTurn
from act_assets.evaluation.leaderboard import LeaderboardRow
from act_assets.rows import count_rows, read_rows, write_rows
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint
from resources.errors import DataError

RECORDS: list[Any] = [
    *(r for r in vars(conversation).values() if isinstance(r, type) and dataclasses.is_dataclass(r)),
    EvaluatedTurn,
    LeaderboardRow,
    Rollout,
    TrainingPoint,
]
assert {Conversation, Turn, TurnState, Trajectory, IntentSummary, Message} <= set(RECORDS)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may hold."""
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{f.name: values(get_type_hints(hint)[f.name]) for f in dataclasses.fields(hint)})
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(args[0])
    scalars = {
        str: st.text(max_size=20),
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
    }
    return scalars[hint]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda r: r.__name__)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rows_come_back_the_same_and_from_the_same_bytes(kind: Any, data: st.DataObject, tmp_path: Path) -> None:
    rows = data.draw(st.lists(values(kind), max_size=3))
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    assert write_rows(first, rows, kind) == len(rows)
    back = read_rows(first, kind)
    assert back == rows
    write_rows(second, back, kind)
    assert first.read_bytes() == second.read_bytes()


def test_real_conversations_come_back_the_same(tmp_path: Path, every_conversation: list[Conversation]) -> None:
    write_rows(tmp_path / "c.parquet", every_conversation, Conversation)
    assert read_rows(tmp_path / "c.parquet", Conversation) == every_conversation


def record(title: str, **fields: Any) -> Any:
    return dataclasses.make_dataclass(title, list(fields.items()), frozen=True)


REPLY = record("Reply", text=str, score=float)
EXCHANGE = record("Exchange", name=str, replies=tuple[REPLY, ...])
OTHERS = {
    "another column": record("OtherColumn", name=str, other=str),
    "another type": record("OtherType", name=int, replies=tuple[REPLY, ...]),
    "another inside": record("Inside", name=str, replies=tuple[record("Longer", text=str, score=float, more=str), ...]),
    "of the project": IntentSummary,
}


def test_nothing_and_empty_are_told_apart(tmp_path: Path) -> None:
    kind = record("Record", text=str | None, many=tuple[str, ...] | None)
    rows = [kind(None, None), kind("", ()), kind("\x00\N{PILE OF POO}e\u0301\u202e", ("", "\n"))]
    write_rows(tmp_path / "r.parquet", rows, kind)
    assert read_rows(tmp_path / "r.parquet", kind) == rows


@pytest.mark.parametrize("asked", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("rows", [[], [EXCHANGE("a", (REPLY("b", 0.0),))]], ids=["empty", "one row"])
def test_a_file_of_another_shape_is_refused_even_when_empty(tmp_path: Path, rows: list[Any], asked: Any) -> None:
    path = tmp_path / "rows.parquet"
    assert write_rows(path, rows, EXCHANGE) == len(rows) == count_rows(path)
    with pytest.raises(DataError, match=asked.__name__) as caught:
        read_rows(path, asked)
    assert caught.value.where == str(path)
    assert caught.value.todo


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda p: p.write_bytes(p.read_bytes()[:-20]),
        lambda p: p.write_text("{}"),
        lambda p: p.write_bytes(b""),
    ],
    ids=["missing", "truncated", "something else", "empty"],
)
def test_an_unreadable_file_is_a_message_with_its_path(tmp_path: Path, harm: Any) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, [IntentSummary("t", "c", "i", "s")], IntentSummary)
    harm(path)
    with pytest.raises(DataError) as caught:
        read_rows(path, IntentSummary)
    assert caught.value.where == str(path)


def test_a_field_that_parquet_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    loose = record("Loose", anything=dict)
    with pytest.raises(TypeError, match="no Parquet type"):
        write_rows(tmp_path / "l.parquet", [loose({})], loose)
    assert not (tmp_path / "l.parquet").exists()
