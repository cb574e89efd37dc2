"""Statistics of stored tensors, where the capture made none."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from hf_dumper.core.statistics import COUNTS, FIELDS, NONE, TABLE, describe_adjacent
from hf_dumper.store.dtypes import has_statistics, torch_dtype
from hf_dumper.store.lookup import Row

_PIECE: Final = 24
"""Tensors are described together within 2 ** 24 bytes of a shard."""

_UNKNOWN: Final = 1 << 62

Ints = NDArray[np.int64]


def fill_statistics(index: pa.Table, load: Callable[[Row], torch.Tensor]) -> pa.Table:
    """Return the index with the statistics of every stored tensor that has none.

    `load` returns the tensor of a row, or whatever else a row says of a shard. Bytes that several
    rows share are described once, tensors that lie end to end as one vector.
    """
    absent = pc.and_(pc.is_null(index.column("count")), pc.is_valid(index.column("shard")))
    described = pc.and_(absent, _has_statistics(index.column("dtype")))
    rows = pc.indices_nonzero(described).to_numpy()
    if not len(rows):
        return index
    _check_shapes(index, rows, load)
    places, place_of = _Places.of(index, rows)
    found = np.zeros(len(places.offset), TABLE)
    shapes = index.column("shape")
    for part, row, sizes in places.stretches():
        if len(sizes) == 1:  # which may be all that a file holds
            row = row._replace(shape=shapes[places.row[part.start]].as_py())
        found[part] = describe_adjacent(load(row).reshape(-1), sizes)
    return _with(index, rows, found, place_of)


def _has_statistics(dtypes: pa.ChunkedArray) -> pa.ChunkedArray:
    known = [name for name in dtypes.unique().to_pylist() if name and has_statistics(name)]
    return pc.is_in(dtypes, pa.array(known, pa.utf8()))


def _check_shapes(index: pa.Table, rows: Ints, load: Callable[[Row], torch.Tensor]) -> None:
    """Load the first tensor whose numbers contradict each other: that names what is wrong."""
    offset, nbytes = (_filled(index.column(name)) for name in ("offset", "nbytes"))
    wrong = _products(index.column("shape")) * _itemsizes(index.column("dtype")) != nbytes
    wrong |= (offset < 0) | (nbytes < 0)
    for i in rows[wrong[rows]][:1].tolist():
        one = index.select(Row._fields).slice(i, 1).to_pylist()[0]
        load(Row(**one))


def _products(shapes: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return the number of elements of each shape, NaN for none: exact where a file can hold it."""
    lengths = _filled(pc.list_value_length(shapes))
    sizes = np.append(_filled(pc.list_flatten(shapes)), 1).astype(np.float64)
    starts = np.cumsum(lengths.clip(0)) - lengths.clip(0)
    products = np.multiply.reduceat(sizes, starts)
    return np.where(lengths > 0, products, np.where(lengths == 0, 1.0, np.nan))


class _Places(NamedTuple):
    """Distinct places in shards, in order, each with a row of the index that refers to it.

    `shards` and `dtypes` are what the codes stand for.
    """

    shards: list[str | None]
    dtypes: list[str | None]
    rank: Ints
    shard: Ints
    dtype: Ints
    offset: Ints
    nbytes: Ints
    elements: Ints
    row: Ints

    @classmethod
    def of(cls, index: pa.Table, rows: Ints) -> tuple["_Places", Ints]:
        """Return the places of some rows of an index, and the number of each row's place."""
        shard, dtype = (_encoded(index.column(name)) for name in ("shard", "dtype"))
        rank, offset, nbytes = (_filled(index.column(n)) for n in ("rank", "offset", "nbytes"))
        elements = nbytes // _itemsizes(index.column("dtype"))
        keys = np.stack([k[rows] for k in (rank, shard[0], dtype[0], offset, nbytes, elements)])
        order = np.lexsort(keys[::-1])
        keys = keys[:, order]
        is_new = np.ones(len(order), np.bool_)
        is_new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        place_of = np.empty_like(order)
        place_of[order] = np.cumsum(is_new) - 1
        distinct = [*keys[:, is_new], rows[order[is_new]]]
        return cls(shard[1], dtype[1], *distinct), place_of

    def stretches(self) -> Iterator[tuple[slice, Row, list[int]]]:
        """Yield places of one type that lie end to end, as one vector, and their sizes."""
        begins = np.ones(len(self.offset) + 1, np.bool_)
        same = self.offset[1:] == (self.offset + self.nbytes)[:-1]
        for key in (self.rank, self.shard, self.dtype, self.offset >> _PIECE):
            same &= key[1:] == key[:-1]
        begins[1:-1] = ~same
        bounds = np.flatnonzero(begins).tolist()
        for first, last in pairwise(bounds):
            yield slice(first, last), *self._vector(first, last)

    def _vector(self, first: int, last: int) -> tuple[Row, list[int]]:
        sizes = self.elements[first:last].tolist()
        rank, offset = int(self.rank[first]), int(self.offset[first])
        end = int(self.offset[last - 1] + self.nbytes[last - 1])
        dtype, shard = self.dtypes[self.dtype[first]], self.shards[self.shard[first]]
        row = Row(rank, -1, "", dtype, [sum(sizes)], shard, offset, end - offset, "", "")
        return row, sizes


def _itemsizes(column: pa.ChunkedArray) -> Ints:
    """Return the bytes of an element of each type, a number that fits nothing where unknown."""
    codes, names = _encoded(column)
    dtypes = [None if name is None else torch_dtype(name) for name in names]
    return np.array([_UNKNOWN if d is None else d.itemsize for d in dtypes])[codes]


def _encoded(column: pa.ChunkedArray) -> tuple[Ints, list[str | None]]:
    """Return the code of each text, and what the codes stand for: None is the last."""
    array = column.combine_chunks().dictionary_encode()
    return _filled(array.indices), [*array.dictionary.to_pylist(), None]


def _filled(column: pa.ChunkedArray | pa.Array) -> Ints:
    """Return integers, -1 where there is none."""
    return np.asarray(pc.fill_null(column, -1).to_numpy(), np.int64)


def _with(index: pa.Table, rows: Ints, found: NDArray[np.void], place_of: Ints) -> pa.Table:
    """Put statistics of places into rows of the index."""
    absent = found["count"] == NONE
    for name in FIELDS:
        column = index.column(name)
        values: NDArray[Any] = pc.fill_null(column, 0).to_numpy().copy()
        is_null = pc.is_null(column).to_numpy().copy()
        new = np.ascontiguousarray(found[name])
        values[rows] = new[place_of]
        is_null[rows] = (absent if name in COUNTS else absent | np.isnan(new))[place_of]
        place, field = index.schema.get_field_index(name), index.schema.field(name)
        index = index.set_column(place, field, pa.array(values, field.type, mask=is_null))
    return index
