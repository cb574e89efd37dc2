"""How finely the types of elements resolve: units of last place, rounding, tolerances."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Precision:
    """What one unit of last place is, and which difference is usual.

    `bits` are the stored bits of the significand, `lowest` is the exponent of the smallest normal
    number, `rtol` and `atol` are the tolerances that `fraction_outside` counts by.
    """

    bits: int
    lowest: int
    rtol: float
    atol: float

    def ulp(self, value: float) -> float:
        """Return the unit of last place of numbers as large as `value`."""
        exponent = math.frexp(value)[1] - 1 if value else self.lowest
        return math.ldexp(1.0, max(exponent, self.lowest) - self.bits)


# Not torch.finfo: it gives float8_e5m2fnuz a bit too many (torch 2.13). Tolerances are those of
# torch.testing.assert_close; for the types it lacks, two units of last place.
_PRECISIONS: Final = {
    "float64": Precision(52, -1022, 1e-7, 1e-7),
    "float32": Precision(23, -126, 1.3e-6, 1e-5),
    "float16": Precision(10, -14, 1e-3, 1e-5),
    "bfloat16": Precision(7, -126, 1.6e-2, 1e-5),
    "float8_e4m3fn": Precision(3, -6, 0.25, 1e-5),
    "float8_e4m3fnuz": Precision(3, -7, 0.25, 1e-5),
    "float8_e5m2": Precision(2, -14, 0.5, 1e-5),
    "float8_e5m2fnuz": Precision(2, -15, 0.5, 1e-5),
    "float8_e8m0fnu": Precision(0, -127, 2.0, 1e-5),
}
_WHOLE: Final = Precision(63, 63, 0.0, 0.0)  # the unit is 1, whatever the size
_INTEGERS: Final = frozenset(
    f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)
) | {"bool"}
_COMPLEX: Final = frozenset({"complex32", "complex64", "complex128"})
_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def is_measurable(dtype: torch.dtype) -> bool:
    """Tell whether tensors of that type are numbers that `measure` can read."""
    return _name(dtype) in _PRECISIONS.keys() | _INTEGERS | _COMPLEX


@cache
def is_whole(dtype: torch.dtype) -> bool:
    """Tell whether the type holds integers or truth values."""
    return _name(dtype) in _INTEGERS


@cache
def precision(dtype: torch.dtype) -> Precision:
    """Return the precision of a real type; the unit of integers is 1, and they must be equal."""
    return _PRECISIONS.get(_name(dtype), _WHOLE)


@cache
def narrower(golden: torch.dtype, candidate: torch.dtype) -> torch.dtype:
    """Return the type with the fewer bits in its significand; a float counts before an integer.

    Of two types that resolve the same it is the one that ends earlier, else the golden one.
    """

    def rank(dtype: torch.dtype) -> tuple[bool, int, int]:
        resolution = precision(dtype)
        return is_whole(dtype), resolution.bits, -resolution.lowest

    return min(golden, candidate, key=rank)


def ordinals(values: torch.Tensor) -> NDArray[np.int64]:
    """Number the floating values by their order: neighbours differ by 1, and both zeros are 0."""
    whole = bits(values).numpy().astype(np.int64)
    if values.dtype == getattr(torch, "float8_e8m0fnu", None):
        return whole & 0xFF  # no sign bit
    least = -(1 << (8 * values.dtype.itemsize - 1))
    return np.where(whole < 0, least - whole, whole)


def bits(values: torch.Tensor) -> torch.Tensor:
    """Return a view of the same bytes as integers."""
    return values.view(_BITS[values.dtype.itemsize])
