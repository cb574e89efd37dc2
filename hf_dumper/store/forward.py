"""What a run writer keeps of one forward until it ends, and the tables made of it."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import torch

from hf_dumper.core.arena import Span
from hf_dumper.core.statistics import FIELDS, Statistics, describe_adjacent
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Description, Record, Tick
from hf_dumper.store.dtypes import has_statistics, tensor_at, torch_dtype
from hf_dumper.store.layout import INDEX_SCHEMA, POSITIONS_SCHEMA
from hf_dumper.store.shards import Place

_NO_STATISTICS: Final = (None,) * len(FIELDS)
_DESCRIBED: Final = {"class": "class_name"} | {
    name: name for name in Description._fields if name != "class_name"
}
"""Columns of the index and the fields of a description that they show."""

_COLUMNS: Final = [(field.name, field.type) for field in INDEX_SCHEMA]
"""As Python objects: Arrow makes new ones whenever it is asked."""


class ForwardTable:
    """Records of one forward, gathered over its batches, with their places and statistics."""

    def __init__(self, run: int, rank: int, tick: Tick, columns: "ColumnCache") -> None:
        """Begin an empty forward; `columns` is shared by the forwards of a run."""
        self.tick = tick
        self._columns = columns
        self._run = run
        self._rank = rank
        self.records: list[Record] = []
        self._places: list[Place | None] = []
        self._statistics: list[Statistics | None] = []

    def add(
        self,
        records: Sequence[Record],
        places: Sequence[Place | None],
        statistics: Sequence[Statistics | None],
    ) -> None:
        """Add the records of a batch; an alias takes the place and statistics of its owner."""
        self.records += records
        self._places += places
        self._statistics += statistics
        first = len(self.records) - len(records)
        for i, record in enumerate(records, first):
            if record.alias_of is not None:
                self._places[i] = self._places[record.alias_of]
                self._statistics[i] = self._statistics[record.alias_of]

    def index(self, calls: Sequence[tuple[int, int]]) -> pa.RecordBatch:
        """Return the rows of the index; `calls` are (seq_in, seq_out), -1 for not returned."""
        columns = self._keys() | self._records(calls) | self._location() | self._numbers()
        array = self._columns.array
        arrays = [array(name, kind, columns[name]) for name, kind in _COLUMNS]
        return pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA)

    def positions(self) -> pa.RecordBatch:
        """Return a row per token of the input; its position is null where the tick has none."""
        known = self.tick.positions
        shape = (self.tick.rows, self.tick.cols) if known is None else known.shape
        row, column = np.indices(shape, dtype=np.int32)
        arrays = [
            pa.array(np.full_like(row, self.tick.forward).ravel()),
            pa.array(row.ravel()),
            pa.array(column.ravel()),
            pa.nulls(row.size, pa.int32())
            if known is None
            else pa.array(np.ascontiguousarray(known, dtype=np.int32).ravel()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=POSITIONS_SCHEMA)

    def _keys(self) -> dict[str, Any]:
        tick, n = self.tick, len(self.records)
        values: dict[str, int | str] = {
            "run": self._run,
            "rank": self._rank,
            "forward": tick.forward,
            "token": tick.token,
            "phase": str(tick.phase),
        }
        return {name: (value,) * n for name, value in values.items()}

    def _records(self, calls: Sequence[tuple[int, int]]) -> dict[str, Any]:
        columns = zip(*self.records, strict=True) if self.records else ((),) * len(Record._fields)
        whats, numbers, indices, hashes, spans, owners, reasons = columns
        order: list[tuple[int | None, int | None]]
        order = [(start, None if end < 0 else end) for start, end in calls]
        order.append((None, None))  # call_index -1: a tensor that belongs to no module call
        return {
            **self._columns.described(whats),
            "seq_in": [order[i][0] for i in indices],
            "seq_out": [order[i][1] for i in indices],
            "call": numbers,
            "hash": hashes,
            "status": [
                STORED if span is not None else SKIPPED if owner is None else ALIASED
                for span, owner in zip(spans, owners, strict=True)
            ],
            "reason": reasons,
        }

    def _location(self) -> dict[str, Any]:
        none = (None, None, None)
        places = [none if place is None else place for place in self._places]
        columns = zip(*places, strict=True) if places else ((),) * len(none)
        return dict(zip(Place._fields, columns, strict=True))

    def _numbers(self) -> dict[str, Any]:
        n = len(self.records)
        if not any(self._statistics):
            return dict.fromkeys(FIELDS, (None,) * n)
        rows = [_NO_STATISTICS if row is None else row for row in self._statistics]
        return dict(zip(FIELDS, zip(*rows, strict=True), strict=True))


class ColumnCache:
    """Keeps the Arrow array of each column, for the next forward that has the same values.

    Decoded tokens pass the same modules with the same shapes: most columns never change.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._last: dict[str, tuple[Sequence[Any], pa.Array]] = {}
        self._tuples: tuple[Description, ...] = ()
        self._arrays: dict[str, pa.Array] = {}

    def described(self, descriptions: tuple[Description, ...]) -> dict[str, pa.Array]:
        """Return the columns that descriptions have; the same ones give the same arrays."""
        if not self._arrays or descriptions != self._tuples:
            fields = ((c, INDEX_SCHEMA.field(c).type, f) for c, f in _DESCRIBED.items())
            self._arrays = {
                column: pa.array([getattr(d, name) for d in descriptions], kind)
                for column, kind, name in fields
            }
            self._tuples = descriptions
        return self._arrays

    def array(self, name: str, kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
        """Return the values of a column as an array of that type."""
        if isinstance(values, pa.Array):
            return values
        last = self._last.get(name)
        if last is not None and last[0] == values:
            return last[1]
        array = pa.array(values, kind)
        self._last[name] = (values, array)
        return array


def describe_records(records: Sequence[Record]) -> list[Statistics | None]:
    """Return the statistics of the records that have bytes of a type with numbers.

    Tensors of one type that lie end to end in a chunk are described together, as one vector.
    """
    results: list[Statistics | None] = [None] * len(records)
    for members, first, dtype in _stretches(records):
        sizes = [records[i].what.nbytes // dtype.itemsize for i in members]
        values = tensor_at(first.chunk.memory, first.offset, dtype, (sum(sizes),))
        for i, statistics in zip(members, describe_adjacent(values, sizes), strict=True):
            results[i] = statistics
    return results


def _stretches(records: Sequence[Record]) -> Iterator[tuple[list[int], Span, torch.dtype]]:
    """Yield (indices, first span, dtype) of records whose bytes follow each other in memory."""
    members: list[int] = []
    first = last = None
    name = ""
    for i, record in enumerate(records):
        span = record.span
        if span is None or not has_statistics(record.what.dtype):
            continue
        if last is None or record.what.dtype != name or not _follows(span, last):
            if first is not None:
                yield members, first, cast("torch.dtype", torch_dtype(name))
            members, first, name = [], span, record.what.dtype
        members.append(i)
        last = span
    if first is not None:
        yield members, first, cast("torch.dtype", torch_dtype(name))


def _follows(span: Span, last: Span) -> bool:
    return span.chunk is last.chunk and span.offset == last.offset + last.nbytes
