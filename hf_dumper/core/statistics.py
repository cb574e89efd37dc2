"""Statistics of many tensors at once, in float64, behind the forward.

Tensors of one decode step are small and many; one NumPy call per tensor and statistic would cost
more than the step. So the tensors of a dtype are laid end to end, and each statistic is one
segmented reduction over all of them. These calls release the GIL, so a writer thread can make them
while the model runs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.core.sums import BLOCK, Sums, sums, widest

_CANCELLED = 1e-3
"""Share of the mean square below which a variance is too small to be had as a difference: the
rounding errors of float64 would reach its twelfth digit."""


class Statistics(NamedTuple):
    """Statistics of one tensor; all but the counts are over its finite values only.

    `count` is the number of elements. `std` is the population standard deviation, `l2` the
    Euclidean norm. `min` to `std` and `absmax` are None when no value is finite, as in an empty
    tensor.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks for here
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    l2: float
    sum: float
    absmax: float | None
    zeros: int
    nan: int
    pos_inf: int
    neg_inf: int


FIELDS = Statistics._fields
COUNTS = frozenset({"count", "zeros", "nan", "pos_inf", "neg_inf"})

TABLE = np.dtype([(name, np.int64 if name in COUNTS else np.float64) for name in FIELDS])
"""Statistics of many tensors in columns: NaN stands for None, and NONE for no statistics at all."""

NONE = -1
"""The `count` of a row of a table that stands for a tensor without statistics."""


@dataclass(slots=True)
class _Moments:
    """Sums over the finite values of one tensor, mergeable block by block."""

    count: int = 0
    finite: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0

    def add(self, values: NDArray[Any]) -> None:
        """Add a block of values."""
        self.zeros += int((values == 0).sum())
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            self.nan += int(np.isnan(values).sum())
            self.pos_inf += int(np.isposinf(values).sum())
            self.neg_inf += int(np.isneginf(values).sum())
            values = values[np.isfinite(values)]
        if not values.size:
            return
        with np.errstate(over="ignore"):
            total = values.sum()
            mean = float(total) / values.size
            squares = float(np.square(values - mean).sum())
        self.low = min(self.low, values.min())
        self.high = max(self.high, values.max())
        self.total += total.item()
        self._merge(values.size, mean, squares)

    def _merge(self, n: int, mean: float, squares: float) -> None:
        """Add `n` values whose squared deviations from their mean sum to `squares`.

        The merge of two partial variances is that of Chan, Golub and LeVeque, 1979.
        """
        if not self.finite:  # also keeps 0 * inf out of it
            self.finite, self.mean, self.squares = n, mean, squares
            return
        both = self.finite + n
        delta = mean - self.mean
        self.squares += squares + delta * delta * self.finite * n / both
        self.mean += delta * n / both
        self.finite = both

    def result(self) -> Statistics:
        """Return the statistics of everything added."""
        n = self.finite
        counts = (self.zeros, self.nan, self.pos_inf, self.neg_inf)
        if not n:
            return Statistics(self.count, None, None, None, None, 0.0, 0.0, None, *counts)
        low, high, total = float(self.low), float(self.high), float(self.total)
        std = math.sqrt(self.squares / n)
        l2 = math.hypot(math.sqrt(self.squares), math.sqrt(n) * self.mean)
        absmax = max(abs(low), abs(high))
        return Statistics(self.count, low, high, self.mean, std, l2, total, absmax, *counts)


def describe(tensors: Sequence[torch.Tensor]) -> list[Statistics | None]:
    """Return the statistics of each CPU tensor; None for complex ones, which have no order.

    Floating types are accumulated in float64, integers and booleans in int64, so that their sums
    are exact below 2**63; uint64 in float64, as the lesser evil beyond that.
    """
    results: list[Statistics | None] = [None] * len(tensors)
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if not tensor.is_complex():
            by_dtype.setdefault(tensor.dtype, []).append(i)
    for members in by_dtype.values():
        sizes = [tensors[i].numel() for i in members]
        for first, last in _packs(sizes):
            flat = [tensors[i].reshape(-1) for i in members[first:last]]
            values = flat[0] if len(flat) == 1 else torch.cat([_catable(f) for f in flat])
            found = describe_adjacent(values.view(flat[0].dtype), sizes[first:last])
            for i, row in zip(members[first:last], found.tolist(), strict=True):
                results[i] = Statistics._make(None if x != x else x for x in row)
    return results


