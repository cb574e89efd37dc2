"""The records of two runs against each other, by their hashes and their statistics."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hf_dumper.core.statistics import FIELDS
from hf_dumper.core.types import SKIPPED
from hf_dumper.store import NativeReader

_KEY: Final = ("forward", "module", "slot", "call", "op")
_VALUE: Final = ("dtype", "shape", "hash", "reason")

_ROUNDED: Final = {"mean": False, "std": False, "l2": True, "sum": True}
"""Statistics that are added up, and whether they grow with the number of elements."""

_ROUNDING: Final = 1e-9
"""How far apart, in units of the largest value, sums of the same values may be: another processor
adds them up in another order."""

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """How many records a run has, how many are the same, and where the first differs.

    Attributes:
        records: Those of the dump.
        equal: Those with the same type, shape and hash, and whose statistics, if the dump has any,
            are those of these bytes; what both sides skipped is among them.
        unchecked: Those of which the dump has no hash.
        difference: The first that differs in order of the dump, and how; "" when none does.
    """

    records: int
    equal: int
    unchecked: int
    difference: str

    @property
    def is_equal(self) -> bool:
        """Whether there are records, and each was compared and is the same."""
        return self.records > 0 and self.equal == self.records and not self.difference


def check_records(
    golden: NativeReader, run: int, candidate: NativeReader, again: int
) -> RecordCheck:
    """Compare all records of `run` of the golden dump with those of `again` of the candidate."""
    theirs = dict(_rows(candidate, again))
    records = equal = unchecked = 0
    difference = ""
    for key, value in _rows(golden, run):
        records += 1
        other = theirs.pop(key, None)
        if value["hash"] is None and not value["reason"]:
            unchecked += 1
        elif how := _difference(value, other):
            difference = difference or f"{_named(key)}: {how}"
        else:
            equal += 1
    if theirs and not difference:
        first = next(iter(theirs))
        difference = f"{_named(first)}: the dump does not have it"
    return RecordCheck(records, equal, unchecked, difference)


def _rows(reader: NativeReader, run: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    table = reader.index(run).select(["rank", *_KEY, *_VALUE, *FIELDS, "status"])
    # Which process ran a prompt says nothing about it, unless several of them ran it together.
    parts = {rank: i for i, rank in enumerate(sorted(table.column("rank").unique().to_pylist()))}
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            value = {name: row[name] for name in (*_VALUE, *FIELDS)}
            value["reason"] = value["reason"] if row["status"] == SKIPPED else ""
            yield (parts[row["rank"]], *(row[name] for name in _KEY)), value


def _named(key: Key) -> str:
    _, forward, module, slot, call, op = key
    more = (f", call {call}" if call else "") + (f", {op}" if op else "")
    return f"{module} {slot}, forward {forward}{more}"


def _difference(golden: dict[str, Any], candidate: dict[str, Any] | None) -> str:
    """Return how a record differs from what it was, "" when it does not."""
    if candidate is None:
        return "the run did not make it again"
    for name in ("reason", "dtype", "shape"):
        if golden[name] != candidate[name]:
            return f"{name} {golden[name]!r} then, {candidate[name]!r} now"
    if golden["hash"] != candidate["hash"]:
        return "its bytes are not the same"
    for name in FIELDS:
        if not _is_same(name, golden, candidate):
            told = f"{name} {golden[name]!r} then, {candidate[name]!r} now"
            return f"the same bytes, and other statistics: {told}"
    return ""


def _is_same(name: str, golden: dict[str, Any], candidate: dict[str, Any]) -> bool:
    then, now = golden[name], candidate[name]
    if then == now or name not in _ROUNDED or then is None or now is None:
        return bool(then == now)
    unit = (candidate["absmax"] or 0) * (candidate["count"] if _ROUNDED[name] else 1)
    return math.isclose(then, now, rel_tol=0, abs_tol=_ROUNDING * unit)
