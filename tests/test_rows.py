"""Records as Parquet rows: what was written is what is read, or a message that says why not."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act_assets import conversation
from act_assets.conversation import Conversation, IntentSummary, Message, Trajectory, Turn, TurnState
from act_assets.evaluation.evaluate import EvaluatedTurn
from act_assets.evaluation.leaderboard import LeaderboardRow
from act_assets.rows import read_rows, schema_of, write_rows
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


def test_the_records_of_the_conversation_module_are_among_those_tested() -> None:
    assert {Conversation, Turn, TurnState, Trajectory, IntentSummary, Message} <= set(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rows_come_back_the_same_and_from_the_same_bytes(record: Any, data: st.DataObject, tmp_path: Path) -> None:
    rows = data.draw(st.lists(values(record), max_size=3))
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    assert write_rows(first, rows, record) == len(rows)
    back = read_rows(first, record)
    assert back == rows
    write_rows(second, back, record)
    assert first.read_bytes() == second.read_bytes()


def test_nothing_and_empty_are_told_apart(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Record:
        text: str | None
        many: tuple[str, ...] | None

    rows = [Record(None, None), Record("", ()), Record("\x00\N{PILE OF POO}e\u0301\u202e", ("", "\n"))]
    write_rows(tmp_path / "r.parquet", rows, Record)
    assert read_rows(tmp_path / "r.parquet", Record) == rows


def test_real_conversations_come_back_the_same(tmp_path: Path, every_conversation: list[Conversation]) -> None:
    write_rows(tmp_path / "c.parquet", every_conversation, Conversation)
    assert read_rows(tmp_path / "c.parquet", Conversation) == every_conversation


@dataclass(frozen=True)
class Reply:
    text: str
    score: float = 0.0


@dataclass(frozen=True)
class Exchange:
    name: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class OtherColumns:
    name: str
    other: str


@dataclass(frozen=True)
class OtherType:
    name: int
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class LongerReply:
    text: str
    score: float
    language: str


@dataclass(frozen=True)
class OtherInside:
    name: str
    replies: tuple[LongerReply, ...]


@pytest.mark.parametrize("asked", [OtherColumns, OtherType, OtherInside, IntentSummary], ids=lambda r: r.__name__)
@pytest.mark.parametrize("rows", [[], [Exchange("a", (Reply("b"),))]], ids=["empty", "one row"])
def test_a_file_of_another_shape_is_refused_even_when_empty(tmp_path: Path, rows: list[Exchange], asked: Any) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, rows, Exchange)
    with pytest.raises(DataError) as caught:
        read_rows(path, asked)
    assert asked.__name__ in str(caught.value)
    assert str(path) in str(caught.value)
    assert "delete the artifact's folder" in caught.value.todo


def _missing(path: Path) -> None:
    path.unlink()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _something_else(path: Path) -> None:
    path.write_text('{"name": "a"}')


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [_missing, _truncated, _something_else, _empty])
def test_an_unreadable_file_is_a_message_with_its_path(tmp_path: Path, harm: Any) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, [IntentSummary("t", "c", "i", "s")], IntentSummary)
    harm(path)
    with pytest.raises(DataError, match=r"cannot read rows\.parquet") as caught:
        read_rows(path, IntentSummary)
    assert str(path) in str(caught.value)


def test_a_field_that_parquet_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Loose:
        anything: dict

    with pytest.raises(TypeError, match="no Parquet type"):
        schema_of(Loose)
    with pytest.raises(TypeError):
        write_rows(tmp_path / "l.parquet", [Loose({})], Loose)
    assert not (tmp_path / "l.parquet").exists()
