"""From numbers to verdicts: reads the table of results and the limits, never a tensor."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_dumper.compare.jumps import find_jumps
from hf_dumper.compare.limits import Limits, coarseness, section
from hf_dumper.compare.tokens import DIVERGED, SAMPLED, TIE
from hf_dumper.core.types import ROOT
from hf_dumper.core.verdicts import RESULT_SCHEMA, Verdict

Floats = NDArray[np.float64]

_RELATIVE: Final = ("rel_l2", "token_rel_l2", "channel_rel_l2")
_STATISTICS: Final = {
    **dict.fromkeys(("statistics.l2", "statistics.mean", "statistics.std"), "rel_l2"),
    **dict.fromkeys(("statistics.min", "statistics.max", "statistics.absmax"), "token_rel_l2"),
}
"""The limit that a difference of statistics is held against."""

_FACTS: Final = frozenset({Verdict.NON_FINITE, Verdict.SHAPE, Verdict.NOT_COMPUTABLE})
"""Verdicts that no limit changes; nor does one change what equal hashes say."""
HASHES: Final = "equal hashes"


def judge_results(results: pa.Table, tokens: pa.Table, limits: Limits) -> pa.Table:
    """Return the results with the verdict and the rule of every row.

    The limit of a tensor is that of the coarsest type seen so far in its run, on either side: what
    was rounded once stays as coarse.
    """
    levels = _levels(results)
    values, bounds, names = _held(results, levels, limits)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values == 0, 0.0, values / bounds)
    ratios = np.where(np.isnan(ratios), -1.0, ratios)
    worst = ratios.argmax(axis=1) if ratios.size else np.zeros(len(levels), np.int64)
    verdicts = results.column("verdict").to_pylist()
    rules = results.column("rule").to_pylist()
    exact = _exact(results, levels, limits)
    chosen = _choices(results, tokens)
    jumps = find_jumps(results, levels_of_runs(results), limits)
    for i, (before, level) in enumerate(zip(verdicts, levels.tolist(), strict=True)):
        if before in _FACTS or rules[i] == HASHES:
            continue
        if i in chosen:
            verdicts[i], rules[i] = chosen[i]
        elif i in exact:
            verdicts[i], rules[i] = exact[i]
        else:
            j = int(worst[i])
            numbers = float(values[i, j]), float(bounds[i, j]), float(ratios[i, j])
            verdicts[i], rules[i] = _judged(names[j], numbers, section(max(level, 0)), limits)
            if i in jumps and verdicts[i] == Verdict.PASS:
                verdicts[i], rules[i] = Verdict.WARN, jumps[i]
    return _with(results, verdicts, rules)


def _judged(
    name: str, numbers: tuple[float, float, float], dtype: str, limits: Limits
) -> tuple[Verdict, str]:
    value, limit, ratio = numbers
    if ratio < 0:
        return Verdict.NOT_COMPUTABLE, "no metric that has a limit can be computed"
    if value == 0 and name == "rel_l2":
        return Verdict.IDENTICAL, "no value differs"
    sign = "<=" if ratio <= 1 else ">"
    rule = f"{name} {value:.3g} {sign} {limit:.3g} ({dtype})"
    if ratio <= 1:
        return Verdict.PASS, rule
    return (Verdict.WARN if ratio <= limits["warn"] else Verdict.FAIL), rule


def levels_of_runs(results: pa.Table) -> dict[int, int]:
    """Return the coarsest type of each run, as its place among the sections of the limits."""
    levels = _levels(results)
    runs = np.asarray(results.column("run").to_numpy())
    return {int(run): int(levels[runs == run].max()) for run in np.unique(runs)}


def _levels(results: pa.Table) -> NDArray[np.int64]:
    """Return the coarsest type up to each row of its run, -1 before the first that rounds."""
    columns = [results.column(name).to_pylist() for name in ("dtype", "candidate_dtype")]
    known = {dtype: coarseness(dtype) for column in columns for dtype in set(column)}
    own = np.array([[known[dtype] for dtype in column] for column in columns], np.int64)
    levels = own.max(axis=0) if own.size else np.zeros(0, np.int64)
    runs = np.asarray(results.column("run").to_numpy())
    for run in np.unique(runs):
        levels[runs == run] = np.maximum.accumulate(levels[runs == run])
    return levels


def _held(
    results: pa.Table, levels: NDArray[np.int64], limits: Limits
) -> tuple[Floats, Floats, list[str]]:
    """Return values and their limits, [rows, metrics], and the names of the metrics."""
    tables = [limits[section(max(level, 0))] for level in range(-1, int(levels.max(initial=0)) + 1)]

    def limit(name: str) -> Floats:
        return np.array([table[name] for table in tables])[levels + 1]

    values = [_numbers(results, name) for name in _RELATIVE]
    bounds = [limit(name) for name in _RELATIVE]
    extras = results.column("extra").to_pylist()
    if any(extras):
        given = [dict(extra or ()) for extra in extras]
        for name, like in _STATISTICS.items():
            values.append(np.array([extra.get(name, np.nan) for extra in given]))
            bounds.append(limit(like))
    return np.stack(values, 1), np.stack(bounds, 1), [*_RELATIVE, *_STATISTICS]


def _exact(
    results: pa.Table, levels: NDArray[np.int64], limits: Limits
) -> dict[int, tuple[Verdict, str]]:
    """Judge integers and truth values: equal, or a few that modules chose by coarse numbers."""
    outside = _numbers(results, "fraction_outside")
    names = ("dtype", "candidate_dtype", "module", "slot")
    columns = [results.column(name).to_pylist() for name in names]
    found = {}
    for i, (ours, theirs, module, slot) in enumerate(zip(*columns, strict=True)):
        if coarseness(ours) >= 0 or coarseness(theirs) >= 0 or np.isnan(outside[i]):
            continue
        share = float(outside[i])
        allowed = limits[section(max(int(levels[i]), 0))]["integers"]
        if not share:
            found[i] = Verdict.IDENTICAL, "no value differs"
        elif not (module == ROOT and slot.startswith("input")) and share <= allowed:
            found[i] = Verdict.WARN, f"{share:.3g} of the integers differ, up to {allowed:.3g} may"
        else:
            found[i] = Verdict.FAIL, f"{share:.3g} of the integers differ"
    return found


def _choices(results: pa.Table, tokens: pa.Table) -> dict[int, tuple[Verdict, str]]:
    """Judge the records of chosen tokens as the table of tokens does.

    A tie is no fault, and neither is another draw from the same distribution.
    """
    reasons: dict[tuple[int, int], list[str | None]] = {}
    names = ("run", "token", "verdict", "reason")
    for run, token, verdict, reason in zip(
        *(tokens.column(name).to_pylist() for name in names), strict=True
    ):
        if verdict in (TIE, DIVERGED):
            excuse = "a tie" if verdict == TIE else "another draw" if reason == SAMPLED else None
            reasons.setdefault((run, token), []).append(excuse)
    columns = (results.column(n).to_pylist() for n in ("module", "slot", "run", "token", "max_abs"))
    found = {}
    for i, (module, slot, run, token, largest) in enumerate(zip(*columns, strict=True)):
        excuses = reasons.get((run, token), [])
        if (module, slot) == (ROOT, "token_ids") and largest and excuses and all(excuses):
            found[i] = Verdict.PASS, f"another token was chosen: {excuses[0]}"
    return found


def _numbers(results: pa.Table, name: str) -> Floats:
    return np.asarray(results.column(name).fill_null(np.nan).to_numpy(), np.float64)


def _with(results: pa.Table, verdicts: list[str], rules: list[str]) -> pa.Table:
    for name, values in (("verdict", verdicts), ("rule", rules)):
        field = RESULT_SCHEMA.field(name)
        index = results.schema.get_field_index(name)
        results = results.set_column(index, field, pa.array(values, field.type))
    return results


def worst_of(verdicts: Mapping[str, int]) -> Verdict | None:
    """Return the first of the bad verdicts, then WARN, that occurs."""
    order = (Verdict.NON_FINITE, Verdict.SHAPE, Verdict.FAIL, Verdict.WARN)
    return next((verdict for verdict in order if verdicts.get(verdict)), None)
