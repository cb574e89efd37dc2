"""How far apart the logits of two sides are, one position at a time."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.compare.precision import Precision, is_measurable, narrower, precision

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogitsMeasurement:
    """The numbers of one position, by the names of TOKEN_SCHEMA; None cannot be computed.

    Logits are centred by their log-sum-exp first, so that a constant added to all of them is no
    difference; an entry of -inf has probability 0.

    - `margin`: the golden logit of the first choice less that of the second; infinite where the
      second is -inf. `margin_ulp`: the same in units of last place of the narrower type at the
      first choice.
    - `kl`: KL(golden || candidate) in nats, infinite where the candidate rules out what the golden
      side does not. `js`: Jensen-Shannon divergence in nats, at most ln 2.
    - `delta_logprob`: log probability of the chosen token, candidate less golden.
    - `top5_jaccard`, `top10_jaccard`: size of the intersection of both sides' most likely tokens by
      that of the union; of equal logits the lower token counts first.
    - `top1_equal`: whether both sides' first choices are the same token.
    """

    margin: float | None = None
    margin_ulp: float | None = None
    kl: float | None = None
    js: float | None = None
    delta_logprob: float | None = None
    top5_jaccard: float | None = None
    top10_jaccard: float | None = None
    top1_equal: bool | None = None


def measure_logits(
    golden: torch.Tensor, candidate: torch.Tensor, chosen: torch.Tensor
) -> list[LogitsMeasurement]:
    """Measure the logits of each position, in float64.

    A position where one side has NaN, +inf or no finite entry has no numbers at all.

    Args:
        golden: [rows, vocabulary].
        candidate: [rows, vocabulary], of any floating type.
        chosen: [rows], the token that the golden side chose; a negative one is unknown.

    Raises:
        ValueError: the shapes differ, or a type holds no numbers.
    """
    if golden.shape != candidate.shape or golden.dim() != 2 or len(chosen) != len(golden):
        shapes = f"golden {list(golden.shape)}, candidate {list(candidate.shape)}"
        msg = f"Logits must be [rows, vocabulary] on both sides, not {shapes}."
        raise ValueError(msg)
    for side in (golden, candidate):
        if side.is_complex() or not is_measurable(side.dtype):
            msg = f"Tensors of {side.dtype} are no logits."
            raise ValueError(msg)
    unit = precision(narrower(golden.dtype, candidate.dtype))
    rows = zip(golden.detach(), candidate.detach(), chosen.tolist(), strict=True)
    return [_measure_row(_floats(g), _floats(c), int(token), unit) for g, c, token in rows]


def _floats(row: torch.Tensor) -> Floats:
    values: Floats = row.to(torch.float64).numpy()
    return values


def _measure_row(
    golden: Floats, candidate: Floats, token: int, unit: Precision
) -> LogitsMeasurement:
    if not (_is_distribution(golden) and _is_distribution(candidate)):
        return LogitsMeasurement()
    margin = _margin(golden)
    ulp = unit.ulp(abs(float(golden.max())))
    logs = _log_probabilities(golden), _log_probabilities(candidate)
    return LogitsMeasurement(
        margin=margin,
        margin_ulp=None if margin is None else margin / ulp,
        kl=_kl(*logs),
        js=_js(*logs),
        delta_logprob=_shift(*logs, token),
        top5_jaccard=_jaccard(golden, candidate, 5),
        top10_jaccard=_jaccard(golden, candidate, 10),
        top1_equal=bool(golden.argmax() == candidate.argmax()),
    )


def _is_distribution(logits: Floats) -> bool:
    """Tell whether probabilities follow from the logits; the greatest is NaN if any is."""
    return bool(logits.size and np.isfinite(logits.max()))


def _log_probabilities(logits: Floats) -> Floats:
    centred = logits - logits.max()
    probabilities: Floats = centred - np.log(np.exp(centred).sum())
    return probabilities


def _margin(logits: Floats) -> float | None:
    if logits.size < 2:
        return None
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def _shift(golden: Floats, candidate: Floats, token: int) -> float | None:
    """Return by how much the log probability of a token grows; None where both rule it out."""
    if not 0 <= token < golden.size or golden[token] == candidate[token] == -math.inf:
        return None
    return float(candidate[token] - golden[token])


def _js(golden: Floats, candidate: Floats) -> float:
    with np.errstate(divide="ignore"):
        middle = np.log((np.exp(golden) + np.exp(candidate)) / 2)
    return (_kl(golden, middle) + _kl(candidate, middle)) / 2


def _kl(golden: Floats, candidate: Floats) -> float:
    """Return KL(golden || candidate) of log probabilities; what has none adds nothing."""
    some = golden > -math.inf
    terms = np.exp(golden[some]) * (golden[some] - candidate[some])
    return max(0.0, float(terms.sum()))


def _jaccard(golden: Floats, candidate: Floats, k: int) -> float:
    first, second = _top(golden, k), _top(candidate, k)
    return len(first & second) / len(first | second)


def _top(logits: Floats, k: int) -> set[int]:
    """Return the `k` tokens of the largest logits; of equal ones the lower tokens."""
    k = min(k, logits.size)
    least = np.partition(logits, -k)[-k]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return {*above.tolist(), *equal[: k - above.size].tolist()}
