"""The rows of an index, and of its positions, against each other."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.types import ALIASED, SKIPPED, STORED
from hf_dumper.store.dtypes import torch_dtype
from hf_dumper.store.findings import Findings
from hf_dumper.store.layout import tensor_name

_KEY: Final = ("forward", "module", "slot", "call", "op")
_PLACE: Final = ("shard", "tensor", "offset")
_SAME: Final = ("offset", "nbytes", "hash", "dtype", "shape")
"""What an alias has in common with the record whose bytes it shares."""

_COLUMNS: Final = (*_KEY, *_PLACE, "nbytes", "hash", "dtype", "shape", "status", "reason")
_AT_ONCE: Final = 4096


def check_rows(file: Path, index: pa.Table, place: tuple[int, int], findings: Findings) -> None:
    """Check every row of an index; `place` is the run and the rank that its folders name."""
    for name, number in zip(("run", "rank"), place, strict=True):
        others = set(pc.unique(index.column(name)).to_pylist()) - {number}
        if others:
            findings.add(file, f"it has rows of {name} {sorted(others, key=str)}, not of {number}")
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    owners: dict[tuple[str, str], tuple[Any, ...]] = {}
    forward = None
    for row in rows_of(index, _COLUMNS):
        if row["forward"] != forward:  # an alias shares bytes within its forward only
            forward, owners = row["forward"], {}
        for what in _wrong(row, owners):
            wrong[what].append(_named(row))
    for what, names in wrong.items():
        findings.add(file, what, names)
    for names in _repeated(index):
        findings.add(file, "the index has it more than once", names)


def check_positions(
    file: Path, positions: pa.Table, index: pa.Table | None, findings: Findings
) -> None:
    """Check that each forward has a whole grid of rows and columns, each place once."""
    grouped = positions.group_by("forward").aggregate(
        [("row", "max"), ("column", "max"), ("row", "min"), ("column", "min"), ("row", "count")]
    )
    for group in grouped.to_pylist():
        size = (group["row_max"] + 1) * (group["column_max"] + 1)
        if min(group["row_min"], group["column_min"]) or size != group["row_count"]:
            findings.add(file, f"forward {group['forward']} is no whole grid of rows and columns")
    if index is None or not positions.num_rows:
        return
    known = pc.unique(positions.column("forward"))
    missing = pc.invert(pc.is_in(index.column("forward"), value_set=known))
    forwards = pc.unique(index.filter(missing).column("forward")).to_pylist()
    if forwards:
        findings.add(file, f"it lacks forwards that the index has: {forwards}")


def rows_of(table: pa.Table, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some columns, a few thousand at a time in memory."""
    for batch in table.select(list(names)).to_batches(max_chunksize=_AT_ONCE):
        yield from batch.to_pylist()


def _named(row: Mapping[str, Any]) -> str:
    return tensor_name(row["forward"], row["module"], row["slot"], row["call"], row["op"])


def _wrong(row: Mapping[str, Any], owners: dict[tuple[str, str], tuple[Any, ...]]) -> Iterator[str]:
    """Yield what contradicts itself in a row; remember it when it owns its bytes."""
    status = row["status"]
    if status not in (STORED, ALIASED, SKIPPED):
        yield f"the index gives it the status {status!r}"
        return
    if status == SKIPPED:
        if row["shard"] is not None or not row["reason"]:
            yield "it was skipped, but has bytes or no reason"
        return
    yield from _wrong_size(row)
    if row["shard"] is None:
        return
    if any(row[name] is None or row[name] == "" for name in (*_PLACE, "hash", "nbytes")):
        yield "the index does not say where its bytes are, or has no hash of them"
        return
    place, facts = (row["shard"], row["tensor"]), tuple(row[name] for name in _SAME)
    if status == ALIASED:
        if owners.get(place) != facts:
            yield "it is an alias of no record of its forward"
        return
    owners[place] = facts
    if row["tensor"] != _named(row):
        yield f"its tensor is called {row['tensor']!r}"


def _wrong_size(row: Mapping[str, Any]) -> Iterator[str]:
    dtype, shape, nbytes = torch_dtype(row["dtype"] or ""), row["shape"], row["nbytes"]
    if shape is None or nbytes is None or nbytes < 0:
        yield "the index has no shape or no size of it"
    elif dtype is not None and math.prod(shape) * dtype.itemsize != nbytes:
        yield f"{row['dtype']} {shape} does not have {nbytes} bytes"


def _repeated(index: pa.Table) -> Iterator[list[str]]:
    kept = index.filter(pc.not_equal(index.column("status"), SKIPPED))
    counted = kept.group_by(list(_KEY)).aggregate([("slot", "count")])
    several = counted.filter(pc.greater(counted.column("slot_count"), 1))
    if several.num_rows:
        yield [_named(row) for row in several.to_pylist()]
