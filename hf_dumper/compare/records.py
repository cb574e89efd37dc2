"""One dump as a comparison sees it: its runs, their records, and which positions they hold."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.statistics import FIELDS
from hf_dumper.core.types import SKIPPED, Phase, TensorKey
from hf_dumper.core.verified import Verified, verified_forwards
from hf_dumper.errors import DumpFormatError

_STRINGS: Final = (
    *("phase", "module", "class", "slot", "param", "op", "axes", "dtype"),
    *("status", "reason"),
)
_KEPT_RUNS: Final = 4
"""Runs of a dump whose records stay in memory: a batch is asked for by each run of its rows."""

_UNKNOWN: Final = int(np.iinfo(np.int32).min)
"""A position that the mask does not tell; -1 is padding, what is below a rejected draft."""

NameKey = tuple[int, str, str, int, str]
"""What names a record within one forward: part, module, slot or param, call, op."""


class Rec(NamedTuple):
    """One row of an index; `number` is its place there. The names are those of the index.

    `part` is the place of its rank among those of the run: where one process has the whole model,
    which of them ran a prompt says nothing about the prompt.
    """

    number: int
    run: int
    rank: int
    forward: int
    token: int
    phase: str
    seq_in: int
    seq_out: int | None
    module: str
    class_name: str
    slot: str
    param: str
    call: int
    op: str
    axes: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    hash: int | None
    status: str
    reason: str
    has_values: bool
    part: int = 0

    @property
    def name(self) -> NameKey:
        """What it is called within its forward."""
        return self.part, self.module, self.slot, self.call, self.op

    @property
    def param_name(self) -> NameKey | None:
        """The same by the parameter's name, None where it has none."""
        if not self.param:
            return None
        return self.part, self.module, f"input.{self.param}", self.call, self.op

    @property
    def key(self) -> TensorKey:
        """Its key in the dump."""
        return TensorKey(
            self.run, self.rank, self.forward, self.module, self.slot, self.call, self.op
        )


@dataclass(frozen=True)
class Layout:
    """The tokens of one forward: `positions` is int32 [rows, cols], -1 for padding.

    Rejected drafts have positions below that. `token` is the token that the forward predicts, the
    first one where it decided several. `is_guidance` tells a forward that was run beside the
    sequence.
    """

    token: int
    positions: NDArray[np.int32]
    is_guidance: bool = False

    @cached_property
    def rejected(self) -> int:
        """Number of columns that hold rejected drafts, under speculative decoding."""
        return int((self.positions < -1).any(axis=0).sum()) if self.positions.size else 0

    @property
    def rows(self) -> int:
        """Number of rows of the batch."""
        return int(self.positions.shape[0])

    @property
    def cols(self) -> int:
        """Number of columns, padding included."""
        return int(self.positions.shape[1])


class RunRecords:
    """The records of one run, in order of capture, and the layout of each forward.

    `forwards` maps each forward that has records to its token; those of `guidance` were run beside
    the sequence. `has_room` tells that the cache is longer than what it holds. What `generate()`
    took back itself is left out.
    """

    def __init__(self, reader: DumpReader, run: int) -> None:
        """Read index and positions."""
        table = reader.index(run)
        self.run = run
        found = _records(table, f"run {run} of {reader.path}")
        info = reader.run_info(run)
        self.has_room = _has_room(info)
        surplus = set(info.get("discarded_tokens") or ())
        self.records = [record for record in found if record.token not in surplus]
        self.forwards = {record.forward: record.token for record in self.records}
        self.guidance = {r.forward for r in self.records if r.phase == Phase.GUIDANCE}
        self.layouts = {
            forward: replace(layout, is_guidance=forward in self.guidance)
            for forward, layout in _layouts(reader.positions(run), self.forwards)
            if not surplus or forward in self.forwards
        }

    @cached_property
    def by_forward(self) -> Mapping[int, Mapping[NameKey, Rec]]:
        """Records by forward and name; those that a parameter names are also under that."""
        found: dict[int, dict[NameKey, Rec]] = {}
        for record in self.records:
            found.setdefault(record.forward, {})[record.name] = record
        for record in self.records:
            if (other := record.param_name) is not None:
                found[record.forward].setdefault(other, record)
        return found

    def find(self, forward: int, golden: Rec) -> Rec | None:
        """Return the record of a forward that has the name of `golden`, or its parameter's."""
        names = self.by_forward.get(forward, {})
        found = names.get(golden.name)
        if found is None and golden.param_name is not None:
            found = names.get(golden.param_name)
        return found


