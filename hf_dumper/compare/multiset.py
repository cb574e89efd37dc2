"""Whether two tensors hold the same values in another order, in one pass and without sorting."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from hf_dumper.compare.blocks import Segment, pieces


def same_values(segments: Sequence[Segment]) -> bool:
    """Tell whether both sides hold the same values, each as often as on the other side.

    Compared are sums of 64-bit hashes of the values, so memory does not grow with the tensors, and
    two different collections are taken for equal once in 2**64 times.
    """
    return _fingerprint(g for g, _ in segments) == _fingerprint(c for _, c in segments)


def _fingerprint(tensors: Iterable[torch.Tensor]) -> int:
    total = 0
    for tensor in tensors:
        for piece in pieces((tensor, tensor), by_token=False):
            values = piece.golden.to(torch.float64).numpy() + 0.0  # makes both zeros the same
            total += int(_mixed(values.view(np.uint64)).sum(dtype=np.uint64))
    return total & (2**64 - 1)


def _mixed(bits: np.typing.NDArray[np.uint64]) -> np.typing.NDArray[np.uint64]:
    """Return hashes of 64-bit words, as splitmix64 ends (Steele, Lea and Flood, 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
