"""One run being written: its folder, its shards, its tables, and the steps of its commit."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hf_dumper.core.digests import sealed
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Batch, RunInfo, RunResult
from hf_dumper.errors import CaptureError
from hf_dumper.store import layout
from hf_dumper.store.files import file_digest, write_json
from hf_dumper.store.forward import ColumnCache, ForwardTable
from hf_dumper.store.reduce import describe_records
from hf_dumper.store.shards import ShardSet, nowhere
from hf_dumper.store.tables import TableStream, read_stream, write_parquet

_TABLES: Final = {layout.INDEX: layout.INDEX_SCHEMA, layout.POSITIONS: layout.POSITIONS_SCHEMA}


class RunWriter:
    """Writes one run into its folder, which exists and is empty.

    A forward becomes visible to readers when its index batch is appended, after all of its data.
    """

    def __init__(
        self, folder: Path, info: RunInfo, *, rank: int, shards: ShardSet | None, statistics: bool
    ) -> None:
        """Begin the run; `shards` is None when values are not kept. `folder` is the rank's."""
        self._run_folder = folder.parent
        self._folder = folder
        self._info = info
        self._rank = rank
        self._shards = shards
        self._with_statistics = statistics
        self._forward: ForwardTable | None = None
        self._columns = ColumnCache()
        self._last_forward = -1
        self._tokens: set[int] = set()
        self._unfinished: list[int] = []
        self._forwards = 0
        self._counts = Counter(dict.fromkeys((STORED, ALIASED, SKIPPED), 0))
        write_json(self._run_folder / layout.RUN_PARTIAL, self._facts(complete=False))
        self._index = self._stream(layout.INDEX)
        self._positions = self._stream(layout.POSITIONS)

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
        """Give every file its final name; `run.json` comes last and says whether all is there."""
        self._drop_forward()
        if self._shards:
            self._shards.finish()
        self.close()
        for name, schema in _TABLES.items():
            table = read_stream(self._folder / f"{name}.partial", schema, trusted=True)
            write_parquet(self._folder / f"{name}.parquet", table)
        for name in _TABLES:
            (self._folder / f"{name}.partial").unlink()
        reasons = [result.incomplete] if result.incomplete else []
        if self._unfinished:
            reasons.append(f"forwards that did not end: {', '.join(map(str, self._unfinished))}")
        facts = dict(result.facts) | self._facts(complete=not reasons) | self._sums(result)
        facts |= {"tables": self._tables(), "incomplete": "; ".join(reasons) or None}
        write_json(self._run_folder / layout.RUN, sealed(facts))
        (self._run_folder / layout.RUN_PARTIAL).unlink()

    def close(self) -> None:
        """Close the files as they are; may be called twice."""
        if self._shards:
            self._shards.close()
        self._index.close()
        self._positions.close()

    def _stream(self, name: str) -> TableStream:
        return TableStream(self._folder / f"{name}.partial", _TABLES[name])

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
        index = forward.index(calls)
        self._positions.append(forward.positions())
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
        files = (self._folder / f"{name}.parquet" for name in _TABLES)
        return {file.relative_to(self._run_folder).as_posix(): file_digest(file) for file in files}

    def _sums(self, result: RunResult) -> dict[str, Any]:
        return {
            "counts": dict(result.counts),
            "forwards": self._forwards,
            "tokens": len(self._tokens),
            "records": dict(self._counts),
            "bytes": self._shards.bytes if self._shards else 0,
        }
