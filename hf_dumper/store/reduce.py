"""Statistics of the records of a batch, computed behind the forward."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.core.statistics import NONE, TABLE, describe_adjacent
from hf_dumper.core.types import Records
from hf_dumper.store.dtypes import has_statistics, tensor_at, torch_dtype


def describe_records(records: Records) -> NDArray[np.void]:
    """Return the statistics of the records of a type with numbers, a TABLE.

    Tensors of one type that follow each other are described together, as one vector.
    """
    table = np.zeros(len(records), TABLE)
    table["count"] = NONE
    for i, row in records.described.items():
        table[i] = row
    if records.chunk is None:
        return table
    for members, offset, dtype in _stretches(records):
        sizes = [records.what[i].nbytes // dtype.itemsize for i in members]
        values = tensor_at(records.chunk.memory, offset, dtype, (sum(sizes),))
        table[members] = describe_adjacent(values, sizes)
    return table


def _stretches(records: Records) -> Iterator[tuple[list[int], int, torch.dtype]]:
    """Yield (indices, offset, dtype) of records of one type whose bytes follow each other."""
    members: list[int] = []
    start, name = 0, ""
    for i, (what, offset) in enumerate(zip(records.what, records.offset, strict=True)):
        if offset is None:
            continue
        if i in records.described:
            yield from _stretch(members, start, name)
            members, name = [], ""
            continue
        if what.dtype != name:
            yield from _stretch(members, start, name)
            members, start, name = [], offset, what.dtype
        members.append(i)
    yield from _stretch(members, start, name)


def _stretch(
    members: list[int], start: int, name: str
) -> Iterator[tuple[list[int], int, torch.dtype]]:
    dtype = torch_dtype(name)
    if members and dtype is not None and has_statistics(name):
        yield members, start, dtype
