"""Statistics of stored tensors, where the capture made none."""

from collections.abc import Callable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import torch

from hf_dumper.core.statistics import FIELDS, Statistics, describe
from hf_dumper.store.dtypes import has_statistics
from hf_dumper.store.lookup import Row

_AT_ONCE: Final = 1024


def fill_statistics(index: pa.Table, load: Callable[[Row], torch.Tensor]) -> pa.Table:
    """Return the index with the statistics of every stored tensor that has none.

    `load` returns the tensor of a row. Bytes that several rows share are described once.
    """
    if not index.column("count").null_count:
        return index
    absent = pc.and_(pc.is_null(index.column("count")), pc.is_valid(index.column("shard")))
    numbers = pc.indices_nonzero(absent).to_numpy()
    if not len(numbers):
        return index
    columns = (index.column(name).take(numbers).to_pylist() for name in Row._fields)
    wanted: dict[tuple[object, ...], tuple[Row, list[int]]] = {}
    for i, row in zip(numbers.tolist(), map(Row._make, zip(*columns, strict=True)), strict=True):
        if has_statistics(row.dtype):
            place = (row.rank, row.shard, row.offset, row.dtype, tuple(row.shape))
            wanted.setdefault(place, (row, []))[1].append(i)
    found: dict[int, Statistics] = {}
    places = list(wanted.values())
    for start in range(0, len(places), _AT_ONCE):
        group = places[start : start + _AT_ONCE]
        results = describe([load(row) for row, _ in group])
        for (_, rows), statistics in zip(group, results, strict=True):
            if statistics is not None:
                found |= dict.fromkeys(rows, statistics)
    return _with(index, found)


def _with(index: pa.Table, found: dict[int, Statistics]) -> pa.Table:
    for position, name in enumerate(FIELDS):
        values = index.column(name).to_pylist()
        for i, statistics in found.items():
            values[i] = statistics[position]
        field = index.schema.field(name)
        index = index.set_column(
            index.schema.get_field_index(name), field, pa.array(values, field.type)
        )
    return index
