"""What a run writer keeps of one forward until it ends, and the tables made of it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from hf_dumper.core.statistics import FIELDS, Statistics, describe
from hf_dumper.core.types import Record, Tick
from hf_dumper.store.dtypes import has_statistics, tensor_at, torch_dtype
from hf_dumper.store.layout import INDEX_SCHEMA, POSITIONS_SCHEMA
from hf_dumper.store.shards import Place

_NO_STATISTICS: Final = (None,) * len(FIELDS)
_SAME_NAME: Final = ("module", "slot", "param", "call", "op", "axes", "dtype", "shape", "device")


class ForwardTable:
    """Records of one forward, gathered over its batches, with their places and statistics."""

    def __init__(self, run: int, rank: int, tick: Tick) -> None:
        """Begin an empty forward."""
        self.tick = tick
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
        columns = self._keys() | self._order(calls) | self._description()
        columns |= self._location() | self._numbers()
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, field.type)
            for field in INDEX_SCHEMA
            for values in (columns[field.name],)
        ]
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
        return {
            name: pa.repeat(pa.scalar(value, INDEX_SCHEMA.field(name).type), n)
            for name, value in values.items()
        }

    def _order(self, calls: Sequence[tuple[int, int]]) -> dict[str, Any]:
        order: list[tuple[int | None, int | None]] = [
            (start, None if end < 0 else end) for start, end in calls
        ]
        order.append((None, None))  # call_index -1: a tensor that belongs to no module call
        pairs = [order[record.call_index] for record in self.records]
        return {"seq_in": [a for a, _ in pairs], "seq_out": [b for _, b in pairs]}

    def _description(self) -> dict[str, Any]:
        columns = dict(zip(Record._fields, zip(*self.records, strict=True), strict=False))
        found = {name: columns.get(name, ()) for name in (*_SAME_NAME, "nbytes", "hash")}
        rest = {"class": "class_name", "status": "status", "reason": "reason"}
        return found | {name: columns.get(field, ()) for name, field in rest.items()}

    def _location(self) -> dict[str, Any]:
        none = (None, None, None)
        places = [none if place is None else place for place in self._places]
        return {name: [p[i] for p in places] for i, name in enumerate(Place._fields)}

    def _numbers(self) -> dict[str, Any]:
        n = len(self.records)
        if not any(self._statistics):
            return {name: pa.nulls(n, INDEX_SCHEMA.field(name).type) for name in FIELDS}
        rows = [_NO_STATISTICS if row is None else row for row in self._statistics]
        return dict(zip(FIELDS, zip(*rows, strict=True), strict=True))


def describe_records(records: Sequence[Record]) -> list[Statistics | None]:
    """Return the statistics of the records that have bytes of a type with numbers."""
    results: list[Statistics | None] = [None] * len(records)
    wanted, tensors = [], []
    for i, record in enumerate(records):
        dtype = torch_dtype(record.dtype)
        if record.span is not None and dtype is not None and has_statistics(record.dtype):
            wanted.append(i)
            memory, offset = record.span.chunk.memory, record.span.offset
            tensors.append(tensor_at(memory, offset, dtype, record.shape))
    for i, statistics in zip(wanted, describe(tensors), strict=True):
        results[i] = statistics
    return results