class Side:
    """Golden or candidate: a reader, with the records of its runs read when needed."""

    def __init__(self, reader: DumpReader, word: str) -> None:
        """Read nothing yet; `word` is "golden" or "candidate"."""
        self.reader = reader
        self.word = word
        self.runs: tuple[int, ...] = tuple(reader.runs())
        self._infos: dict[int, Mapping[str, Any]] = {}
        self._records: OrderedDict[int, RunRecords] = OrderedDict()
        self._checked: set[tuple[int, int]] = set()
        self._statistics: dict[int, list[dict[str, Any]]] = {}
        self._lock = Lock()

    @property
    def name(self) -> str:
        """What the dump is opened by: its address on a hub, else its folder."""
        return str(getattr(self.reader, "url", None) or self.reader.path)

    def info(self, run: int) -> Mapping[str, Any]:
        """Return what went into a run and what came out."""
        if run not in self._infos:
            self._infos[run] = self.reader.run_info(run)
        return self._infos[run]

    def records(self, run: int) -> RunRecords:
        """Return the records of a run; the last few runs are kept."""
        found = self._records.get(run) or RunRecords(self.reader, run)
        self._records[run] = found
        self._records.move_to_end(run)
        while len(self._records) > _KEPT_RUNS:
            self._records.popitem(last=False)
        return found

    def statistics(self, record: Rec) -> Mapping[str, float | None] | None:
        """Return the statistics of a record, None where there are none."""
        with self._lock:
            if record.run not in self._statistics:
                table = self.reader.statistics(record.run).select(list(FIELDS))
                self._statistics = {record.run: table.to_pylist()}
            found = self._statistics[record.run][record.number]
        return None if found["count"] is None else found

    def verified(self, run: int) -> tuple[Verified, ...] | None:
        """Return the verifying forwards of a run, None without speculative decoding."""
        records = self.records(run)
        columns = {n: (layout.cols, layout.rejected) for n, layout in records.layouts.items()}
        return verified_forwards(self.info(run), records.forwards, columns)

    def tensor(self, record: Rec) -> torch.Tensor:
        """Return the values of a record, whose bytes are held against their hash once.

        Raises:
            DumpFormatError: the bytes are not those that were captured.
        """
        tensor = self.reader.load_key(record.key)
        if record.hash is None or (record.run, record.number) in self._checked:
            return tensor
        if _hash(tensor) != record.hash:
            msg = (
                f"{self.reader.path} is damaged: the bytes of {record.module!r} {record.slot!r} in "
                f"forward {record.forward} of run {record.run} are not those that the index has "
                "the hash of."
            )
            raise DumpFormatError(msg)
        self._checked.add((record.run, record.number))
        return tensor


def _has_room(info: Mapping[str, Any]) -> bool:
    """Tell whether a run had a static cache."""
    cache = str((info.get("inputs") or {}).get("cache"))
    asked = str((info.get("generation_config") or {}).get("cache_implementation"))
    return cache.startswith("Static") or "static" in asked


def _hash(tensor: torch.Tensor) -> int:
    if not tensor.numel():
        return xxhash.xxh3_64_intdigest(b"")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    content: Any = flat.numpy()  # a buffer, though its type does not say so
    return xxhash.xxh3_64_intdigest(content)


def _records(table: pa.Table, where: str) -> Iterator[Rec]:
    for name in ("run", "rank", "forward", "token", "module", "slot", "call", "shape"):
        if table.column(name).null_count:
            msg = f"The index of {where} is damaged: column {name!r} has nulls."
            raise DumpFormatError(msg)
    columns = {name: _shared_strings(table.column(name)) for name in _STRINGS}
    axes = {word: tuple(word.split(",")) if word else () for word in set(columns["axes"])}
    integers = ("run", "rank", "forward", "token", "call", "seq_in", "seq_out", "hash")
    columns |= {name: table.column(name).to_pylist() for name in integers}
    shapes = map(tuple, table.column("shape").to_pylist())
    parts = {rank: part for part, rank in enumerate(sorted(set(columns["rank"])))}
    has_values = (~np.asarray(table.column("shard").is_null())).tolist()
    order = (
        *("run", "rank", "forward", "token", "phase", "seq_in", "seq_out", "module", "class"),
        *("slot", "param", "call", "op"),
    )
    return map(
        Rec,
        range(table.num_rows),
        *(columns[name] for name in order),
        (axes[word] for word in columns["axes"]),
        columns["dtype"],
        shapes,
        *(columns[name] for name in ("hash", "status", "reason")),
        (
            there and status != SKIPPED
            for there, status in zip(has_values, columns["status"], strict=True)
        ),
        (parts[rank] for rank in columns["rank"]),
    )


def _shared_strings(column: pa.ChunkedArray) -> list[Any]:
    """Return the strings of a column, equal ones as one object; null is the empty string."""
    if not len(column):
        return []
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    names = [*encoded.dictionary.to_pylist(), ""]
    codes = encoded.indices.fill_null(len(names) - 1).to_pylist()
    return [names[code] for code in codes]


def _layouts(table: pa.Table, tokens: Mapping[int, int]) -> Iterator[tuple[int, Layout]]:
    """Yield the layout of each forward whose positions are all known."""
    if not table.num_rows:
        return
    forward, row, column = (
        np.asarray(table.column(name).to_numpy()) for name in ("forward", "row", "column")
    )
    values = np.asarray(table.column("position").fill_null(_UNKNOWN).to_numpy())
    order = np.lexsort((column, row, forward))
    starts = np.flatnonzero(np.diff(forward[order], prepend=-1))
    for part in np.split(order, starts[1:]):
        number = int(forward[part[0]])
        rows, cols = int(row[part].max()) + 1, int(column[part].max()) + 1
        if part.size == rows * cols and (values[part] != _UNKNOWN).all():
            yield number, Layout(tokens.get(number, -1), values[part].reshape(rows, cols))


def in_order(records: Sequence[Rec]) -> list[Rec]:
    """Return records in order of completion; what did not return comes last in its forward."""
    last = float("inf")
    return sorted(records, key=lambda r: (r.forward, last if r.seq_out is None else r.seq_out))