def describe_adjacent(values: torch.Tensor, sizes: Sequence[int]) -> NDArray[np.void]:
    """Return the statistics of tensors that lie end to end in one vector, a TABLE.

    Args:
        values: One-dimensional, on the CPU, of any type but a complex one.
        sizes: Number of elements of each tensor, in order.
    """
    table = np.empty(len(sizes), TABLE)
    start = 0
    for first, last in _packs(sizes):
        stop = start + sum(sizes[first:last])
        if stop - start > BLOCK:
            _describe_large(values[start:stop], table[first:last])
        else:
            _describe_pack(values[start:stop], sizes[first:last], table[first:last])
        start = stop
    return table


def _packs(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of tensors with at most BLOCK elements; a larger one stands alone."""
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and total + size > BLOCK:
            yield first, i
            first, total = i, 0
        total += size
    if first < len(sizes):
        yield first, len(sizes)


def _catable(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of types that torch cannot concatenate."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _describe_pack(values: torch.Tensor, sizes: Sequence[int], table: NDArray[np.void]) -> None:
    """Describe many small tensors with one reduction per statistic over all of them."""
    n = np.array(sizes)
    present = n > 0
    if not present.all():
        table[~present] = _row(_Moments())
        n = n[present]
    if n.size:
        ends = np.cumsum(n)
        starts = ends - n
        found = _finish(n, sums(values, starts))
        for i in np.flatnonzero(found["count"] == NONE).tolist():
            found[i] = _row(_exact_moments(values[starts[i] : ends[i]]))
        table[present] = found


def _describe_large(values: torch.Tensor, table: NDArray[np.void]) -> None:
    """Describe one tensor block by block, so that memory does not grow with it."""
    blocks = [sums(block, np.array([0])) for block in values.split(BLOCK)]
    lows, highs, totals, squares, zeros = (np.concatenate(c) for c in zip(*blocks, strict=True))
    whole = lows.min(), highs.max(), totals.sum(), squares.sum(), zeros.sum()
    table[:] = _finish(np.array([values.numel()]), tuple(np.atleast_1d(s) for s in whole))
    if table["count"][0] == NONE:
        table[0] = _row(_exact_moments(values))


def _finish(n: NDArray[np.intp], found: Sums) -> NDArray[np.void]:
    """Return the statistics that follow from sums over `n` values, NONE where they do not.

    A sum of squares is finite only if every value is. And the variance of values far from 0 would
    be lost in the difference of two large numbers.
    """
    lows, highs, totals, squares, zeros = found
    table = np.zeros(len(n), TABLE)
    with np.errstate(invalid="ignore", over="ignore"):
        means, mean_squares = totals / n, squares / n
        variances = mean_squares - means * means
        good = (variances > _CANCELLED * mean_squares) & np.isfinite(squares)
        table["count"] = np.where(good, n, NONE)
        table["min"], table["max"], table["mean"] = lows, highs, means
        table["std"], table["l2"] = np.sqrt(variances.clip(0)), np.sqrt(squares)
        table["sum"], table["absmax"] = totals, np.maximum(np.abs(lows), np.abs(highs))
        table["zeros"] = zeros
    return table


def _exact_moments(values: torch.Tensor) -> _Moments:
    """Describe one tensor with masks, and with its deviations from the mean."""
    moments = _Moments(count=values.numel())
    for block in values.split(BLOCK):
        moments.add(block.to(widest(values)).numpy())
    return moments


def _row(moments: _Moments) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in moments.result())
