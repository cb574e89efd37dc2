"""The likeliest tokens by the logits of a forward, worked out behind it."""

import sys
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.core.trace import Candidates, Ints

COUNT = 5
"""How many candidates are kept."""

_GROUP = 64
"""Logits of which the largest is taken first."""

_BLOCK = 1 << 18
"""Logits that are ranked at once, so that what is computed from them stays in the caches."""

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
    taken = np.asarray(chosen, np.int64)
    step = max(1, _BLOCK // (logits.shape[1] or 1))
    parts = [
        _rank(logits[i : i + step], taken[i : i + step], min(count, logits.shape[1]))
        for i in range(0, len(logits) or 1, step)
    ]
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(Candidates)]
    return Candidates(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def _rank(values: NDArray[np.floating], chosen: Ints, count: int) -> Candidates:
    ids = _best(values, count)
    best = np.take_along_axis(values, ids, 1).astype(np.float64)
    known = (chosen >= 0) & (chosen < values.shape[1])  # padding may be beyond the vocabulary
    at = np.where(known, chosen, 0)[:, None]
    with np.errstate(invalid="ignore"):  # infinite logits, or none that is finite
        weights = np.exp(values - np.take_along_axis(values, ids[:, :1], 1))
        total = weights.sum(axis=1, dtype=np.float64, keepdims=True)
        probabilities = np.take_along_axis(weights, ids, 1) / total
        share = np.where(known, (np.take_along_axis(weights, at, 1) / total)[:, 0], np.nan)
        margin = best[:, 0] - best[:, 1] if count > 1 else np.full(len(values), np.nan)
    greater = np.count_nonzero(values > np.take_along_axis(values, at, 1), axis=1)
    return Candidates(ids, probabilities, margin, share, np.where(known, 1 + greater, 0))


def _best(values: NDArray[np.floating], count: int) -> Ints:
    """Return the ids of the largest values of each row, largest first; a NaN counts as larger."""
    bound = _bound(values, count)
    if np.isnan(bound).any() or np.isnan(values[:, -_GROUP:]).any():
        values = np.where(np.isnan(values), np.inf, values)
        bound = _bound(values, count)
    # One index and its two parts: on two axes nonzero takes ten times as long.
    rows, columns = np.divmod(np.flatnonzero(values >= bound), values.shape[1])
    order = np.lexsort((-values[rows, columns], rows))  # stable: of equal ones the lower id first
    places = np.searchsorted(rows, np.arange(len(values)))[:, None] + np.arange(count)
    return np.asarray(columns[order[places]], np.int64)


def _bound(values: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """Return a number for each row that at least `count` of its values reach, and few more.

    Of the largest values of groups, it is the one at place `count`: there are as many groups that
    reach it. A partition of all values takes four times as long.
    """
    rows, vocabulary = values.shape
    groups = vocabulary // _GROUP
    if groups < count:
        return np.asarray(values.min(axis=1, keepdims=True))
    whole = values[:, : groups * _GROUP].reshape(rows, _GROUP, groups)
    largest = whole.max(axis=1)  # NaN for a group that holds one
    top = largest.max(axis=1)
    found = np.partition(largest, -count, axis=1)[:, -count]
    return np.asarray(np.where(np.isnan(top), top, found)[:, None])
