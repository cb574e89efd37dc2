"""The sums over a pair in NumPy: for every type of element, and the yardstick of the kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
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
            values = _widened(piece.golden).astype(np.float64) * scale
            if not (finite := np.isfinite(values)).all():
                values = values[finite]
            total += float(np.dot(values.ravel(), values.ravel()))
            count += values.size
    return total, count


def accumulate(segments: Sequence[Segment], plan: Plan) -> Sums:
    """Add up everything that metrics are made of."""
    adder = _Adder(plan, Sums.empty(plan))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for golden, candidate in segments:
            for piece in pieces((golden, candidate), by_token=plan.by_token):
                adder.add(piece)
            adder.segment += 1
            adder.before += len(golden) if plan.by_token else 0
    return adder.sums


@dataclass(slots=True)
class _Adder:
    """Sums that grow piece by piece; `before` counts the positions of earlier segments."""

    plan: Plan
    sums: Sums
    segment: int = 0
    before: int = 0

    def add(self, piece: Piece) -> None:
        """Add one piece."""
        golden, candidate = _widened(piece.golden), _widened(piece.candidate)
        both = np.isfinite(golden) & np.isfinite(candidate)
        if not both.all():
            self._mask(golden, candidate, piece)
            golden, candidate = np.where(both, golden, 0), np.where(both, candidate, 0)
        self.sums.totals["compared"] += np.count_nonzero(both)
        self._add_distances(golden, candidate, both)
        if self.plan.scale != 1:
            golden, candidate = golden * self.plan.scale, candidate * self.plan.scale
        difference = _difference(golden, candidate)
        g, c = golden.astype(np.float64, copy=False), candidate.astype(np.float64, copy=False)
        size = np.abs(difference)
        if (largest := size.max()) > self.sums.totals["max_d"]:
            self.sums.totals["max_d"] = largest
            self._note("worst", piece, int(size.argmax()), g, c)
        self._add_sizes(g, size)
        self._add_squares(g, c, difference, piece)

    def _mask(self, golden: NDArray[Any], candidate: NDArray[Any], piece: Piece) -> None:
        """Count what is not finite, and where the two sides differ in it."""
        kinds = []
        for side, values in (("golden", golden), ("candidate", candidate)):
            kind = np.zeros(values.shape, np.int8)
            masks = (np.isnan(values), values == np.inf, values == -np.inf)
            for code, (name, found) in enumerate(zip(SIDE, masks, strict=True)):
                kind[found] = code + 1
                self.sums.totals[f"{side}_{name}"] += np.count_nonzero(found)
            kinds.append(kind)
        differ = kinds[0] != kinds[1]
        if differ.any() and self.sums.totals["first_segment"] < 0:
            scale = self.plan.scale
            self._note("first", piece, int(differ.argmax()), golden * scale, candidate * scale)
        self.sums.totals["mismatches"] += np.count_nonzero(differ)

    def _note(self, what: str, piece: Piece, flat: int, golden: Floats, candidate: Floats) -> None:
        """Keep a place, and the values there."""
        row, column = divmod(flat, golden.shape[1])
        place = self.segment, piece.position + row, piece.channel + column
        for name, index in zip(("segment", "position", "channel"), place, strict=True):
            self.sums.totals[f"{what}_{name}"] = index
        for name, values in (("golden", golden), ("candidate", candidate)):
            self.sums.totals[f"{what}_{name}"] = values.flat[flat] / self.plan.scale

    def _add_sizes(self, golden: Floats, size: Floats) -> None:
        """Add what is made of the sizes of the differences."""
        totals, unit = self.sums.totals, self.plan.precision
        magnitude = np.abs(golden)
        totals["max_g"] = max(totals["max_g"], magnitude.max())
        totals["abs_d"] += size.sum()
        tolerance = unit.atol * self.plan.scale + unit.rtol * magnitude
        totals["outside"] += np.count_nonzero(size > tolerance)
        relative = size / np.maximum(magnitude, self.plan.denominator)
        totals["sum_rel"] += relative.sum()
        totals["max_rel"] = max(totals["max_rel"], relative.max())

    def _add_squares(
        self, golden: Floats, candidate: Floats, difference: Floats, piece: Piece
    ) -> None:
        """Add inner products, in all and per token and channel."""
        totals, sums = self.sums.totals, self.sums
        totals["sum_d"] += difference.sum()
        totals["sq_c"] += np.vdot(candidate, candidate)
        totals["dot"] += np.vdot(golden, candidate)
        square_d, square_g = difference * difference, golden * golden
        tokens_d, tokens_g = square_d.sum(1), square_g.sum(1)
        totals["sq_d"] += tokens_d.sum()
        totals["sq_g"] += tokens_g.sum()
        rows, width = golden.shape
        if sums.token_d.size:
            here = slice(self.before + piece.position, self.before + piece.position + rows)
            sums.token_d[here] += tokens_d
            sums.token_g[here] += tokens_g
        if sums.channel_d.size:
            these = slice(piece.channel, piece.channel + width)
            sums.channel_d[these] += square_d.sum(0)
            sums.channel_g[these] += square_g.sum(0)

    def _add_distances(
        self, golden: NDArray[Any], candidate: NDArray[Any], both: NDArray[np.bool_]
    ) -> None:
        """Add the distances in units of last place, and the differences after rounding."""
        if is_whole(self.plan.narrow):
            distance = np.abs(_difference(golden, candidate))
        else:
            low = [_rounded(side, self.plan.narrow) for side in (golden, candidate)]
            a, b = (ordinals(side) for side in low)
            distance = np.where(a > b, a - b, b - a).view(np.uint64).astype(np.float64)
            if self.plan.golden != self.plan.candidate:
                self._add_rounded(*(side.to(torch.float64).numpy() for side in low))
        self.sums.totals["ulp_max"] = max(self.sums.totals["ulp_max"], distance.max())
        self.sums.histogram += np.bincount(bins(distance[both]), minlength=BINS)

    def _add_rounded(self, golden: Floats, candidate: Floats) -> None:
        """Add the squares of both sides rounded to the narrower type."""
        totals, finite = self.sums.totals, np.isfinite(golden) & np.isfinite(candidate)
        totals["low_overflows"] += np.count_nonzero(~finite)
        golden, candidate = (side[finite] * self.plan.scale for side in (golden, candidate))
        difference = candidate - golden
        totals["low_sq_d"] += np.dot(difference, difference)
        totals["low_sq_g"] += np.dot(golden, golden)


def _widened(values: torch.Tensor) -> NDArray[Any]:
    """Return the values in the type that differences are taken in: exact for integers."""
    if values.dtype != torch.uint64:
        values = values.to(torch.int64 if is_whole(values.dtype) else torch.float64)
    return values.numpy()


def _difference(golden: NDArray[Any], candidate: NDArray[Any]) -> Floats:
    """Return candidate less golden; integers of one type without overflow."""
    if golden.dtype != candidate.dtype or golden.dtype == np.float64:
        return candidate.astype(np.float64, copy=False) - golden.astype(np.float64, copy=False)
    # Unsigned subtraction wraps around, which makes the larger less the smaller right.
    up = (candidate.view(np.uint64) - golden.view(np.uint64)).astype(np.float64)
    down = (golden.view(np.uint64) - candidate.view(np.uint64)).astype(np.float64)
    return np.where(candidate >= golden, up, -down)


def _rounded(values: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(values).to(torch.float64).to(dtype)


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
