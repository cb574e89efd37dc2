"""Whether a dump holds what the witness saw: a ratio from a dump that does not is void."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from variants import Mode
from witness import Place, Sight, Testimony, look

from hf_dumper import open_dump
from hf_dumper.core.types import TensorKey

EXACT = ("count", "min", "max", "absmax", "zeros", "nan", "pos_inf", "neg_inf")
TOLERANCE = 1e-12
"""How far mean, std and l2 may be from the witness's, as a share of the root mean square."""


class VoidMeasurementError(Exception):
    """What was measured is not what was to be measured; its time means nothing."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a reopened dump says: its rows, the bytes it gave, and how long that took."""

    rows: list[dict[str, Any]]
    loaded: Mapping[TensorKey, Sight]
    complete: bool
    seconds: float


def read(dump: Path) -> Reading:
    """Open a dump, read its index, load every tensor that is kept, and hash its bytes."""
    start = time.perf_counter()
    with open_dump(dump) as reader:
        index = reader.index()
        columns = [index.column(name).to_pylist() for name in (*TensorKey._fields, "shard")]
        keys = [TensorKey._make(key) for *key, shard in zip(*columns, strict=True) if shard]
        loaded = {key: look(reader.load_key(key)) for key in keys}
        seconds = time.perf_counter() - start
        complete = reader.run_info()["complete"]
        return Reading(index.to_pylist(), loaded, complete, seconds)


def verify(reading: Reading, mode: Mode, testimony: Testimony, tokens: torch.Tensor) -> None:
    """Compare everything that a dump says, and the tokens generated meanwhile, with a testimony.

    Raises:
        VoidMeasurementError: anything is missing, too much, or different.
    """
    if not torch.equal(tokens, testimony.tokens):
        msg = f"{mode.name}: the tokens are not those of the plain model."
        raise VoidMeasurementError(msg)
    found = list(islice(faults(reading, mode, testimony), 5))
    if found:
        msg = f"{mode.name}: the dump is not what plain hooks saw.\n  " + "\n  ".join(found)
        raise VoidMeasurementError(msg)


def faults(reading: Reading, mode: Mode, testimony: Testimony) -> Iterator[str]:
    """Yield one line for each thing that is wrong with a dump."""
    if not reading.complete:
        yield "the run is not complete"
    expected = testimony.head if mode.head_only else testimony.modules
    rows = Counter(map(_place, reading.rows))
    yield from (f"{place} is missing" for place in expected if place not in rows)
    yield from (f"{place} was not seen" for place in rows if place not in expected)
    yield from (f"{place} is there {n} times" for place, n in rows.items() if n > 1)
    for row in reading.rows:
        place = _place(row)
        if place in expected:
            for fault in _faults_of(row, reading, mode, expected[place], testimony):
                yield f"{place}: {fault}"


def _faults_of(
    row: Mapping[str, Any], reading: Reading, mode: Mode, seen: Sight, testimony: Testimony
) -> Iterator[str]:
    said = Sight(row["dtype"], tuple(row["shape"]), row["nbytes"], row["hash"])
    if said != seen:
        yield f"the index says {said}, but it was {seen}"
    if mode.tensors:
        key = TensorKey._make(row[name] for name in TensorKey._fields)
        loaded = reading.loaded.get(key)
        if loaded != seen:
            yield f"loaded is {loaded}, but it was {seen}"
    elif row["shard"] is not None:
        yield "its bytes were written, which nobody asked for"
    if mode.statistics:
        yield from _wrong_statistics(row, testimony.statistics[seen])
    elif row["count"] is not None:
        yield "its statistics were made, which nobody asked for"


def _wrong_statistics(row: Mapping[str, Any], wanted: Mapping[str, float | None]) -> Iterator[str]:
    count, l2 = wanted["count"] or 1, wanted["l2"] or 0.0
    unit = l2 / math.sqrt(count)  # the root mean square
    units = {"mean": unit, "std": unit, "l2": l2, "sum": unit * count}
    for name, value in wanted.items():
        got = row[name]
        if got is None or value is None or name in EXACT:
            wrong = got != value
        else:
            wrong = not abs(got - value) <= TOLERANCE * units[name]
        if wrong:
            yield f"{name} is {got!r}, but it was {value!r}"


def _place(row: Mapping[str, Any]) -> Place:
    slot = f"{row['slot']}:{row['op']}" if row["op"] else row["slot"]
    return Place(row["forward"], row["module"], row["call"], slot)
