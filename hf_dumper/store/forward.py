"""What a run writer keeps of one forward until it ends, and the tables made of it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_dumper.core.statistics import COUNTS, FIELDS, NONE
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Description, Records, Tick
from hf_dumper.store.layout import INDEX_SCHEMA, POSITIONS_SCHEMA
from hf_dumper.store.shards import Places

_DESCRIBED: Final = {"class": "class_name"} | {
    name: name for name in Description._fields if name != "class_name"
}
"""Columns of the index and the fields of a description that they show."""

_TYPES: Final = {field.name: field.type for field in INDEX_SCHEMA}
"""As Python objects: Arrow makes new ones whenever it is asked."""


class ForwardTable:
    """Records of one forward, gathered over its batches, with their places and statistics."""

    def __init__(self, run: int, rank: int, tick: Tick, columns: "ColumnCache") -> None:
        """Begin an empty forward; `columns` is shared by the forwards of a run."""
        self.tick = tick
        self._run = run
        self._rank = rank
        self._cache = columns
        self._what: list[Description] = []
        self._call: list[int] = []
        self._call_index: list[int] = []
        self._hash: list[int | None] = []
        self._alias_of: list[int | None] = []
        self._places = Places([], [], [])
        self._statistics: list[NDArray[np.void]] = []

    def add(self, records: Records, places: Places, statistics: NDArray[np.void] | None) -> None:
        """Add the records of a batch; an alias without a place takes that of its owner."""
        first = len(self._what)
        self._what += records.what
        self._call += records.call
        self._call_index += records.call_index
        self._hash += records.hash
        self._alias_of += records.alias_of
        aliases = [
            (i, owner) for i, owner in enumerate(records.alias_of, first) if owner is not None
        ]
        columns: zip[tuple[list[Any], list[Any]]] = zip(self._places, places, strict=True)
        for column, more in columns:
            column += more
            for i, owner in aliases:
                column[i] = column[owner] if column[i] is None else column[i]
        if statistics is not None:
            self._statistics.append(statistics)

    def counts(self) -> dict[str, int]:
        """Return the number of records by status."""
        skipped = sum(1 for what in self._what if what.reason)
        aliased = len(self._alias_of) - self._alias_of.count(None)
        stored = len(self._what) - skipped - aliased
        return {STORED: stored, ALIASED: aliased, SKIPPED: skipped}

    def index(self, calls: Sequence[Sequence[int]]) -> pa.RecordBatch:
        """Return the rows of the index; `calls` are (seq_in, seq_out), -1 for not returned."""
        columns = self._keys() | self._order(calls) | self._location() | self._numbers()
        columns |= self._cache.described(tuple(self._what))
        arrays = [self._cache.array(name, columns[name]) for name in _TYPES]
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
        tick, n = self.tick, len(self._what)
        values: dict[str, int | str] = {
            "run": self._run,
            "rank": self._rank,
            "forward": tick.forward,
            "token": tick.token,
            "phase": str(tick.phase),
        }
        return {name: (value,) * n for name, value in values.items()}

    def _order(self, calls: Sequence[Sequence[int]]) -> dict[str, Any]:
        # Index -1 finds the last row: a tensor that belongs to no module call.
        order = np.array([*calls, (-1, -1)], np.int64)[self._call_index]
        return {
            "seq_in": _nullable(order[:, 0], order[:, 0] < 0),
            "seq_out": _nullable(order[:, 1], order[:, 1] < 0),
            "call": tuple(self._call),
        }

    def _location(self) -> dict[str, Any]:
        status = tuple(
            SKIPPED if what.reason else STORED if owner is None else ALIASED
            for what, owner in zip(self._what, self._alias_of, strict=True)
        )
        return {"hash": self._hash, "status": status, **self._places._asdict()}

    def _numbers(self) -> dict[str, Any]:
        if not self._statistics:
            return dict.fromkeys(FIELDS, (None,) * len(self._what))
        table = np.concatenate(self._statistics)
        table = table[[i if owner is None else owner for i, owner in enumerate(self._alias_of)]]
        absent = table["count"] == NONE
        return {
            name: _nullable(column, absent if name in COUNTS else absent | np.isnan(column))
            for name, column in ((name, np.ascontiguousarray(table[name])) for name in FIELDS)
        }


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
            self._arrays = {
                column: pa.array([getattr(d, name) for d in descriptions], _TYPES[column])
                for column, name in _DESCRIBED.items()
            }
            self._tuples = descriptions
        return self._arrays

    def array(self, name: str, values: Sequence[Any]) -> pa.Array:
        """Return the values of a column as an array of its type."""
        if isinstance(values, pa.Array):
            return values
        last = self._last.get(name)
        if last is not None and last[0] == values:
            return last[1]
        array = pa.array(values, _TYPES[name])
        self._last[name] = (values, array)
        return array


def _nullable(values: NDArray[Any], is_null: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, mask=is_null if is_null.any() else None)
