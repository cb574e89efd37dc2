"""Whether the candidate has golden values, but those of another position or row."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from hf_dumper.compare.blocks import Segment
from hf_dumper.compare.hypotheses import COLLAPSE, Floats, Proof

_AROUND: Final = (-1, 1, -2, 2, -3, 3, -4, 4)
_LEAST: Final = 4
"""Positions or channels below which equal values may be chance."""


class Origin(NamedTuple):
    """Words for where values may come from: segment, and steps along the positions."""

    words: str
    segment: int
    step: int


def moved(
    segments: Sequence[Segment],
    row: int,
    positions: Sequence[int],
    *,
    limit: int,
    rows: Sequence[int],
) -> Proof | None:
    """Tell where the values of some positions of a row come from, None if not from elsewhere.

    Args:
        segments: Golden and candidate of each row, [positions, ...channels].
        row: The segment that differs.
        positions: Its positions that differ, ascending.
        limit: How many values to look at.
        rows: The batch row of each segment, for the words.
    """
    golden, candidate = segments[row]
    width = golden[0].numel()
    if width < _LEAST:
        return None
    few = positions[: max(1, limit // width)]
    for words, other, step in _origins(segments, row, positions, rows):
        source = segments[other][0]
        inside = [p for p in few if 0 <= p + step < len(source)]
        if not inside:
            continue
        here, there = _values(golden, inside), _values(candidate, inside)
        before, size = _norm(there - here), _norm(here) or 1.0
        after = _norm(there - _values(source, [p + step for p in inside]))
        if before and after * COLLAPSE <= before:
            return Proof(words, before / size, after / size)
    return None


def _origins(
    segments: Sequence[Segment], row: int, positions: Sequence[int], rows: Sequence[int]
) -> Iterator[Origin]:
    if len(positions) == 1:
        for step in _AROUND:
            words = f"the golden values of position index {positions[0] + step}"
            yield Origin(words, row, step)
    elif len(positions) >= _LEAST:
        for step, side in ((-1, "before"), (1, "after")):
            words = f"rolled by one position, each has the golden values of the one {side}"
            yield Origin(words, row, step)
    for other, (source, _) in enumerate(segments):
        if other != row and source.shape == segments[row][0].shape:
            yield Origin(f"the golden values of row {rows[other]}", other, 0)


def _values(tensor: torch.Tensor, positions: Sequence[int]) -> Floats:
    rows = [tensor[position].reshape(-1).to(torch.float64) for position in positions]
    found: Floats = torch.nan_to_num(torch.stack(rows), 0.0, 0.0, 0.0).numpy()
    return found


def _norm(values: Floats) -> float:
    return float(np.linalg.norm(values))
