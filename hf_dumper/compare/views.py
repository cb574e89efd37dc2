"""Views of a recorded tensor: the positions of one row, first axis first, without a copy."""

from dataclasses import dataclass
from typing import Literal

import torch

from hf_dumper.compare.records import Layout, Rec
from hf_dumper.core.axes import OTHER, POS, ROW, ROW_POS

Kind = Literal["positions", "row", "whole"]
"""How a tensor is taken apart: by position, row by row only, or not at all."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the axes of a record mean in its forward.

    `offset` is the first column that the position axis covers (`logits_to_keep`). `channels` are
    the numbers of the axes that are neither row nor position; one of them may run over the keys
    that the forward attends to.
    """

    kind: Kind
    offset: int = 0
    channels: tuple[int, ...] = ()


def shape_of(record: Rec, layout: Layout | None) -> Shape:
    """Say what the axes of a record mean."""
    axes = record.axes
    if len(axes) != len(record.shape) or not axes:
        return Shape("whole")
    rest = tuple(i for i, axis in enumerate(axes) if axis == OTHER)
    if layout is None or not layout.cols:
        return Shape("row" if axes[0] == ROW else "whole", 0, tuple(range(1, len(axes))))
    if axes[0] == ROW_POS:
        return Shape("positions", 0, rest)
    if POS in axes:
        return _along_positions(record, layout)
    if axes[0] != ROW:
        return Shape("whole")
    # One token: its row is its position, as in the experts of a decode step.
    return Shape("positions" if layout.cols == 1 else "row", 0, rest)


def _along_positions(record: Rec, layout: Layout) -> Shape:
    axes = record.axes
    first = axes.index(POS)
    offset = layout.cols - record.shape[first]
    if offset < 0:
        return Shape("whole")
    channels = tuple(i for i, axis in enumerate(axes) if i != first and axis != ROW)
    return Shape("positions", offset, channels)


def by_position(
    tensor: torch.Tensor, record: Rec, layout: Layout, row: int, columns: slice
) -> torch.Tensor:
    """Return [positions, ...channels] of the columns of a row."""
    axes = record.axes
    if ROW_POS in axes:
        rows: torch.Tensor = tensor.unflatten(0, (layout.rows, -1))
        return rows[row, columns]
    if ROW in axes:
        tensor = tensor.select(axes.index(ROW), row)
        axes = tuple(axis for axis in axes if axis != ROW)
    if POS not in axes:  # a forward of one column
        return tensor.unsqueeze(0)
    along = axes.index(POS)
    offset = layout.cols - tensor.shape[along]
    return tensor.movedim(along, 0)[columns.start - offset : columns.stop - offset]


def is_one_per_row(record: Rec, layout: Layout) -> bool:
    """Tell whether a record has a row axis and no positions, or one position per row."""
    if record.axes[:1] == (ROW_POS,):
        return layout.cols == 1
    return record.axes[:1] == (ROW,) and POS not in record.axes


def by_row(tensor: torch.Tensor, row: int) -> torch.Tensor:
    """Return [1, ...] of a row of a record with one value per row."""
    return tensor[row].unsqueeze(0)
