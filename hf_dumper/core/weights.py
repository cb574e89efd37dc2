"""Parameters and buffers on their way from a model to a dump."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

PARAMETER, BUFFER = "weight", "buffer"
"""The two kinds; also the first words of their slots."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter or buffer, under all the names that a model has for it.

    Attributes:
        names: Dotted names without a leading `root.`; the first one stands for all.
        kind: PARAMETER or BUFFER.
        dtype: As torch names it, without `torch.`.
        shape: Its dimensions.
        nbytes: Length of the values in bytes.
        reason: Why the values are not dumped, empty when they are.
        load: Returns the values on the CPU, contiguous. Each call may read them from a disk anew,
            and nothing is kept.
    """

    names: tuple[str, ...]
    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str
    load: Callable[[], torch.Tensor]
