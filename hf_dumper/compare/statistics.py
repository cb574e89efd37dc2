"""What statistics alone tell of two tensors whose values were not kept.

Statistics cannot prove that tensors agree, but they can prove that they differ: with d = c - g,
the norms differ by at most |d|, and so do, divided by the root of the count, means and standard
deviations. So each difference below, divided by the golden root mean square, is a lower bound of
`rel_l2`; for `min`, `max` and `absmax` it is one of the largest error over the largest value.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from hf_dumper.core.verdicts import Verdict

STATISTICS: Final = ("l2", "mean", "std", "min", "max", "absmax")
"""Statistics that are compared, each under `extra` as `statistics.<name>`."""

_NON_FINITE: Final = ("nan", "pos_inf", "neg_inf")


def compare_statistics(
    golden: Mapping[str, float | None], candidate: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return the columns of a result for the statistics of two tensors of one shape."""
    count = int(golden["count"] or 0)
    counts = [sum(int(side[name] or 0) for name in _NON_FINITE) for side in (golden, candidate)]
    row: dict[str, Any] = {
        "elements": count,
        "golden_nonfinite": counts[0],
        "candidate_nonfinite": counts[1],
        "reason": "statistics only",
    }
    mismatches = sum(abs(int(golden[n] or 0) - int(candidate[n] or 0)) for n in _NON_FINITE)
    row["mask_mismatches"] = mismatches
    if mismatches:
        rule = f"at least {mismatches} of {count} values are not finite on one side"
        return row | {"verdict": Verdict.NON_FINITE, "rule": rule}
    if count and golden["absmax"] is None:
        reason = "statistics only, and not one value is finite"
        return row | {"verdict": Verdict.NOT_COMPUTABLE, "reason": reason}
    return row | {"extra": dict(_differences(golden, candidate, count - counts[0]))}


def _differences(
    golden: Mapping[str, float | None], candidate: Mapping[str, float | None], count: int
) -> list[tuple[str, float]]:
    size = float(golden["l2"] or 0.0)
    scales = {"l2": size, **dict.fromkeys(("mean", "std"), size / math.sqrt(count) if count else 0)}
    largest = float(golden["absmax"] or 0.0)
    found = []
    for name in STATISTICS:
        ours, theirs = golden[name], candidate[name]
        if ours is not None and theirs is not None:
            scale = scales.get(name, largest)
            found.append((f"statistics.{name}", _ratio(abs(theirs - ours), scale)))
    return found


def _ratio(difference: float, scale: float) -> float:
    if not difference:
        return 0.0
    return difference / scale if scale else math.inf
