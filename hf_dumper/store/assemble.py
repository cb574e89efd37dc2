"""Makes one tensor of a token from the tensors of its forwards, and picks one row of a batch.

`axes` names each dimension of a tensor: "row" of the batch, "pos" along the sequence, "row*pos" for
both in one, "-" for anything else; the empty string when they are unknown.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch

from hf_dumper.errors import KeyNotFoundError

POS, ROW, ROW_POS = "pos", "row", "row*pos"


class Extent(NamedTuple):
    """Size of the input of one forward."""

    rows: int
    cols: int


class Part(NamedTuple):
    """The tensor of one forward; `extent` is None where the size of its input is not known."""

    forward: int
    axes: str
    tensor: torch.Tensor
    extent: Extent | None


def extents(positions: pa.Table) -> Mapping[int, Extent]:
    """Return the size of the input of each forward in a table of positions."""
    if not positions.num_rows:
        return {}
    grouped = positions.group_by("forward").aggregate([("row", "max"), ("column", "max")])
    columns = (grouped.column(name).to_pylist() for name in ("forward", "row_max", "column_max"))
    return {forward: Extent(row + 1, col + 1) for forward, row, col in zip(*columns, strict=True)}


def join(parts: Sequence[Part], what: str) -> Part:
    """Join the tensors of one token along their position axis, in order of forwards.

    A tensor that does not have the columns of its forward covers the last ones only
    (`logits_to_keep`), or the cached ones too: then the last forward's stands for the token.

    Raises:
        KeyNotFoundError: there is no such axis; the message asks for a forward.
    """
    last = parts[-1]
    if len(parts) == 1:
        return last
    axes = _split(last.axes)
    along = [i for i, axis in enumerate(axes) if axis in (POS, ROW_POS)]
    sizes = [part.extent for part in parts if part.extent]
    if len(along) != 1 or len(sizes) < len(parts) or any(p.axes != last.axes for p in parts):
        raise _ask_for_forward(parts, what)
    axis = along[0]
    if any(part.tensor.shape[axis] != _length(axes[axis], part.extent) for part in parts):
        return last
    try:
        joined = _concatenate([part.tensor for part in parts], sizes, axis, axes[axis] == ROW_POS)
    except RuntimeError as error:  # other dimensions differ
        raise _ask_for_forward(parts, what) from error
    extent = Extent(sizes[-1].rows, sum(size.cols for size in sizes))
    return Part(last.forward, last.axes, joined, extent)


def select_row(part: Part, row: int, what: str) -> torch.Tensor:
    """Return one row of a batch, without its row axis.

    Raises:
        KeyNotFoundError: there is no row axis, or no such row.
    """
    axes = _split(part.axes)
    tensor = part.tensor
    if ROW in axes:
        axis = axes.index(ROW)
    elif ROW_POS in axes and part.extent and _divides(part, axes.index(ROW_POS)):
        axis = axes.index(ROW_POS)
        tensor = tensor.unflatten(axis, (part.extent.rows, -1))
    else:
        msg = f"{what} has no row axis: its axes are {part.axes!r}."
        raise KeyNotFoundError(msg)
    rows = tensor.shape[axis] if axis < tensor.dim() else 0
    if not 0 <= row < rows:
        msg = f"{what} has rows 0 to {rows - 1}, not {row}."
        raise KeyNotFoundError(msg)
    return tensor.select(axis, row)


def _split(axes: str) -> list[str]:
    return axes.split(",") if axes else []


def _length(axis: str, extent: Extent | None) -> int:
    if extent is None:
        return -1
    return extent.rows * extent.cols if axis == ROW_POS else extent.cols


def _divides(part: Part, axis: int) -> bool:
    if part.extent is None or part.extent.rows <= 0 or axis >= part.tensor.dim():
        return False
    return part.tensor.shape[axis] % part.extent.rows == 0


def _concatenate(
    tensors: Sequence[torch.Tensor], sizes: Sequence[Extent], axis: int, flat: bool
) -> torch.Tensor:
    if not flat:
        return torch.cat(list(tensors), dim=axis)
    unfolded = [
        tensor.unflatten(axis, tuple(size)) for tensor, size in zip(tensors, sizes, strict=True)
    ]
    return torch.cat(unfolded, dim=axis + 1).flatten(axis, axis + 1)


def _ask_for_forward(parts: Sequence[Part], what: str) -> KeyNotFoundError:
    forwards = ", ".join(str(part.forward) for part in parts)
    return KeyNotFoundError(
        f"{what} spans the forwards {forwards} and cannot be joined along a position axis "
        f"(axes {parts[-1].axes!r}). Pass forward=... to choose one."
    )
