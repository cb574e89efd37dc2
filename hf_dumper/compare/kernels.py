"""The sums over a pair by compiled kernels, where they were built and know the types."""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import torch

from hf_dumper.compare.blocks import Segment
from hf_dumper.compare.sums import Plan, Sums

try:
    from hf_dumper.compare import _kernels
except ImportError:  # installed without a compiler: plain.py does the same
    HAVE_KERNELS = False
else:
    HAVE_KERNELS = True

_TYPES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_Side: TypeAlias = tuple[int, int, int, int, int]
_Three: TypeAlias = tuple[int, int, int]


class Layout(NamedTuple):
    """Where the values of a segment lie, as [positions, outer, inner] with strides in bytes."""

    golden: _Side
    candidate: _Side
    sizes: _Three


def layouts(segments: Sequence[Segment], *, by_token: bool) -> list[Layout] | None:
    """Return what the kernels need to know of each segment; None if one is not for them."""
    if not HAVE_KERNELS:
        return None
    found = []
    for golden, candidate in segments:
        if golden.dtype not in _TYPES or candidate.dtype not in _TYPES:
            return None
        axes = _axes(golden, candidate, by_token)
        if axes is None:
            return None
        sizes, g, c = axes
        found.append(Layout(_side(golden, g), _side(candidate, c), sizes))
    return found


def golden_square(places: Sequence[Layout]) -> tuple[float, int]:
    """Return the sum of squares and the number of the finite golden values."""
    found = [_kernels.golden_square(place.golden, place.sizes) for place in places]
    return sum(square for square, _ in found), sum(count for _, count in found)


def accumulate(places: Sequence[Layout], plan: Plan) -> Sums:
    """Add up everything that metrics are made of; the GIL is released meanwhile."""
    sums = Sums.empty(plan)
    unit, narrow = plan.precision, _TYPES[plan.narrow]
    units = plan.denominator, unit.rtol, unit.atol
    before = 0
    for number, (golden, candidate, sizes) in enumerate(places):
        _kernels.accumulate(
            golden,
            candidate,
            sizes,
            narrow,
            units,
            number,
            before,
            sums.totals,
            sums.histogram,
            sums.token_d,
            sums.token_g,
            sums.channel_d,
            sums.channel_g,
        )
        before += sizes[0]
    return sums


def _side(tensor: torch.Tensor, strides: _Three) -> _Side:
    position, outer, inner = (tensor.itemsize * stride for stride in strides)
    return tensor.data_ptr(), _TYPES[tensor.dtype], position, outer, inner


def _axes(
    golden: torch.Tensor, candidate: torch.Tensor, by_token: bool
) -> tuple[_Three, _Three, _Three] | None:
    """Return sizes and both sides' strides as three axes; None if it takes more."""
    positions = len(golden) if by_token else 1
    if golden.is_contiguous() and candidate.is_contiguous():
        width = golden.numel() // max(positions, 1)
        return (positions, 1, width), (width, 0, 1), (width, 0, 1)
    axes = list(zip(golden.shape, golden.stride(), candidate.stride(), strict=True))
    first = axes.pop(0) if by_token else (1, 0, 0)
    rest: list[tuple[int, int, int]] = []
    for size, g, c in axes:
        if size == 1:
            continue
        if rest and rest[-1][1:] == (g * size, c * size):
            size *= rest.pop()[0]
        rest.append((size, g, c))
    if len(rest) > 2:
        return None
    outer, inner = ([(1, 0, 0)] * 2 + rest)[-2:]
    sizes, *strides = zip(first, outer, inner, strict=True)
    return sizes, strides[0], strides[1]
