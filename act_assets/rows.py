"""Frozen records as Parquet rows: the schema comes from the record's type hints, so reading gives back the same
records and a file of another shape is refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from resources.errors import DataError

T = TypeVar("T")

_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _arrow_type(type(args[0]))
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return pa.list_(_arrow_type(args[0]))
    if origin in (Union, types.UnionType):
        (inner,) = [a for a in args if a is not type(None)]
        return _arrow_type(inner)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return pa.struct([pa.field(n, _arrow_type(h)) for n, h in _hints(hint).items()])
    raise TypeError(f"no Parquet type for {hint!r}")


@cache
def _hints(record_type: Any) -> dict[str, Any]:
    hints = get_type_hints(record_type)
    return {f.name: hints[f.name] for f in dataclasses.fields(record_type)}


def _restore(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return tuple(_restore(args[0], v) for v in value)
    if origin in (Union, types.UnionType):
        (inner,) = [a for a in args if a is not type(None)]
        return _restore(inner, value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint(**{n: _restore(h, value[n]) for n, h in _hints(hint).items()})
    return value


def schema_of(record_type: type) -> pa.Schema:
    """The Arrow schema of a record type."""
    return pa.schema([pa.field(n, _arrow_type(h)) for n, h in _hints(record_type).items()])


def write_rows(path: Path, rows: Iterable[T], record_type: type[T]) -> int:
    """Writes records as one Parquet file; the same records give the same bytes. Returns their number."""
    table = pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], schema=schema_of(record_type))  # type: ignore[call-overload]
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return int(table.num_rows)


def count_rows(path: Path) -> int:
    """How many records a file holds, without reading them."""
    return int(pq.read_metadata(path).num_rows)


def read_rows(path: Path, record_type: type[T]) -> list[T]:
    """Reads records back. Raises DataError where the file is unreadable or of another shape."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read {path.name}: {error}", where=str(path), todo="delete the artifact's folder and run again"
        ) from error
    hints = _hints(typing.cast(Any, record_type))
    if not table.schema.equals(schema_of(record_type)):
        raise DataError(
            f"{path.name} does not hold {record_type.__name__} rows: columns {sorted(table.column_names)}",
            where=str(path),
            todo="it was written by another version; delete the artifact's folder and run again",
        )
    return [record_type(**{n: _restore(h, row[n]) for n, h in hints.items()}) for row in table.to_pylist()]
