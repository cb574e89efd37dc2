from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Side: TypeAlias = tuple[int, int, int, int, int]
Sizes: TypeAlias = tuple[int, int, int]

def accumulate(
    golden: Side,
    candidate: Side,
    sizes: Sizes,
    narrow: int,
    units: tuple[float, float, float],
    segment: int,
    before: int,
    totals: NDArray[Any],
    histogram: NDArray[np.int64],
    token_d: NDArray[np.float64],
    token_g: NDArray[np.float64],
    channel_d: NDArray[np.float64],
    channel_g: NDArray[np.float64],
    /,
) -> None: ...
def golden_square(golden: Side, sizes: Sizes, /) -> tuple[float, int]: ...
