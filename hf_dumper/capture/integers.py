"""Integers of a live tensor, copied at once and looked at later.

Between two hooks the model streams its weights through the caches: an operator of torch costs ten
microseconds there, a copy of bytes one. What the copy means is worked out behind the forward.
"""

import ctypes
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.capture.storable import PLAIN, is_literal

Numbers: TypeAlias = NDArray[np.integer]

_KINDS = {torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.int8}


class Integers(NamedTuple):
    """Integers [rows, columns]: their bytes, or an array where that was easier."""

    values: bytes | Numbers
    dtype: torch.dtype
    rows: int

    def table(self, rows: int | None = None) -> Numbers:
        """Return them as [rows, columns]; None means as many as there are, one stands for all."""
        values = self.values
        if isinstance(values, bytes):
            values = np.frombuffer(values, _KINDS[self.dtype]).reshape(self.rows, -1)
        return values if rows in (None, self.rows) else np.repeat(values, rows, axis=0)


def copy_integers(value: Any) -> Integers | None:
    """Copy a tensor of two axes, without an operator of torch where possible; None for others."""
    if type(value) not in PLAIN or value.ndim != 2:
        return None
    dtype, rows = value.dtype, value.shape[0]
    if dtype in _KINDS and is_literal(value) and value.numel():
        return Integers(ctypes.string_at(value.data_ptr(), value.nbytes), dtype, rows)
    copied = value.detach().to("cpu", torch.int64, copy=True).numpy()
    return Integers(cast("Numbers", copied), torch.int64, rows)


def copy_mask(value: Any) -> Integers | None:
    """Copy a mask of two axes, of any dtype: 0 is masked, any other number is not."""
    if type(value) in PLAIN and value.ndim == 2 and value.dtype not in _KINDS:
        value = value.detach() != 0
    return copy_integers(value)
