"""Pairs of tensors cut into blocks that fit a cache, as two-dimensional pieces."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import torch

BLOCK = 1 << 14
"""Elements handled at once: 128 KiB in float64, so that some temporaries fit the second cache."""

Segment: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Golden and candidate of one row, [positions, ...channels], of equal shape."""


class Piece(NamedTuple):
    """A block of [rows, width]: whole positions, or a range of channels of one position."""

    golden: torch.Tensor
    candidate: torch.Tensor
    position: int
    channel: int


def pieces(segment: Segment, *, by_token: bool) -> Iterator[Piece]:
    """Cut a segment into pieces; only what a piece holds is ever copied.

    Without `by_token` the segment is one position, whose channels are all its elements.
    """
    golden, candidate = segment if by_token else (t.unsqueeze(0) for t in segment)
    if not golden.numel():
        return
    width = golden[0].numel()
    rows = BLOCK // width
    if rows:
        for first in range(0, len(golden), rows):
            flat = [t[first : first + rows].reshape(-1, width) for t in (golden, candidate)]
            yield Piece(flat[0], flat[1], first, 0)
        return
    for position in range(len(golden)):
        channel = 0
        for run in _runs((golden[position], candidate[position])):
            flat = [part.reshape(1, -1) for part in run]
            yield Piece(flat[0], flat[1], position, channel)
            channel += flat[0].numel()


def _runs(both: Segment) -> Iterator[Segment]:
    """Cut two tensors of equal shape into runs of at most BLOCK elements, in their flat order."""
    if both[0].numel() <= BLOCK:
        yield both
        return
    golden, candidate = both
    if golden.is_contiguous() and candidate.is_contiguous():
        golden, candidate = golden.reshape(-1), candidate.reshape(-1)
    below = golden[0].numel()
    if below > BLOCK:
        for inner in zip(golden, candidate, strict=True):
            yield from _runs(inner)
        return
    yield from zip(golden.split(BLOCK // below), candidate.split(BLOCK // below), strict=True)
