"""The sums over a pair in NumPy: for every type of element, and the yardstick of the kernels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.compare.blocks import Piece, Segment, pieces
from hf_dumper.compare.precision import is_whole, ordinals
from hf_dumper.compare.sums import BINS, OCTAVE, SIDE, ULP_LIMIT, Plan, Sums

Floats = NDArray[np.float64]


def golden_square(segments: Sequence[Segment], scale: float = 1.0) -> tuple[float, int]:
    """Return the sum of squares and the number of the finite golden values."""
    total, count = 0.0, 0
    for golden, _ in segments:
        for piece in pieces((golden, golden), by_token=False):
            values = _widened(piece.golden).astype(np.float64)
            values *= scale
            if not (finite := np.isfinite(values)).all():
                values = values[finite]
            total += float(np.dot(values.ravel(), values.ravel()))
            count += values.size
    return total, count


def accumulate(segments: Sequence[Segment], plan: Plan) -> Sums:
    """Add up everything that metrics are made of."""
    sums = Sums.empty(plan)
    before = 0
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for number, segment in enumerate(segments):
            for piece in pieces(segment, by_token=plan.by_token):
                _add(sums, plan, piece, number, before)
            before += len(segment[0]) if plan.by_token else 0
    return sums


def _add(sums: Sums, plan: Plan, piece: Piece, segment: int, before: int) -> None:
    """Add one piece; `before` counts the positions of earlier segments."""
    golden, candidate = _widened(piece.golden), _widened(piece.candidate)
    both = np.isfinite(golden) & np.isfinite(candidate)
    if not both.all():
        _add_masks(sums, golden, candidate, piece, segment)
        golden, candidate = np.where(both, golden, 0), np.where(both, candidate, 0)
    sums.totals["compared"] += np.count_nonzero(both)
    _add_distances(sums, plan, golden, candidate, both)
    difference = _difference(golden, candidate)
    g, c = golden.astype(np.float64), candidate.astype(np.float64)
    for values in (g, c, difference) if plan.scale != 1 else ():
        values *= plan.scale
    _add_differences(sums, plan, g, difference, piece, segment)
    _add_squares(sums, g, c, difference, piece, before)


def _widened(values: torch.Tensor) -> NDArray[Any]:
    """Return a copy in the type that differences are taken in: exact for integers."""
    if values.dtype == torch.uint64:
        return values.numpy().copy()
    return values.to(torch.int64 if is_whole(values.dtype) else torch.float64, copy=True).numpy()


def _difference(golden: NDArray[Any], candidate: NDArray[Any]) -> Floats:
    """Return candidate less golden; integers of one type without overflow."""
    if golden.dtype != candidate.dtype or golden.dtype == np.float64:
        return candidate.astype(np.float64) - golden.astype(np.float64)
    with np.errstate(over="ignore"):  # wraps around, which makes the unsigned distance right
        up = (candidate.view(np.uint64) - golden.view(np.uint64)).astype(np.float64)
        down = (golden.view(np.uint64) - candidate.view(np.uint64)).astype(np.float64)
    return np.where(candidate >= golden, up, -down)


def _add_masks(
    sums: Sums, golden: NDArray[Any], candidate: NDArray[Any], piece: Piece, segment: int
) -> None:
    """Count what is not finite, and where the two sides differ in it."""
    kinds = []
    for side, values in (("golden", golden), ("candidate", candidate)):
        kind = np.zeros(values.shape, np.int8)
        masks = (np.isnan(values), values == np.inf, values == -np.inf)
        for code, (name, found) in enumerate(zip(SIDE, masks, strict=True)):
            kind[found] = code + 1
            sums.totals[f"{side}_{name}"] += np.count_nonzero(found)
        kinds.append(kind)
    differ = kinds[0] != kinds[1]
    if differ.any() and sums.totals["first_segment"] < 0:
        _set_place(sums, "first", piece, segment, int(differ.argmax()), differ.shape[1])
    sums.totals["mismatches"] += np.count_nonzero(differ)


def _set_place(sums: Sums, what: str, piece: Piece, segment: int, flat: int, width: int) -> None:
    row, column = divmod(flat, width)
    sums.totals[f"{what}_segment"] = segment
    sums.totals[f"{what}_position"] = piece.position + row
    sums.totals[f"{what}_channel"] = piece.channel + column


def _add_differences(
    sums: Sums, plan: Plan, golden: Floats, difference: Floats, piece: Piece, segment: int
) -> None:
    """Add what is made of the size of the differences."""
    totals, size = sums.totals, np.abs(difference)
    if (largest := size.max()) > totals["max_d"]:
        totals["max_d"] = largest
        _set_place(sums, "worst", piece, segment, int(size.argmax()), size.shape[1])
    magnitude = np.abs(golden)
    totals["max_g"] = max(totals["max_g"], magnitude.max())
    totals["abs_d"] += size.sum()
    tolerance = plan.precision.atol * plan.scale + plan.precision.rtol * magnitude
    totals["outside"] += np.count_nonzero(size > tolerance)
    relative = size / np.maximum(magnitude, plan.denominator)
    totals["sum_rel"] += relative.sum()
    totals["max_rel"] = max(totals["max_rel"], relative.max())


def _add_squares(
    sums: Sums, golden: Floats, candidate: Floats, difference: Floats, piece: Piece, before: int
) -> None:
    """Add inner products, in all and per token and channel."""
    totals = sums.totals
    totals["sum_d"] += difference.sum()
    totals["sq_c"] += np.vdot(candidate, candidate)
    totals["dot"] += np.vdot(golden, candidate)
    rows, width = golden.shape
    square_d, square_g = difference * difference, golden * golden
    tokens_d, tokens_g = square_d.sum(1), square_g.sum(1)
    totals["sq_d"] += tokens_d.sum()
    totals["sq_g"] += tokens_g.sum()
    if sums.token_d.size:
        here = slice(before + piece.position, before + piece.position + rows)
        sums.token_d[here] += tokens_d
        sums.token_g[here] += tokens_g
    if sums.channel_d.size:
        these = slice(piece.channel, piece.channel + width)
        sums.channel_d[these] += square_d.sum(0)
        sums.channel_g[these] += square_g.sum(0)


def _add_distances(
    sums: Sums, plan: Plan, golden: NDArray[Any], candidate: NDArray[Any], both: NDArray[np.bool_]
) -> None:
    """Add the distances in units of last place, and the differences after rounding."""
    if is_whole(plan.narrow):
        distance = np.abs(_difference(golden, candidate))
    else:
        low = [torch.from_numpy(side).to(torch.float64) for side in (golden, candidate)]
        low = [side.to(plan.narrow) for side in low]
        a, b = (ordinals(side) for side in low)
        with np.errstate(over="ignore"):
            distance = np.where(a > b, a - b, b - a).view(np.uint64).astype(np.float64)
        if plan.golden != plan.candidate:
            _add_rounded(sums, plan, low)
    sums.totals["ulp_max"] = max(sums.totals["ulp_max"], distance.max())
    sums.histogram += np.bincount(bins(distance[both]), minlength=BINS)


def _add_rounded(sums: Sums, plan: Plan, low: Sequence[torch.Tensor]) -> None:
    """Add the squares of both sides rounded to the narrower type."""
    golden, candidate = (side.to(torch.float64).numpy() * plan.scale for side in low)
    overflow = ~(np.isfinite(golden) & np.isfinite(candidate))
    sums.totals["low_overflows"] += np.count_nonzero(overflow)
    difference = np.where(overflow, 0, candidate - golden)
    golden = np.where(overflow, 0, golden)
    sums.totals["low_sq_d"] += np.vdot(difference, difference)
    sums.totals["low_sq_g"] += np.vdot(golden, golden)


def bins(distance: Floats) -> NDArray[np.int64]:
    """Return the histogram bin of each distance: the leading bits of its binary form."""
    bits = np.minimum(distance, ULP_LIMIT).astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits == 0, 0, (bits >> 20) - (127 * OCTAVE - 1))


def largest(tensor: torch.Tensor) -> float:
    """Return the largest size of the finite values of a tensor, 0 without any."""
    found = 0.0
    for piece in pieces((tensor, tensor), by_token=False):
        values = np.abs(_widened(piece.golden).astype(np.float64))
        found = max(found, float(values[np.isfinite(values)].max(initial=0.0)))
    return found
