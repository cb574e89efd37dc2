"""Sums over many small tensors that lie end to end: compiled for common types, else in NumPy."""

import os
import threading
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.core.compiled import PURE_PYTHON

try:
    from hf_dumper.core import _sums

    COMPILED = True
except ImportError:  # not built
    COMPILED = False

BLOCK = 1 << 16
"""Elements handled at once: 512 KiB in float64, half of what a second-level cache holds."""


_KERNELS: Final = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
"""Types that the compiled sums know."""

_NOT_NUMPY = frozenset(
    getattr(torch, name)
    for name in dir(torch)
    if name.startswith("float8") or name in ("bfloat16", "bool")
)
"""Types that NumPy lacks, or cannot order by `minimum`."""


Sums: TypeAlias = tuple[NDArray[Any], ...]
"""Per segment: least, greatest, sum, sum of squares, number of zeros."""


def sums(values: torch.Tensor, starts: NDArray[np.intp]) -> Sums:
    """Reduce the segments of a vector that begin at `starts`, none of them empty.

    There are at most BLOCK values. Where one is not finite, the sum of squares is not, either.
    """
    dtype = _KERNELS.get(values.dtype)
    is_plain = values.is_contiguous() and not values.is_neg()
    if dtype is None or not is_plain or not COMPILED or os.environ.get(PURE_PYTHON):
        return _plain_sums(values, starts)
    starts = np.ascontiguousarray(starts, np.int64)
    out = np.empty((len(starts), 5))
    _sums.sums(dtype, values.data_ptr(), values.numel(), starts, out)
    lows, highs, totals, squares, zeros = out.T
    return lows, highs, totals, squares, zeros.astype(np.int64)


def _plain_sums(values: torch.Tensor, starts: NDArray[np.intp]) -> Sums:
    """Reduce the segments that begin at `starts`, of at most BLOCK values in all."""
    numbers = _scratch.widened(values)
    narrow = numbers if values.dtype in _NOT_NUMPY else values.numpy()  # half the memory to read
    with np.errstate(invalid="ignore", over="ignore"):
        lows, highs = np.minimum.reduceat(narrow, starts), np.maximum.reduceat(narrow, starts)
        totals = np.add.reduceat(numbers, starts)
        equal = narrow == 0
        zeros = np.add.reduceat(equal, starts, dtype=np.int64) if equal.any() else 0 * starts
        if numbers.dtype != np.float64:
            numbers = numbers.astype(np.float64)
        np.multiply(numbers, numbers, out=numbers)
        squares = np.add.reduceat(numbers, starts)
    return lows.astype(np.float64), highs.astype(np.float64), totals, squares, zeros


class _Scratch(threading.local):
    """Memory for one block, used again: fresh pages would cost more than the arithmetic on them."""

    def __init__(self) -> None:
        """Take a block; integers and floats share it."""
        self._block = np.empty(BLOCK, np.float64)

    def widened(self, values: torch.Tensor) -> NDArray[Any]:
        """Return a copy of at most BLOCK values in the type they are accumulated in."""
        whole = widest(values) is torch.int64
        block = self._block.view(np.int64) if whole else self._block
        torch.from_numpy(block[: values.numel()]).copy_(values)
        return block[: values.numel()]


_scratch = _Scratch()


def widest(values: torch.Tensor) -> torch.dtype:
    """Return the type to accumulate in: exact for integers, but for the largest."""
    whole = not values.is_floating_point() and values.dtype != torch.uint64
    return torch.int64 if whole else torch.float64
