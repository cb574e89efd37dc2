"""A dump that is read, as the batches that a sink takes: so one layout becomes another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from xxhash import xxh3_64_intdigest

from hf_dumper.core.arena import Arena, Chunk
from hf_dumper.core.protocols import DumpReader, Sink
from hf_dumper.core.statistics import FIELDS
from hf_dumper.core.types import (
    ALIASED,
    SKIPPED,
    Batch,
    Description,
    Phase,
    Records,
    RunInfo,
    RunResult,
    TensorKey,
    Tick,
)
from hf_dumper.errors import DumpFormatError, KeyNotFoundError
from hf_dumper.store.dtypes import bytes_of

_BATCH_BYTES: Final = 16 << 20
_UNKNOWN: Final = int(np.iinfo(np.int32).min)
"""A position that the mask does not tell."""

_OWN_FACTS: Final = frozenset(
    {"run", "complete", "incomplete", "kind", "regime", "prompt", "counts", "forwards", "tokens"}
    | {"records", "bytes", "tables", "digest"}
)
"""What a RunWriter writes into `run.json` itself."""

Row = Mapping[str, Any]
OnProgress = Callable[[int], None]
"""Is told how many records were written just now."""


def replay_run(
    reader: DumpReader, run: int, sink: Sink, on_progress: OnProgress = lambda _n: None
) -> None:
    """Write one run of an open dump into a sink, as it was captured.

    A run that is not whole stays marked as such.

    Raises:
        DumpFormatError: several processes wrote the run, or a file of it is damaged.
        DumpWriteError: the sink cannot write.
    """
    check_replayable(reader, run)
    info, index = reader.run_info(run), reader.index(run)
    sink.open_run(
        RunInfo(
            run,
            str(info.get("kind")),
            info.get("regime") or {},
            info.get("prompt") or {},
            index.num_rows,
        )
    )
    arena = Arena()
    for batch in _batches(reader, run, index, arena):
        sink.write(batch)
        for chunk in batch.spent:
            arena.release(chunk)
        on_progress(batch.count)
    sink.commit_run(_result(info, _trace(reader, run)))


def check_replayable(reader: DumpReader, run: int) -> None:
    """Make sure that one process wrote a run, whichever of a launch.

    Raises:
        DumpFormatError: several did.
    """
    ranks = pc.unique(reader.index(run).column("rank")).to_pylist()
    if len(ranks) > 1:
        msg = (
            f"Run {run} of {reader.path} was written by {len(ranks)} processes (ranks "
            f"{', '.join(map(str, sorted(ranks)))}); only to npy can such a dump be converted."
        )
        raise DumpFormatError(msg)


def _trace(reader: DumpReader, run: int) -> list[Row]:
    try:
        rows: list[Row] = reader.trace(run).to_pylist()
    except KeyNotFoundError:  # the run generated nothing
        return []
    return rows


def _result(info: Mapping[str, Any], trace: Sequence[Row]) -> RunResult:
    reason = None
    if info.get("complete") is not True:
        reason = str(info.get("incomplete") or "stopped before its end")
    facts = {name: value for name, value in info.items() if name not in _OWN_FACTS}
    return RunResult(facts, info.get("counts") or {}, reason, trace=trace)


def _batches(reader: DumpReader, run: int, index: pa.Table, arena: Arena) -> Iterator[Batch]:
    positions = _positions(reader.positions(run))
    forwards = sorted({*positions, *pc.unique(index.column("forward")).to_pylist()})
    token = 0
    for forward in forwards:
        rows = index.filter(pc.equal(index.column("forward"), forward)).to_pylist()
        token = rows[0]["token"] if rows else token
        phase = Phase(rows[0]["phase"]) if rows else Phase.FORWARD
        tick = Tick(run, forward, phase, token, **positions.get(forward, {}))
        yield from _Forward(reader, tick, rows, arena).batches()


class _Forward:
    """The records of one forward on their way back into memory."""

    def __init__(self, reader: DumpReader, tick: Tick, rows: Sequence[Row], arena: Arena) -> None:
        self._reader = reader
        self._tick = tick
        self._rows = rows
        self._arena = arena
        calls = ((row["seq_in"], row["seq_out"]) for row in rows if row["seq_in"] is not None)
        self._calls = {call: i for i, call in enumerate(dict.fromkeys(calls))}
        self._owners = list(_owners(rows))

    def batches(self) -> Iterator[Batch]:
        """Yield all records; the last batch ends the forward."""
        calls = [(start, -1 if end is None else end) for start, end in self._calls]
        parts = list(self._parts())
        for i, (first, stop) in enumerate(parts):
            chunk, records = self._records(first, stop)
            spent = () if chunk is None else (chunk,)
            is_last = i == len(parts) - 1
            yield Batch(
                self._tick,
                lambda records=records: records,  # type: ignore[misc]
                stop - first,
                calls if is_last else None,
                spent,
            )

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Yield half-open ranges of rows whose bytes fit into one batch."""
        first = total = 0
        for i in range(len(self._rows)):
            nbytes = self._nbytes(i)
            if i > first and total + nbytes > _BATCH_BYTES:
                yield first, i
                first, total = i, 0
            total += nbytes
        yield first, len(self._rows)

    def _nbytes(self, i: int) -> int:
        row = self._rows[i]
        has_bytes = row["shard"] is not None and self._owners[i] is None
        return int(row["nbytes"]) if has_bytes else 0

    def _records(self, first: int, stop: int) -> tuple[Chunk | None, Records]:
        rows, owners = self._rows[first:stop], self._owners[first:stop]
        own = [r["shard"] is not None and o is None for r, o in zip(rows, owners, strict=True)]
        total = sum(self._nbytes(i) for i in range(first, stop))
        chunk = self._arena.take(total) if any(own) else None
        offsets: list[int | None] = [None] * len(rows)
        end = 0
        for i, row in enumerate(rows):
            if own[i] and chunk is not None:
                offsets[i] = end
                end += self._copy(row, chunk, end)
        return chunk, Records(
            [_description(row) for row in rows],
            [row["call"] for row in rows],
            [self._calls.get((row["seq_in"], row["seq_out"]), -1) for row in rows],
            [row["hash"] for row in rows],
            offsets,
            owners,
            chunk,
            dict(_described(rows, owners)),
        )

    def _copy(self, row: Row, chunk: Chunk, offset: int) -> int:
        """Copy the values of a row into the chunk; return their number of bytes."""
        values = bytes_of(load_row(self._reader, row))
        memoryview(chunk.memory)[offset : offset + len(values)] = values
        return len(values)


