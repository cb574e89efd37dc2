from typing import Any

from numpy.typing import NDArray

def sums(dtype: str, address: int, count: int, starts: NDArray[Any], out: NDArray[Any]) -> None: ...
