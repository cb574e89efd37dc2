"""One run being written: its folder, its shards, its tables, and the steps of its commit."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa

from hf_dumper.core.digests import sealed
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Batch, Records, RunInfo, RunResult
from hf_dumper.errors import CaptureError, DumpWriteError
from hf_dumper.store import layout
from hf_dumper.store.budget import Budget
from hf_dumper.store.durable import sync
from hf_dumper.store.files import file_digest, free_room, write_json
from hf_dumper.store.forward import ColumnCache, ForwardTable
from hf_dumper.store.reduce import describe_records
from hf_dumper.store.shards import Places, nowhere
from hf_dumper.store.tables import GrowingTable
from hf_dumper.store.trace import TRACE, trace_table, write_trace

_TABLES: Final = {layout.INDEX: layout.INDEX_SCHEMA, layout.POSITIONS: layout.POSITIONS_SCHEMA}

FACTS_ROOM: Final = 32 << 10
"""Bytes that a run sets aside from its beginning, so that a full disk can be told of."""

_UNENDED: Final = "still running, or stopped before its end"


class TensorFiles(Protocol):
    """Where a run's tensors go, such as a ShardSet; `bytes` counts what was written."""

    @property
    def bytes(self) -> int:
        """Bytes of the tensors so far."""

    def store(self, forward: int, records: Records) -> Places:
        """Write the bytes of records; return where they are."""

    def finish(self) -> None:
        """Complete what is open."""

    def close(self) -> None:
        """Close the files as they are; may be called twice."""


