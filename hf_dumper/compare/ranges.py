"""Which of many parts stand out by their errors, and words for them."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GAP: Final = 8.0
"""By how much errors must differ for parts to stand out."""
_SHOWN: Final = 6
"""Ranges that are listed; of more, the first ones."""


class Standing(NamedTuple):
    """The parts that stand out, and the largest relative error of the others."""

    chosen: NDArray[np.bool_]
    elsewhere: float


def outliers(squares_d: NDArray[np.float64], squares_g: NDArray[np.float64]) -> Standing | None:
    """Return the parts, at most half of them, whose errors are far above those of all others.

    An error is relative to the size of the golden part, but to no less than the median size: beside
    next to nothing, every error is large. None if no part stands out.

    Args:
        squares_d: Sum of the squared differences of each part.
        squares_g: Sum of the squared golden values of each part.
    """
    count = squares_d.size
    sizes = np.maximum(squares_g, np.median(squares_g))
    errors = np.sqrt(squares_d / np.where(sizes > 0, sizes, 1.0))
    order = np.argsort(-errors, kind="stable")
    ranked = errors[order]
    if count < 2 or not ranked[0]:
        return None
    raised = np.maximum(ranked, 1e-6 * ranked[0])  # next to no error is as good as none
    ratios = raised[: count // 2] / raised[1 : count // 2 + 1]
    most = int(ratios.argmax())
    if ratios[most] < _GAP:
        return None
    chosen = np.zeros(count, np.bool_)
    chosen[order[: most + 1]] = True
    return Standing(chosen, float(ranked[most + 1]))


def among(noun: str, numbers: NDArray[np.intp], total: int | None = None) -> str:
    """Return words such as "channels 3, 64..127 of 128", or "row 5"."""
    ranges = [f"{a}" if a == b else f"{a}..{b}" for a, b in _ranges(numbers)]
    of = "" if total is None else f" of {total}"
    shown = ", ".join(ranges[:_SHOWN])
    many = noun.replace("index", "indice") + "s"
    if len(ranges) > _SHOWN:
        return f"{numbers.size}{of} {many} ({shown}, ...)"
    return f"{many if numbers.size > 1 else noun} {shown}{of}"


def _ranges(numbers: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield the first and last number of each run of ascending neighbours."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        yield int(run[0]), int(run[-1])
