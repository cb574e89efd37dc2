"""The numbers of one pair of tensors: `measure` reads them block by block, in float64."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from hf_dumper.compare import kernels, plain
from hf_dumper.compare.blocks import Segment
from hf_dumper.compare.derive import Derived, derive
from hf_dumper.compare.multiset import same_values
from hf_dumper.compare.precision import bits, is_measurable, precision
from hf_dumper.compare.registry import Metric, apply
from hf_dumper.compare.sums import MOST_CHANNELS, SIDE, Plan, Sums

_LARGE, _SMALL = 1e100, 1e-100
"""Sizes of float64 values whose squares are in danger."""


class NonFinite(NamedTuple):
    """How many values of one side are not finite."""

    nan: int
    pos_inf: int
    neg_inf: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.nan + self.pos_inf + self.neg_inf


class Place(NamedTuple):
    """One place of a pair, and what both sides have there.

    `position` indexes the segment, `channel` its flattened channels. Without known axes `position`
    is None, and `channel` indexes the flattened tensor.
    """

    segment: int
    position: int | None
    channel: int
    golden: float
    candidate: float


class Token(NamedTuple):
    """One position of a segment."""

    segment: int
    position: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Every number of one pair; None is what cannot be computed.

    `elements` counts the places, `compared` those that are finite on both sides: only they count
    in `values`. `worst` is the place of the largest difference, None without any.
    """

    values: Mapping[str, float | None]
    elements: int
    compared: int
    golden_nonfinite: NonFinite
    candidate_nonfinite: NonFinite
    mask_mismatches: int
    worst: Place | None
    worst_token: Token | None
    first_mismatch: Place | None
    extra: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether all values are equal, those that are not finite included."""
        return not self.mask_mismatches and self.values["max_abs"] in (0.0, None)


def measure(
    segments: Iterable[Segment], *, by_token: bool, extra: Mapping[str, Metric] | None = None
) -> Measurement:
    """Measure how far a candidate is from its golden counterpart.

    Nothing is copied but one block at a time, whatever the strides; besides, two numbers are kept
    per position and per channel. Complex numbers are two channels each.

    Args:
        segments: Golden and candidate of one row each, [positions, ...channels], of equal shapes.
        by_token: Whether the first axis is the position. If not, each segment is a whole tensor,
            and metrics of tokens and channels are None.
        extra: Metrics of the user's own, by name. They are given whole vectors.

    Raises:
        ValueError: two shapes differ, or a type holds no numbers.
        ConfigError: a metric of the user's own fails.
    """
    whole = checked(segments, by_token)
    if not sum(golden.numel() for golden, _ in whole):
        return _nothing(extra or {})
    sums, plan = added_up(whole, by_token)
    found = derive(sums, plan)
    if found.totals["compared"]:
        found.values["sorted_equal"] = float(_is_permuted(found.totals, whole))
    return _measurement(found, by_token, whole, apply(extra or {}, whole))


def added_up(segments: Sequence[Segment], by_token: bool) -> tuple[Sums, Plan]:
    """Return all sums; the golden side is looked at first, since its size is a yardstick."""
    scale = _scale(segments)
    places = kernels.layouts(segments, by_token=by_token) if scale == 1 else None
    if places is None:
        square, count = plain.golden_square(segments, scale)
    else:
        square, count = kernels.golden_square(places)
    plan = _plan(segments, by_token, scale, square, count)
    if count == sum(golden.numel() for golden, _ in segments) and _are_equal(segments):
        return Sums.equal(plan, square, count), plan
    if places is None:
        return plain.accumulate(segments, plan), plan
    return kernels.accumulate(places, plan), plan


def _are_equal(segments: Sequence[Segment]) -> bool:
    """Tell whether both sides have equal bytes."""
    return all(
        golden.dtype == candidate.dtype and torch.equal(bits(golden), bits(candidate))
        for golden, candidate in segments
    )


def checked(segments: Iterable[Segment], by_token: bool) -> list[Segment]:
    """Return the segments as real numbers, all of the same two types.

    Raises:
        ValueError: they are not of equal shapes and types, or hold no numbers.
    """
    found = [_checked(golden, candidate, by_token) for golden, candidate in segments]
    if len({(golden.dtype, candidate.dtype) for golden, candidate in found}) > 1:
        msg = "The segments of one pair differ in type."
        raise ValueError(msg)
    return found


def _checked(golden: torch.Tensor, candidate: torch.Tensor, by_token: bool) -> Segment:
    """Return a segment of real numbers."""
    if golden.shape != candidate.shape:
        msg = f"Shapes differ: golden {list(golden.shape)}, candidate {list(candidate.shape)}."
        raise ValueError(msg)
    if by_token and not golden.dim():
        msg = "A scalar has no position axis. Pass by_token=False."
        raise ValueError(msg)
    for tensor in (golden, candidate):
        if not is_measurable(tensor.dtype):
            msg = f"Tensors of {tensor.dtype} hold no numbers that can be measured."
            raise ValueError(msg)
    if golden.is_complex() or candidate.is_complex():
        golden, candidate = _as_real(golden), _as_real(candidate)
    return golden.detach(), candidate.detach()


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor if tensor.is_complex() else tensor.to(torch.complex128)
    return torch.view_as_real(whole.resolve_conj())


def _nothing(extra: Mapping[str, Metric]) -> Measurement:
    """Return what is known of no elements: nothing."""
    none, plan = NonFinite(0, 0, 0), Plan(torch.float32, torch.float32, 0, 0, False, 1.0)
    values = derive(Sums(), plan).values
    return Measurement(values, 0, 0, none, none, 0, None, None, None, dict.fromkeys(extra))


def _plan(
    segments: Sequence[Segment], by_token: bool, scale: float, square: float, count: int
) -> Plan:
    """Return the plan, given the sum of squares of so many golden values."""
    golden, candidate = segments[0][0].dtype, segments[0][1].dtype
    size = math.sqrt(square / count) / scale if count else 0.0
    positions = sum(len(g) for g, _ in segments) if by_token else 0
    widths = {g.shape[1:].numel() for g, _ in segments}
    channels = widths.pop() if by_token and len(widths) == 1 else 0
    channels = 0 if channels > MOST_CHANNELS else channels
    denominator = 2 * precision(golden).ulp(size) * scale
    return Plan(golden, candidate, positions, channels, by_token, denominator, scale)


def _scale(segments: Sequence[Segment]) -> float:
    """Return the power of two that brings very large or very small float64 values near 1."""
    sides = [tensor for segment in segments for tensor in segment]
    if all(tensor.dtype != torch.float64 for tensor in sides):
        return 1.0
    largest = max(plain.largest(tensor) for tensor in sides)
    if not largest or _SMALL < largest < _LARGE:
        return 1.0
    return math.ldexp(1.0, min(-math.frexp(largest)[1], 1000))


def _is_permuted(t: Mapping[str, Any], segments: Sequence[Segment]) -> bool:
    """Tell whether both sides hold the same values in whatever order."""
    if not t["max_d"]:
        return True
    noise = 1e-9  # far above what the order of a sum changes
    if abs(t["sq_c"] - t["sq_g"]) > noise * t["sq_g"]:
        return False
    if abs(t["sum_d"]) > noise * math.sqrt(t["compared"] * t["sq_g"]):
        return False
    return same_values(segments)


def _measurement(
    found: Derived,
    by_token: bool,
    segments: Sequence[Segment],
    extra: Mapping[str, float | None],
) -> Measurement:
    totals = found.totals
    golden, candidate = (
        NonFinite(*(totals[f"{side}_{name}"] for name in SIDE)) for side in ("golden", "candidate")
    )
    return Measurement(
        values=found.values,
        elements=sum(golden.numel() for golden, _ in segments),
        compared=totals["compared"],
        golden_nonfinite=golden,
        candidate_nonfinite=candidate,
        mask_mismatches=totals["mismatches"],
        worst=_place(totals, "worst", by_token),
        worst_token=_worst_token(found, segments),
        first_mismatch=_place(totals, "first", by_token),
        extra=extra,
    )


def _place(totals: Mapping[str, Any], what: str, by_token: bool) -> Place | None:
    if totals[f"{what}_segment"] < 0:
        return None
    place = Place(*(totals[f"{what}_{part}"] for part in Place._fields))
    return place if by_token else place._replace(position=None)


def _worst_token(found: Derived, segments: Sequence[Segment]) -> Token | None:
    """Return the position of the largest `token_rel_l2`, None without any error."""
    if not found.values["token_rel_l2"]:
        return None
    flat = int(found.tokens.argmax())
    for segment, (golden, _) in enumerate(segments):
        if flat < len(golden):
            return Token(segment, flat)
        flat -= len(golden)
    return None
