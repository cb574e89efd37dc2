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

BLOCK = 1 << 18
"""Elements handled at once: 2 MiB in float64, about what a second-level cache holds."""


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

    def merge(self, n: int, low: float, high: float, total: float, squares: float) -> None:
        """Add `n` finite values whose squared deviations from their own mean sum to `squares`.

        The merge of two partial variances is that of Chan, Golub and LeVeque, 1979.
        """
        if not n:
            return
        if not self.finite:  # also keeps 0 * inf out of it
            self.finite, self.low, self.high = n, low, high
            self.total, self.mean, self.squares = total, float(total) / n, squares
            return
        mean = float(total) / n
        both = self.finite + n
        delta = mean - self.mean
        self.squares += squares + delta * delta * self.finite * n / both
        self.mean += delta * n / both
        self.total += total
        self.finite = both
        self.low, self.high = min(self.low, low), max(self.high, high)

    def result(self) -> Statistics:
        """Return the statistics of everything merged."""
        n = self.finite
        l2 = math.hypot(math.sqrt(self.squares), math.sqrt(n) * self.mean)
        counts = (self.zeros, self.nan, self.pos_inf, self.neg_inf)
        if not n:
            return Statistics(self.count, None, None, None, None, 0.0, 0.0, None, *counts)
        std = math.sqrt(self.squares / n)
        low, high, total = float(self.low), float(self.high), float(self.total)
        absmax = max(abs(low), abs(high))
        return Statistics(self.count, low, high, self.mean, std, l2, total, absmax, *counts)


def describe(tensors: Sequence[torch.Tensor]) -> list[Statistics | None]:
    """Return the statistics of each CPU tensor; None for complex ones, which have no order.

    Floating types are accumulated in float64, integers and booleans in int64, so that their sums
    are exact below 2**63.
    """
    results: list[Statistics | None] = [None] * len(tensors)
    for wide, group in _groups(tensors):
        for members in _packed(tensors, group):
            flat = [_flat(tensors[i], wide) for i in members]
            for i, statistics in zip(members, _describe_group(flat, wide), strict=True):
                results[i] = statistics
    return results


def _groups(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.dtype, list[int]]]:
    floats = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    whole = [i for i, t in enumerate(tensors) if not (t.is_floating_point() or t.is_complex())]
    yield torch.float64, floats
    yield torch.int64, [i for i in whole if tensors[i].dtype != torch.uint64]
    # Beyond 2**63 a float64 is the lesser evil.
    yield torch.float64, [i for i in whole if tensors[i].dtype == torch.uint64]


def _packed(tensors: Sequence[torch.Tensor], members: list[int]) -> Iterator[list[int]]:
    """Split the members into groups of at most BLOCK elements; a larger tensor stands alone."""
    group: list[int] = []
    size = 0
    for i in members:
        n = tensors[i].numel()
        if group and size + n > BLOCK:
            yield group
            group, size = [], 0
        group.append(i)
        size += n
    if group:
        yield group


def _flat(tensor: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return flat if flat.numel() > BLOCK else flat.to(wide)


def _describe_group(tensors: list[torch.Tensor], wide: torch.dtype) -> list[Statistics]:
    if len(tensors) == 1:
        return [_describe_one(tensors[0], wide)]
    moments = [_Moments(count=t.numel()) for t in tensors]
    filled = [(m, t.numpy()) for m, t in zip(moments, tensors, strict=True) if t.numel()]
    if filled:
        _add_segments([m for m, _ in filled], [a for _, a in filled])
    return [m.result() for m in moments]


def _describe_one(tensor: torch.Tensor, wide: torch.dtype) -> Statistics:
    moments = _Moments(count=tensor.numel())
    for start in range(0, tensor.numel(), BLOCK):
        _add_segments([moments], [tensor[start : start + BLOCK].to(wide).numpy()])
    return moments.result()


def _add_segments(moments: list[_Moments], arrays: list[NDArray[Any]]) -> None:
    values = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    sizes = np.array([a.size for a in arrays])
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    with np.errstate(invalid="ignore", over="ignore"):
        totals = np.add.reduceat(values, starts)
    if values.dtype.kind == "f" and not np.isfinite(totals).all():
        # A sum is finite only if every value is: the masks are needed for these tensors alone.
        for m, a, total in zip(moments, arrays, totals, strict=True):
            _add_masked(m, a) if not np.isfinite(total) else _add_segments([m], [a])
        return
    lows = np.minimum.reduceat(values, starts)
    highs = np.maximum.reduceat(values, starts)
    zeros = np.add.reduceat(values == 0, starts, dtype=np.int64)
    deviations = values - np.repeat(totals / sizes, sizes)
    with np.errstate(over="ignore"):
        np.multiply(deviations, deviations, out=deviations)
    squares = np.add.reduceat(deviations, starts)
    columns = (m.tolist() for m in (sizes, lows, highs, totals, squares))
    for m, zero, row in zip(moments, zeros.tolist(), zip(*columns, strict=True), strict=True):
        m.zeros += zero
        m.merge(*row)


def _add_masked(moments: _Moments, values: NDArray[Any]) -> None:
    moments.nan += int(np.isnan(values).sum())
    moments.pos_inf += int(np.isposinf(values).sum())
    moments.neg_inf += int(np.isneginf(values).sum())
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    with np.errstate(over="ignore"):
        total = float(finite.sum())
        mean = total / finite.size
        squares = float(np.square(finite - mean).sum())
    moments.zeros += int((finite == 0).sum())
    moments.merge(finite.size, float(finite.min()), float(finite.max()), total, squares)
