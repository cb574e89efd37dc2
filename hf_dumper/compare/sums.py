"""What is added up over a pair, whoever adds it up."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.compare.precision import Precision, narrower, precision

OCTAVE: Final = 8
"""Bins of the ULP histogram per factor of two; below 16 every distance has its own."""
ULP_LIMIT: Final = 2**31 - 1
"""Distances beyond are counted as this one, in the histogram only."""
BINS: Final = OCTAVE * 32
MOST_CHANNELS: Final = 1 << 22
"""Channels beyond which none are told apart: two float64 of each are kept."""

SIDE: Final = ("nan", "pos_inf", "neg_inf")

# All fields are 8 bytes wide: the compiled kernels read and write the same memory.
TOTALS: Final = np.dtype(
    [
        *((name, np.float64) for name in ("sum_d", "abs_d", "sq_d", "sq_g", "sq_c", "dot")),
        *((name, np.float64) for name in ("max_d", "max_g", "sum_rel", "max_rel")),
        *((name, np.float64) for name in ("low_sq_d", "low_sq_g")),
        *((name, np.int64) for name in ("compared", "outside", "mismatches", "low_overflows")),
        *((f"golden_{name}", np.int64) for name in SIDE),
        *((f"candidate_{name}", np.int64) for name in SIDE),
        *((f"worst_{name}", np.int64) for name in ("segment", "position", "channel")),
        *((f"first_{name}", np.int64) for name in ("segment", "position", "channel")),
        *((f"worst_{side}", np.float64) for side in ("golden", "candidate")),
        *((f"first_{side}", np.float64) for side in ("golden", "candidate")),
        ("ulp_max", np.float64),
    ]
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be added up, and by which units.

    `positions` is 0 where axes are unknown, `channels` also where they are too many or not the same
    in all segments. `denominator` is the least that a relative error is divided by. `scale` is a
    power of two that values are multiplied by, so that squares neither overflow nor vanish.
    """

    golden: torch.dtype
    candidate: torch.dtype
    positions: int
    channels: int
    by_token: bool
    denominator: float
    scale: float = 1.0

    @property
    def narrow(self) -> torch.dtype:
        """The type that resolves less."""
        return narrower(self.golden, self.candidate)  # remembered there

    @property
    def precision(self) -> Precision:
        """Its precision."""
        return precision(self.narrow)


@dataclass(slots=True)
class Sums:
    """Everything added up; arrays are empty where tokens or channels are not told apart."""

    totals: NDArray[Any] = field(default_factory=lambda: np.zeros((), TOTALS))
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    token_d: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    token_g: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    channel_d: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    channel_g: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def empty(cls, plan: Plan) -> "Sums":
        """Return sums over nothing."""
        sums = cls()
        sums.totals["worst_segment"] = sums.totals["first_segment"] = -1
        if plan.by_token:
            sums.token_d, sums.token_g = np.zeros((2, plan.positions))
        if plan.channels:
            sums.channel_d, sums.channel_g = np.zeros((2, plan.channels))
        return sums

    @classmethod
    def equal(cls, plan: Plan, square: float, count: int) -> "Sums":
        """Return the sums over `count` finite values that are equal on both sides."""
        sums = cls.empty(plan)
        for name in ("sq_g", "sq_c", "dot"):
            sums.totals[name] = square
        sums.totals["compared"] = sums.histogram[0] = count
        return sums
