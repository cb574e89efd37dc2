"""What a verifying forward holds of one token, under speculative decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.types import ROOT
from hf_dumper.core.verified import DECIDED, Verified, verified_forwards
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store.assemble import POS, ROW_POS, Extent, Part


def ending_at(part: Part, module: str, slot: str, after: int, what: str) -> Part:
    """Leave out the last `after` columns; what has no position axis stays whole.

    What the outermost module decided loses that axis, so that it is like that of any forward.

    Raises:
        KeyNotFoundError: there are not so many columns.
    """
    tensor, axes = part.tensor, part.axes.split(",") if part.axes else []
    along = [i for i, axis in enumerate(axes) if axis in (POS, ROW_POS)]
    if not along:
        return part
    for axis in along:
        if tensor.shape[axis] <= after:
            msg = f"{what} has {tensor.shape[axis]} columns only; pass forward={part.forward}."
            raise KeyNotFoundError(msg)
        tensor = tensor.narrow(axis, 0, tensor.shape[axis] - after)
    extent = part.extent and Extent(part.extent.rows, part.extent.cols - after)
    if module == ROOT and slot in DECIDED:
        tensor = tensor.select(along[0], -1)
        del axes[along[0]]
    return Part(part.forward, ",".join(axes), tensor, extent)


def verified_run(
    info: Mapping[str, Any], index: Callable[[], pa.Table], positions: Callable[[], pa.Table]
) -> tuple[Verified, ...] | None:
    """Return the verifying forwards of a run; None without speculative decoding.

    `info` is what is known of the run; its tables are read only where it was cut off.
    """
    if info.get("complete") or not (info.get("prompt") or {}).get("drafter"):
        return verified_forwards(info, {}, {})
    table = index()
    columns = (table.column(name).to_pylist() for name in ("forward", "token"))
    return verified_forwards(
        info, dict(zip(*columns, strict=True)), columns_of_forwards(positions())
    )


def columns_of_forwards(positions: pa.Table) -> dict[int, tuple[int, int]]:
    """Return for each forward its columns and how many of them are rejected drafts.

    Forwards whose positions are not all known are left out.
    """
    table = pa.table(
        {
            "forward": positions.column("forward"),
            "column": positions.column("column"),
            "rejected": pc.less(positions.column("position"), -1).cast(pa.int64()),
        }
    )
    sums = [("column", "max"), ("rejected", "sum", pc.ScalarAggregateOptions(skip_nulls=False))]
    found = table.group_by("forward").aggregate(sums).to_pylist()
    return {
        row["forward"]: (row["column_max"] + 1, row["rejected_sum"])
        for row in found
        if row["rejected_sum"] is not None
    }
