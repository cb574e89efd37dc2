"""From pairs to the table of results: one row per pair, measured on several cores, in order."""

import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

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
_LARGE: Final = 1 << 18
"""Elements from which on a pair is handed to another core: below, Python itself takes longer than
the arithmetic, and threads would only wait for each other."""
_REMEMBERED: Final = 1024
"""Measurements that are remembered for later pairs of the same bytes."""
_PACKED: Final = 4096
"""Rows that are kept as Python objects before they are packed into columns."""
_EQUAL: Final[Mapping[str, float]] = {
    **dict.fromkeys(("max_abs", "mean_abs", "rmse", "max_rel", "mean_rel", "rel_l2", "nmse"), 0.0),
    "cosine": 1.0,
    **dict.fromkeys(("rel_diff", "ulp_max", "ulp_p99", "fraction_outside", "after_downcast"), 0.0),
    "sorted_equal": 1.0,
}
"""What equal bytes give without being read; what depends on the values stays unknown."""


class Measurer:
    """Measures pairs of two dumps; may be called from several threads."""

    def __init__(self, golden: Side, candidate: Side, metrics: Mapping[str, Metric]) -> None:
        """Remember the sides; `metrics` are the user's own."""
        self._golden, self._candidate, self._metrics = golden, candidate, metrics

    def is_quick(self, pair: Pair) -> bool:
        """Tell whether no tensor need be read."""
        if pair.problem is not None:
            return True
        return pair.identical and not _is_result(pair.golden) and not self._metrics

    def __call__(self, pair: Pair) -> dict[str, Any]:
        """Return the numbers of a pair, without a verdict unless there is nothing to judge."""
        if pair.problem is not None:
            return _problem(pair.problem)
        if self.is_quick(pair):
            return {
                **_EQUAL,
                "elements": pair.elements,
                "verdict": Verdict.IDENTICAL,
                "rule": HASHES,
            }
        return self._measured(pair) if pair.has_values else self._by_statistics(pair)

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
            count = f"{found.mask_mismatches} of {found.elements} values"
            rule = f"{count} are not finite on one side, or not alike"
            row |= {"verdict": Verdict.NON_FINITE, "rule": rule}
        return row

    def _by_statistics(self, pair: Pair) -> dict[str, Any]:
        if not pair.same:
            reason = "only statistics, and the forwards of the two sides hold other rows or columns"
            return _problem(Problem(Verdict.NOT_COMPUTABLE, reason))
        if pair.drafts and not pair.identical:
            reason = "only statistics, which take in the columns of rejected drafts"
            return _problem(Problem(Verdict.NOT_COMPUTABLE, reason))
        golden = self._golden.statistics(pair.golden)
        candidate = self._candidate.statistics(pair.candidate)
        if golden is None or candidate is None:
            return _problem(Problem(Verdict.NOT_COMPUTABLE, "neither values nor statistics"))
        return compare_statistics(golden, candidate)


def measure_all(pairs: Iterable[Pair], measurer: Measurer) -> Iterator[dict[str, Any]]:
    """Yield the row of each pair, in their order, measured on all cores.

    Pairs of the same bytes, as one module's output and the next one's input, are measured once.
    """
    source = iter(pairs)
    with ThreadPoolExecutor(os.cpu_count() or 1, "compare") as pool:
        begun = _Begun(pool, measurer)
        waiting: deque[tuple[Pair, Future[dict[str, Any]]]] = deque()
        try:
            while True:
                ahead = islice(source, _AHEAD - len(waiting))
                waiting.extend((pair, begun.submit(pair)) for pair in ahead)
                if not waiting:
                    return
                pair, future = waiting.popleft()
                yield _described(pair) | future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class _Begun:
    """Measurements that were begun lately, by the content of their pairs."""

    def __init__(self, pool: ThreadPoolExecutor, measurer: Measurer) -> None:
        self._pool, self._measurer = pool, measurer
        self._known: OrderedDict[object, Future[dict[str, Any]]] = OrderedDict()

    def submit(self, pair: Pair) -> Future[dict[str, Any]]:
        """Return the measurement of a pair, or that of another pair of the same content."""
        content = None if self._measurer.is_quick(pair) else pair.content
        future = None if content is None else self._known.get(content)
        if future is None:
            future = self._begin(pair)
        if content is not None:
            self._known[content] = future
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return future

    def _begin(self, pair: Pair) -> Future[dict[str, Any]]:
        if pair.problem is None and not pair.identical and pair.elements >= _LARGE:
            return self._pool.submit(self._measurer, pair)
        done: Future[dict[str, Any]] = Future()
        done.set_result(self._measurer(pair))
        return done


def as_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table of RESULT_SCHEMA, packed batch by batch."""
    source = iter(rows)
    batches = []
    while some := list(islice(source, _PACKED)):
        columns = [
            pa.array([row.get(field.name) for row in some], field.type) for field in RESULT_SCHEMA
        ]
        batches.append(pa.record_batch(columns, schema=RESULT_SCHEMA))
    return pa.Table.from_batches(batches, RESULT_SCHEMA).combine_chunks()


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
