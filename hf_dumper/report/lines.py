"""Plain lines, one per tensor, for grep and diff."""

from collections import Counter
from collections.abc import Iterator

from hf_dumper.core.types import SKIPPED
from hf_dumper.report.numbers import number, shape
from hf_dumper.report.records import Entry, IndexedReader, OnProgress, entries


def lines(
    reader: IndexedReader, run: int, token: int, *, on_progress: OnProgress | None = None
) -> Iterator[str]:
    """Yield `Layer NAME input - mean: M, sum: S, shape: (...)` for the tensors of a token.

    A module's only input is called `input`, its only output `output`; where there are several, the
    whole slot is written. A module that runs again within a forward says which call it is.
    """
    found = [e for e in entries(reader, run, token, on_progress=on_progress) if e.status != SKIPPED]
    sides = Counter(_side(entry) for entry in found)
    for e in found:
        what = e.slot.partition(".")[0] if sides[_side(e)] == 1 else e.slot
        call = f" call {e.key.call}" if e.key.call else ""
        function = f" {e.key.op}" if e.key.op else ""
        mean, total = (number(e.statistics[name], 6) for name in ("mean", "sum"))
        where = f"Layer {e.module}{function} {what}{call}"
        yield f"{where} - mean: {mean}, sum: {total}, shape: {shape(e.shape)}"


def _side(e: Entry) -> tuple[object, ...]:
    key = e.key
    return key.rank, key.forward, key.module, key.call, key.op, key.slot.partition(".")[0]
