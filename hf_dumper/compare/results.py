"""From pairs to the table of results: one row per pair, measured on several cores, in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, NamedTuple

import pyarrow as pa

from hf_dumper.compare.judge import HASHES
from hf_dumper.compare.metrics import Measurement, measure
from hf_dumper.compare.pairs import Pair, Problem, segments
from hf_dumper.compare.records import Rec, Side
from hf_dumper.compare.registry import Metric
from hf_dumper.compare.statistics import compare_statistics
from hf_dumper.core.types import ROOT
from hf_dumper.core.verdicts import RESULT_SCHEMA, Verdict

_AHEAD: Final = 64
"""Pairs that wait for a core: enough to keep all busy, few enough to hold in memory."""
_EQUAL: Final[Mapping[str, float]] = {
    **dict.fromkeys(("max_abs", "mean_abs", "rmse", "max_rel", "mean_rel", "rel_l2", "nmse"), 0.0),
    "cosine": 1.0,
    **dict.fromkeys(("rel_diff", "ulp_max", "ulp_p99", "fraction_outside", "after_downcast"), 0.0),
    "sorted_equal": 1.0,
}
"""What equal bytes give without being read; what depends on the values stays unknown."""


class Result(NamedTuple):
    """One pair with its row of the table."""

    pair: Pair
    row: dict[str, Any]


class Measurer:
    """Measures pairs of two dumps; may be called from several threads."""

    def __init__(self, golden: Side, candidate: Side, metrics: Mapping[str, Metric]) -> None:
        """Remember the sides; `metrics` are the user's own."""
        self._golden, self._candidate, self._metrics = golden, candidate, metrics

    def __call__(self, pair: Pair) -> Result:
        """Return the row of a pair, without a verdict unless there is nothing to judge."""
        row = _described(pair)
        if pair.problem is not None:
            row |= _problem(pair.problem)
        elif pair.identical and not _is_result(pair.golden) and not self._metrics:
            row |= {**_EQUAL, "verdict": Verdict.IDENTICAL, "rule": HASHES}
            row["elements"] = _elements(pair)
        elif pair.has_values:
            row |= self._measured(pair)
        else:
            row |= self._by_statistics(pair)
        return Result(pair, row)

    def _measured(self, pair: Pair) -> dict[str, Any]:
        views = list(segments(pair, self._golden, self._candidate))
        try:
            found = measure(views, by_token=pair.by_token, extra=self._metrics)
        except ValueError as error:  # a type without numbers
            return _problem(Problem(Verdict.NOT_COMPUTABLE, str(error)))
        row: dict[str, Any] = {
            **found.values,
            "elements": found.elements,
            "golden_nonfinite": found.golden_nonfinite.total,
            "candidate_nonfinite": found.candidate_nonfinite.total,
            "mask_mismatches": found.mask_mismatches,
            "extra": {k: v for k, v in found.extra.items() if v is not None},
            **_place(pair, found),
        }
        if not found.mask_mismatches and pair.identical:
            row |= {"verdict": Verdict.IDENTICAL, "rule": HASHES}
        if found.elements and not found.compared:
            row |= _problem(Problem(Verdict.NOT_COMPUTABLE, "not one value is finite"))
        if found.mask_mismatches:
            row |= {"verdict": Verdict.NON_FINITE}
        return row

    def _by_statistics(self, pair: Pair) -> dict[str, Any]:
        if not pair.same:
            reason = "only statistics, and the forwards of the two sides hold other rows or columns"
            return _problem(Problem(Verdict.NOT_COMPUTABLE, reason))
        golden = self._golden.statistics(pair.golden)
        candidate = self._candidate.statistics(pair.candidate)
        if golden is None or candidate is None:
            return _problem(Problem(Verdict.NOT_COMPUTABLE, "neither values nor statistics"))
        return compare_statistics(golden, candidate)


def measure_all(pairs: Iterable[Pair], measurer: Measurer) -> Iterator[Result]:
    """Yield the results of pairs in their order, measured on all cores."""
    source = iter(pairs)
    with ThreadPoolExecutor(os.cpu_count() or 1, "compare") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            while True:
                ahead = islice(source, _AHEAD - len(waiting))
                waiting.extend(pool.submit(measurer, pair) for pair in ahead)
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def as_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table of RESULT_SCHEMA."""
    columns: dict[str, list[Any]] = {name: [] for name in RESULT_SCHEMA.names}
    for row in rows:
        for name, values in columns.items():
            values.append(row.get(name))
    return pa.table(
        [pa.array(columns[field.name], field.type) for field in RESULT_SCHEMA],
        schema=RESULT_SCHEMA,
    )


def _described(pair: Pair) -> dict[str, Any]:
    golden, candidate = pair.golden, pair.candidate
    row: dict[str, Any] = {
        "class": golden.class_name,
        "axes": ",".join(golden.axes),
        "candidate_dtype": candidate.dtype,
        "shape": list(golden.shape),
        "candidate_shape": list(candidate.shape),
        "elements": 0,
        "truncated": pair.truncated,
        "extra": {},
        "rule": "",
        "reason": f"{pair.missing} positions have no partner" if pair.missing else "",
    }
    names = ("run", "forward", "token", "phase", "seq_in", "seq_out", "module", "slot", "param")
    return row | {name: getattr(golden, name) for name in (*names, "call", "op", "dtype")}


def _problem(problem: Problem) -> dict[str, Any]:
    return {"verdict": problem.verdict, "rule": "", "reason": problem.reason}


def _is_result(record: Rec) -> bool:
    """Tell whether a record is what the model returns: it is read even when hashes are equal.

    Two sides may be equal and all NaN; somebody has to look.
    """
    return record.module == ROOT and record.slot.startswith(("output", "logits", "scores"))


def _elements(pair: Pair) -> int:
    count = 1
    for size in pair.golden.shape:
        count *= size
    return count


def _place(pair: Pair, found: Measurement) -> dict[str, Any]:
    """Return where the largest difference is, or the first mismatch of what is not finite."""
    place = found.first_mismatch or found.worst
    if place is None:
        return {}
    piece = pair.pieces[place.segment]
    position = None
    if place.position is not None and piece.position is not None:
        position = piece.position + place.position
    return {
        "row": None if piece.mode == "whole" else piece.row,
        "position": position,
        "channel": place.channel,
        "golden_value": place.golden,
        "candidate_value": place.candidate,
    }
