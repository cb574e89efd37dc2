"""The likeliest tokens by the logits of a forward, worked out behind it."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.core.trace import Candidates, Ints

COUNT = 5
"""How many candidates are kept."""

_GROUP = 64
"""Logits of which the largest is taken first."""

_UPPER = 1 if sys.byteorder == "little" else 0

_KINDS = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16}


def as_floats(memory: bytearray, count: int, dtype: torch.dtype) -> NDArray[np.floating]:
    """Return `count` values of a type at the start of a buffer as float32, or as float64 if so."""
    if dtype is torch.bfloat16:  # NumPy has no such type: it is the upper half of a float32
        wide = np.zeros((count, 2), np.uint16)
        wide[:, _UPPER] = np.frombuffer(memory, np.uint16, count)
        return wide.view(np.float32).reshape(count)
    kind = _KINDS.get(dtype)
    if kind is None:
        return torch.frombuffer(memory, dtype=dtype, count=count).to(torch.float32).numpy()
    values = np.frombuffer(memory, kind, count)
    return values.astype(np.float32) if kind is np.float16 else values


def rank_candidates(
    logits: NDArray[np.floating], chosen: Sequence[int], count: int = COUNT
) -> Candidates:
    """Return the likeliest ids of each row.

    Args:
        logits: Float32 or float64 [rows, vocabulary].
        chosen: The chosen id of each row [rows].
        count: How many; fewer where the vocabulary is smaller.
    """
    rows, count = len(logits), min(count, logits.shape[1])
    ids = np.empty((rows, count), np.int64)
    probabilities = np.empty((rows, count), np.float64)
    margin, share = np.full(rows, np.nan), np.full(rows, np.nan)
    rank = np.zeros(rows, np.int64)
    for row, (values, taken) in enumerate(zip(logits, chosen, strict=True)):
        order = ids[row] = _best(values, count)
        best = values[order]
        with np.errstate(invalid="ignore"):  # infinite logits, or none that is finite
            weights = np.exp(values - best[0])
            total = weights.sum(dtype=np.float64)
            probabilities[row] = weights[order] / total
            if count > 1:
                margin[row] = np.float64(best[0]) - np.float64(best[1])
            if 0 <= taken < len(values):  # padding may be an id of its own, beyond the vocabulary
                share[row] = weights[taken] / total
                rank[row] = 1 + np.count_nonzero(values > values[taken])
    return Candidates(ids, probabilities, margin, share, rank)


def _best(values: NDArray[np.floating], count: int) -> Ints:
    """Return the ids of the largest values, largest first; a NaN counts as the largest of all."""
    bound = _bound(values, count)
    if np.isnan(bound) or np.isnan(values[-_GROUP:]).any():
        values = np.where(np.isnan(values), np.inf, values)
        bound = _bound(values, count)
    found = np.flatnonzero(values >= bound)
    order = np.argsort(-values[found], kind="stable")[:count]
    return np.asarray(found[order], np.int64)


def _bound(values: NDArray[np.floating], count: int) -> Any:
    """Return a number that at least `count` values reach, and few more as a rule.

    Of the largest values of groups, it is the one at place `count`: there are as many groups that
    reach it. A partition of all values takes four times as long.
    """
    groups = len(values) // _GROUP
    if groups < count:
        return values.min()
    whole = values[: groups * _GROUP].reshape(_GROUP, groups)
    largest = whole.max(axis=0)  # NaN for a group that holds one
    return largest.max() if np.isnan(largest.max()) else np.partition(largest, -count)[-count]