class RunWriter:
    """Writes one run into its folder, which exists and is empty.

    A forward becomes visible to readers when its index batch is appended, after all of its data.
    """

    def __init__(
        self,
        folder: Path,
        info: RunInfo,
        *,
        rank: int,
        shards: TensorFiles | None,
        statistics: bool,
        on_forward: Callable[[pa.RecordBatch], None] | None = None,
        budget: Budget | None = None,
        durable: bool = False,
    ) -> None:
        """Begin the run; `shards` is None when values are not kept. `folder` is the rank's.

        `on_forward` is given the index of each forward that ends, before readers see it. What the
        tables take is claimed from `budget`. With `durable`, all of a run is on the disk
        before `run.json` is there.
        """
        self._run_folder = folder.parent
        self._folder = folder
        self._info = info
        self._rank = rank
        self._shards = shards
        self._with_statistics = statistics
        self._on_forward = on_forward
        self._budget = budget or Budget()
        self._durable = durable
        self._forward: ForwardTable | None = None
        self._columns = ColumnCache()
        self._last_forward = -1
        self._tokens: set[int] = set()
        self._unfinished: list[int] = []
        self._forwards = 0
        self._counts = Counter(dict.fromkeys((STORED, ALIASED, SKIPPED), 0))
        facts = self._facts(complete=False) | {"incomplete": _UNENDED}
        write_json(self._run_folder / layout.RUN_PARTIAL, facts, room=FACTS_ROOM)
        self._index = self._table(layout.INDEX)
        try:
            self._positions = self._table(layout.POSITIONS)
        except BaseException:
            self._index.close()
            raise

    def write(self, batch: Batch) -> None:
        """Write a batch; the last of a forward, which has `calls`, makes it visible."""
        forward, records = self._of(batch), batch.resolve()
        places = nowhere(len(records))
        if self._shards:
            places = self._shards.store(batch.tick.forward, records)
        statistics = describe_records(records) if self._with_statistics else None
        forward.add(records, places, statistics)
        if batch.calls is not None:
            forward.tick = batch.tick  # an encoder's batches leave before the sizes are known
            self._end_forward(forward, batch.calls)

    def commit(self, result: RunResult) -> None:
        """Give every file its final name; `run.json` comes last and says whether all is there.

        When a step fails, what came before it stays readable, and the run is marked as incomplete
        if that is still possible.
        """
        self._drop_forward()
        left_out = None
        try:
            left_out = self._write_trace(result)
            self._finish_files()
        except BaseException as error:
            reason = f"the run could not be ended: {str(error) or type(error).__name__}"
            self.close()  # gives back the file handles, should there be no other
            with suppress(Exception):
                self._write_facts(result, [reason])
            raise
        self._write_facts(result, [str(left_out)] if left_out else [])
        (self._run_folder / layout.RUN_PARTIAL).unlink()
        if left_out:
            raise left_out

    def close(self) -> None:
        """Close the files as they are; may be called twice."""
        if self._shards:
            self._shards.close()
        self._index.close()
        self._positions.close()

    def _write_trace(self, result: RunResult) -> DumpWriteError | None:
        """Write how the tokens were chosen, if any were; return why it is left out."""
        if result.trace:
            table = trace_table(result.trace)
            try:
                self._budget.claim(table.nbytes)
            except DumpWriteError as error:
                return DumpWriteError(f"The trace is left out: {error}")
            write_trace(self._run_folder, table, durable=self._durable)
        return None

    def _finish_files(self) -> None:
        """Complete shards and tables; with `durable`, their bytes and names reach the disk."""
        if self._shards:
            self._shards.finish()
        for table in (self._index, self._positions):
            table.finish(durable=self._durable)
        if self._durable:  # the tables have their names before the streams lose theirs
            sync(self._folder)
        for table in (self._index, self._positions):
            table.remove_stream()
        if self._durable:
            for folder in (self._folder, self._run_folder, *self._run_folder.parents[:2]):
                sync(folder)

    def _write_facts(self, result: RunResult, reasons: list[str]) -> None:
        if result.incomplete:
            reasons = [result.incomplete, *reasons]
        if self._unfinished:
            reasons.append(f"forwards that did not end: {', '.join(map(str, self._unfinished))}")
        if result.unrecorded:
            reasons.append(f"forwards that were not recorded after that: {result.unrecorded}")
        facts = dict(result.facts) | self._facts(complete=not reasons) | self._sums(result)
        facts["prompt"] |= result.facts.get("prompt", {})
        facts |= {"tables": self._tables(), "incomplete": "; ".join(reasons) or None}
        free_room(self._run_folder / layout.RUN_PARTIAL)
        write_json(self._run_folder / layout.RUN, sealed(facts), durable=self._durable)
        if self._durable:
            sync(self._run_folder)

    def _table(self, name: str) -> GrowingTable:
        return GrowingTable(self._folder, name, _TABLES[name])

    def _of(self, batch: Batch) -> ForwardTable:
        number = batch.tick.forward
        if self._forward and self._forward.tick.forward != number:
            self._drop_forward()
        if self._forward is None:
            if number < self._last_forward:
                msg = f"Forward {number} comes after forward {self._last_forward} in one run."
                raise CaptureError(msg)
            self._last_forward = number
            self._forward = ForwardTable(self._info.run, self._rank, batch.tick, self._columns)
        return self._forward

    def _end_forward(self, forward: ForwardTable, calls: Sequence[Sequence[int]]) -> None:
        index, positions = forward.index(calls), forward.positions()
        if self._budget.is_bounded:  # twice: the stream is still there when the table is written
            sizes = map(pa.ipc.get_record_batch_size, (index, positions))
            self._budget.claim(2 * sum(sizes))
        if self._on_forward:
            self._on_forward(index)
        self._positions.append(positions)
        self._index.append(index)
        self._forward = None
        self._forwards += 1
        self._tokens.add(forward.tick.token)
        self._counts.update(forward.counts())

    def _drop_forward(self) -> None:
        if self._forward:
            self._unfinished.append(self._forward.tick.forward)
            self._forward = None

    def _facts(self, *, complete: bool) -> dict[str, Any]:
        info = self._info
        return {
            "run": info.run,
            "complete": complete,
            "kind": info.kind,
            "regime": dict(info.regime),
            "prompt": dict(info.prompt),
        }

    def _tables(self) -> dict[str, str]:
        files = (*(self._folder / f"{name}.parquet" for name in _TABLES), self._run_folder / TRACE)
        written = (file for file in files if file.exists())  # not all, if ending the run failed
        return {
            file.relative_to(self._run_folder).as_posix(): file_digest(file) for file in written
        }

    def _sums(self, result: RunResult) -> dict[str, Any]:
        return {
            "counts": dict(result.counts),
            "forwards": self._forwards,
            "tokens": len(self._tokens),
            "records": dict(self._counts),
            "bytes": self._shards.bytes if self._shards else 0,
        }
