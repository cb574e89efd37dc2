"""What may have been done to golden values: does the error collapse when it is undone?

Each hypothesis is a function of golden and candidate, both [positions, channels] in float64, and of
the numbers of the channels. It yields words and what the candidate would be if they were true.
Nothing is believed that leaves more than a quarter of the error.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Channels: TypeAlias = NDArray[np.intp]
Guess: TypeAlias = tuple[str, Floats]

COLLAPSE: Final = 4.0
"""By how much the error must fall when an effect is undone."""
_FEW: Final = 8
"""Values below which a fit says nothing, positions below which channels are not told by theirs."""
_MOST_CHANNELS: Final = 2048
"""Channels of which every pair is correlated."""
_ROUNDED: Final = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


class Proof(NamedTuple):
    """What was done, with the relative error before and after it is undone."""

    words: str
    before: float
    after: float


def prove(golden: Floats, candidate: Floats, channels: Channels) -> Proof | None:
    """Return the simplest effect that explains the difference, None if none does."""
    before = _sizes(candidate - golden, golden)
    if not before[0]:
        return None
    unit = np.linalg.norm(golden) or 1.0
    for hypothesis in _HYPOTHESES:
        proven = [
            Proof(words, float(before[0] / unit), float(after[0] / unit))
            for words, expected in hypothesis(golden, candidate, channels)
            if ((after := _sizes(candidate - expected, golden)) * COLLAPSE <= before).all()
        ]
        if proven:
            words = " or ".join(proof.words for proof in proven)
            return proven[0]._replace(words=words)
    return None


def _sizes(difference: Floats, golden: Floats) -> Floats:
    """Return the norm of a difference, then with massive positions and channels made usual.

    Beside a massive position, a fit per channel would explain nothing but that position's noise.
    """
    sizes = [np.linalg.norm(difference)]
    for axis in (1, 0):
        golden_sizes = np.linalg.norm(golden, axis=axis)
        usual = np.median(golden_sizes) or 1.0
        weights = np.minimum(1, usual / np.maximum(golden_sizes, usual))
        sizes.append(np.linalg.norm(np.linalg.norm(difference, axis=axis) * weights))
    return np.array(sizes)


def _rounded(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    """Every value is the golden one in a narrower type, to the last bit."""
    for name in _ROUNDED:
        rounded = torch.from_numpy(golden).to(getattr(torch, name)).to(torch.float64).numpy()
        if np.array_equal(rounded, candidate):
            yield f"rounded to {name}", rounded
            return


def _zeroed(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    words = "next to zero" if candidate.any() else "zero"
    yield f"{words} where golden has values", np.zeros_like(golden)


def _negated(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    if golden.size > 1 or np.array_equal(candidate, -golden):
        yield "negated", -golden


def _fits(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    """One factor, or one offset; both are told where golden values hardly differ."""
    if golden.size < _FEW:
        return
    factor = float(np.vdot(golden, candidate) / np.vdot(golden, golden)) if golden.any() else 0.0
    yield f"scaled by a factor of {factor:.4g}", factor * golden
    offset = float((candidate - golden).mean())
    yield f"shifted by an offset of {offset:.3g}", golden + offset


def _clamped(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    low, high = float(candidate.min()), float(candidate.max())
    below, above = np.count_nonzero(golden < low), np.count_nonzero(golden > high)
    if below + above < 2 or low == high:
        return
    at_low, at_high = np.count_nonzero(candidate == low), np.count_nonzero(candidate == high)
    if (below and at_low < below) or (above and at_high < above):
        return
    if below and above:
        words = f"clamped at +-{high:.4g}" if low == -high else f"clamped to {low:.4g}..{high:.4g}"
    else:
        words = f"clamped from below at {low:.4g}" if below else f"clamped from above at {high:.4g}"
    yield words, np.clip(golden, low, high)


def _rearranged(golden: Floats, candidate: Floats, channels: Channels) -> Iterator[Guess]:
    """Halves of groups of channels exchanged, interleaved or taken apart, as rotary layouts are."""
    rows, width = golden.shape
    if width == 2:
        yield "exchanged", golden[:, ::-1]
    if width < 4 or (np.diff(channels) != 1).any():
        return
    for group in (g for g in range(width, 3, -1) if width % g == channels[0] % g == g % 2 == 0):
        halves = golden.reshape(rows, width // group, 2, group // 2)
        pairs = golden.reshape(rows, width // group, group // 2, 2)
        each = "the channels" if group == width else f"each group of {group} channels"
        for words, expected in (
            (f"first and second half of {each} exchanged", halves[:, :, ::-1]),
            (f"halves of {each} interleaved", halves.swapaxes(2, 3)),
            (f"even and odd channels of {each} taken apart", pairs.swapaxes(2, 3)),
        ):
            yield words, expected.reshape(rows, width)
    if width % 2 == channels[0] % 2 == 0:
        swapped = golden.reshape(rows, width // 2, 2)[:, :, ::-1].reshape(rows, width)
        yield "neighbouring channels exchanged", swapped


Hypothesis: TypeAlias = Callable[[Floats, Floats, Channels], Iterator[Guess]]


def _simplest(hypothesis: Hypothesis) -> Hypothesis:
    """Keep the first guess that is right, of a hypothesis with many."""

    def first(golden: Floats, candidate: Floats, channels: Channels) -> Iterator[Guess]:
        before = np.linalg.norm(candidate - golden)
        for words, expected in hypothesis(golden, candidate, channels):
            if np.linalg.norm(candidate - expected) * COLLAPSE <= before:
                yield words, expected
                return

    return first


def _permuted(golden: Floats, candidate: Floats, channels: Channels) -> Iterator[Guess]:
    """Every channel is another golden channel, told by its course over the positions."""
    rows, width = golden.shape
    if rows < _FEW or not 2 <= width <= _MOST_CHANNELS:
        return
    sources = (_standardised(golden).T @ _standardised(candidate)).argmax(0)
    if np.unique(sources).size == width:
        yield _order_words(sources, channels), golden[:, sources]


def _standardised(values: Floats) -> Floats:
    centred = values - values.mean(0)
    sizes = np.sqrt((centred * centred).sum(0))
    standardised: Floats = centred / np.where(sizes > 0, sizes, 1)
    return standardised


def _order_words(sources: NDArray[np.intp], channels: Channels) -> str:
    """Return words for an order, where channel i has the golden values of channel sources[i]."""
    here = np.arange(sources.size)
    moved = np.flatnonzero(sources != here)
    if moved.size == 2:
        return f"channels {channels[moved[0]]} and {channels[moved[1]]} exchanged"
    if (np.diff(channels) == 1).all():
        if (np.roll(here, -sources[0]) == sources).all():
            return f"channels rolled by {-int(sources[0]) % sources.size}"
        for group in _groups(sources, int(channels[0])):
            order = sources[::group] // group
            shown = ", ".join(map(str, order[:8])) + (", ..." if order.size > 8 else "")
            return f"groups of {group} channels in the order {shown}"
    return f"channels permuted ({moved.size} of {sources.size} moved)"


def _groups(sources: NDArray[np.intp], first: int) -> Iterator[int]:
    """Yield the sizes of groups, largest first, that an order keeps together."""
    for group in (g for g in range(sources.size // 2, 1, -1) if sources.size % g == first % g == 0):
        blocks = sources.reshape(-1, group)
        if (blocks == blocks[:, :1] + np.arange(group)).all() and not (blocks[:, 0] % group).any():
            yield group


def _channel_fits(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    """A factor or an offset of its own for each channel, as of a norm's weight or a bias."""
    if golden.shape[0] < _FEW:
        return
    squares = (golden * golden).sum(0)
    factors = (golden * candidate).sum(0) / np.where(squares > 0, squares, 1)
    yield "each channel scaled by a factor of its own", golden * factors
    yield "each channel shifted by an offset of its own", golden + (candidate - golden).mean(0)


def _position_fits(golden: Floats, candidate: Floats, _: Channels) -> Iterator[Guess]:
    """A factor of its own for each position, as of a norm's denominator."""
    if golden.shape[1] < _FEW or golden.shape[0] < 2:
        return
    squares = (golden * golden).sum(1, keepdims=True)
    factors = (golden * candidate).sum(1, keepdims=True) / np.where(squares > 0, squares, 1)
    yield "each position scaled by a factor of its own", golden * factors


_HYPOTHESES: Final[tuple[Hypothesis, ...]] = (
    _rounded,
    _zeroed,
    _negated,
    _fits,
    _clamped,
    _simplest(_rearranged),
    _permuted,
    _position_fits,
    _channel_fits,
)
"""From the simplest to those with the most freedom; the first that is proven is told."""