def load_row(reader: DumpReader, row: Row) -> torch.Tensor:
    """Return the values of a row of an index.

    Raises:
        DumpFormatError: they are not those that were dumped.
    """
    tensor = reader.load_key(TensorKey(*(row[name] for name in TensorKey._fields)))
    if row["hash"] not in (None, xxh3_64_intdigest(bytes_of(tensor))):
        msg = (
            f"{reader.path} is damaged: the bytes of run {row['run']}, forward {row['forward']}, "
            f"{row['module']!r} {row['slot']!r} do not have the hash of the index."
        )
        raise DumpFormatError(msg)
    return tensor


def _owners(rows: Sequence[Row]) -> Iterator[int | None]:
    """Yield, for each row, the earlier one whose bytes it has when it is an alias."""
    first: dict[tuple[object, ...], int] = {}
    for i, row in enumerate(rows):
        same = (row["hash"], row["dtype"], tuple(row["shape"] or ()))
        # An alias without an owner, as another tool may write it, has bytes of its own.
        yield first.get(same) if row["status"] == ALIASED else None
        if row["hash"] is not None and row["status"] != SKIPPED:
            first.setdefault(same, i)


def _description(row: Row) -> Description:
    texts = {name: row[name] or "" for name in ("slot", "param", "op", "axes", "dtype", "device")}
    return Description(
        module=row["module"],
        class_name=row["class"] or "",
        shape=tuple(row["shape"] or ()),
        nbytes=row["nbytes"] or 0,
        reason=(row["reason"] or "not recorded") if row["status"] == SKIPPED else "",
        **texts,
    )


def _described(
    rows: Sequence[Row], owners: Sequence[int | None]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the statistics that rows have, so that they are not computed again."""
    for i, (row, owner) in enumerate(zip(rows, owners, strict=True)):
        if owner is None and row["count"] is not None:
            values = tuple(np.nan if row[name] is None else row[name] for name in FIELDS)
            yield i, values


def _positions(table: pa.Table) -> dict[int, dict[str, Any]]:
    """Return rows, columns and positions of each forward, as a Tick has them."""
    columns = (table.column(name).fill_null(_UNKNOWN) for name in table.column_names)
    forward, row, column, position = (np.asarray(values.to_numpy()) for values in columns)
    found: dict[int, dict[str, Any]] = {}
    for number in np.unique(forward).tolist():
        here = forward == number
        shape = (int(row[here].max()) + 1, int(column[here].max()) + 1)
        known = np.full(shape, -1, np.int32)
        known[row[here], column[here]] = position[here]
        is_known = (position[here] != _UNKNOWN).all()
        found[number] = {"rows": shape[0], "cols": shape[1]}
        if is_known:
            found[number]["find_positions"] = partial(np.copy, known)
    return found
