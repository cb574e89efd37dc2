"""From sums to metrics; METRICS in `core.verdicts` lists their names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hf_dumper.compare.sums import OCTAVE, Plan, Sums
from hf_dumper.core.verdicts import METRICS

Values = dict[str, float | None]

FEW_POSITIONS: Final = 8
"""Fewer positions than this do not tell how large a channel usually is."""


@dataclass(frozen=True, slots=True)
class Derived:
    """The metrics, the totals they come from by name, and the `rel_l2` of every position."""

    values: Values
    totals: Mapping[str, Any]
    tokens: NDArray[np.float64]


def derive(sums: Sums, plan: Plan) -> Derived:
    """Return every metric but `sorted_equal`; None for what cannot be computed.

    With g golden, c candidate, d = c - g, over the n places that are finite on both sides:

    - `max_abs`, `mean_abs`, `rmse`: of d. `max_rel`, `mean_rel`: of |d| / max(|g|, 2 ULP of g's
      type at the root mean square of g).
    - `rel_l2` = |d| / |g|, `nmse` its square (llama.cpp), `cosine` = <g,c> / (|g| |c|),
      `rel_diff` = |d|^2 / (|g|^2 + |c|^2), which is SGLang's 1 - 2<g,c> / (<g,g> + <c,c>) without
      the cancellation, `snr_db` and `psnr_db` as polygraphy's, the peak being max |g|.
    - `fraction_outside`: share of |d| > atol + rtol |g|, as torch.testing.assert_close.
    - `scale_fit` = <g,c> / <g,g> and `offset_fit` = mean d: the best a of c = a g, the best b of
      c = g + b.

    A zero g with a d beside it makes ratios infinite, not unknown: that is as wrong as can be.
    """
    values: Values = dict.fromkeys(METRICS)
    totals = dict(zip(sums.totals.dtype.names or (), sums.totals.item(), strict=True))
    n = totals["compared"]
    if not n:
        return Derived(values, totals, np.zeros(0))
    values |= _absolute(totals, n, plan.scale)
    values |= _norms(totals)
    values |= _fits(totals, n, plan.scale)
    values["fraction_outside"] = totals["outside"] / n
    if plan.golden == plan.candidate:
        values["after_downcast"] = values["rel_l2"]
    elif totals["low_overflows"]:
        values["after_downcast"] = math.inf
    else:
        values["after_downcast"] = _ratio(totals["low_sq_d"], totals["low_sq_g"])
    values["ulp_max"] = totals["ulp_max"]
    values["ulp_p99"] = min(_percentile(sums.histogram, n), totals["ulp_max"])
    tokens = _token_errors(sums, plan)
    if tokens.size:
        values["token_rel_l2"] = float(tokens.max())
        values["token_rel_l2_p99"] = _quantile(tokens, 0.99)
    if sums.channel_d.size:
        values["channel_rel_l2"] = _channel_error(sums, plan)
    return Derived(values, totals, tokens)


def _absolute(totals: Mapping[str, float], n: int, scale: float) -> Values:
    return {
        "max_abs": totals["max_d"] / scale,
        "mean_abs": totals["abs_d"] / n / scale,
        "rmse": math.sqrt(totals["sq_d"] / n) / scale,
        "max_rel": totals["max_rel"],
        "mean_rel": totals["sum_rel"] / n,
    }


def _norms(totals: Mapping[str, float]) -> Values:
    d, g, c = totals["sq_d"], totals["sq_g"], totals["sq_c"]
    rel_l2 = _ratio(d, g)
    cosine = 1.0 if g == c == 0 else 0.0
    if g and c:
        cosine = totals["dot"] / (math.sqrt(g) * math.sqrt(c))
    peak = totals["max_g"] ** 2 * totals["compared"]
    return {
        "rel_l2": rel_l2,
        "nmse": rel_l2**2,
        "cosine": min(max(cosine, -1.0), 1.0),
        "snr_db": _decibel(g, d),
        "psnr_db": _decibel(peak, d),
        "rel_diff": d / (g + c) if d else 0.0,
    }


def _fits(totals: Mapping[str, float], n: int, scale: float) -> Values:
    g = totals["sq_g"]
    return {
        "scale_fit": totals["dot"] / g if g else None,
        "offset_fit": totals["sum_d"] / n / scale,
    }


def _ratio(d: float, g: float) -> float:
    """Return the root of d / g for two sums of squares; 0 without error, else infinite over 0."""
    if not d:
        return 0.0
    return math.sqrt(d / g) if g else math.inf


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def _token_errors(sums: Sums, plan: Plan) -> NDArray[np.float64]:
    """Return the `rel_l2` of every position.

    A position of next to no golden size is divided by 2 ULP of the narrower type at the median
    size, so that noise in it is no alarm and a fault in it still is.
    """
    width = sums.totals["compared"].item() / max(plan.positions, 1)
    sizes = _sizes(sums.token_g, width, plan)
    if sizes is None:
        return np.where(sums.token_d > 0, math.inf, 0.0)
    return np.sqrt(sums.token_d / sizes)


def _channel_error(sums: Sums, plan: Plan) -> float:
    """Return the `rel_l2` after each channel of both sides is divided by its golden size.

    The size is the root mean square over all positions; channels of next to none are divided by 2
    ULP of the narrower type at the median size. Over few positions a size is uncertain: a channel
    may be next to zero there by chance. Then none is taken for smaller than a tenth of the median.
    """
    least = 0.1 if plan.positions < FEW_POSITIONS else 0.0
    sizes = _sizes(sums.channel_g, plan.positions, plan, least)
    if sizes is None:
        return math.inf if sums.channel_d.any() else 0.0
    shares = 1 / sizes
    return _ratio(float(np.dot(sums.channel_d, shares)), float(np.dot(sums.channel_g, shares)))


def _sizes(
    squares: NDArray[np.float64], n: float, plan: Plan, share: float = 0.0
) -> NDArray[np.float64] | None:
    """Return sums of `n` squares each, those of next to nothing raised; None if all are 0.

    Next to nothing is less than 2 ULP at the median size, or than a share of it.
    """
    some = squares if squares.all() else squares[squares > 0]
    if not some.size:
        return None
    median = math.sqrt(_quantile(some, 0.5) / n) / plan.scale
    least = plan.scale * max(2 * plan.precision.ulp(median), share * median)
    return np.maximum(squares, n * least * least)


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """Return the least value that a share of the values does not exceed."""
    rank = math.ceil(share * values.size) - 1
    return float(np.partition(values, rank)[rank] if values.size > 1 else values[0])


def _percentile(histogram: NDArray[np.int64], n: int) -> float:
    """Return the least distance that 99 % of the `n` do not exceed.

    Bins above 16 span an eighth of an octave; what is returned is the largest distance that falls
    into the bin, so too large by at most an eighth.
    """
    found = int(np.searchsorted(np.cumsum(histogram), 0.99 * n))
    octave, eighth = divmod(found, OCTAVE)
    above = math.ldexp(1 + eighth / OCTAVE, octave)
    return float(math.ceil(above) - 1)
