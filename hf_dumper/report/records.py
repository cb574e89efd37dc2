"""Records of one token of one run, with statistics, in the order of the model's work."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import torch

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.statistics import FIELDS, describe
from hf_dumper.core.types import TensorKey
from hf_dumper.core.verified import Verified, covering
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store.verified import verified_run

OnProgress = Callable[[int, int], None]
"""Is told how many of how many tensors have been described."""

_AT_ONCE: Final = 64


@runtime_checkable
class IndexedReader(DumpReader, Protocol):
    """A reader that has an index as well: what the reports are made of."""

    def run_info(self, run: int | None = None) -> dict[str, Any]:
        """Return what is known of a run."""

    def index(self, run: int | None = None) -> pa.Table:
        """Return the index of a run."""

    def load_key(self, key: TensorKey) -> torch.Tensor:
        """Return the tensor of a key."""


class Entry(NamedTuple):
    """One record. `owner` is the name in its shard of the record that owns the same bytes."""

    key: TensorKey
    token: int
    class_name: str
    param: str
    dtype: str
    shape: list[int]
    device: str
    nbytes: int
    status: str
    reason: str
    owner: str | None
    statistics: Mapping[str, float | None]

    @property
    def module(self) -> str:
        """Name of the module."""
        return self.key.module

    @property
    def slot(self) -> str:
        """Which tensor of the module."""
        return self.key.slot


def tokens(reader: IndexedReader, run: int) -> list[int]:
    """Return the tokens of which a run has records, ascending."""
    table = reader.index(run)
    recorded = set(pc.unique(table.column("token")).to_pylist())
    forwards = set(pc.unique(table.column("forward")).to_pylist())
    for verified in _verified(reader, run):
        if verified.forward in forwards:
            recorded.update(range(verified.token, verified.token + verified.accepted + 1))
    return sorted(recorded)


def _verified(reader: IndexedReader, run: int) -> tuple[Verified, ...]:
    info = reader.run_info(run)
    return verified_run(info, lambda: reader.index(run), lambda: reader.positions(run)) or ()


def entries(
    reader: IndexedReader,
    run: int,
    token: int | None,
    *,
    modules: Iterable[str] | None = None,
    on_progress: OnProgress | None = None,
) -> list[Entry]:
    """Return the records of a token, of all for None, in the order in which the modules begin.

    Where one forward decided several tokens, its records are those of each of them. Statistics
    that the dump lacks are computed of the stored values.

    Raises:
        KeyNotFoundError: the run has no such token; the message lists those it has.
    """
    table = reader.index(run)
    if token is not None:
        have = tokens(reader, run)
        if have and token not in have:
            msg = f"Run {run} has no token {token}. Recorded: {ranges(have)}."
            raise KeyNotFoundError(msg)
        decided = covering(_verified(reader, run), token)
        first = token if decided is None else decided.token
        table = table.filter(pc.equal(table.column("token"), first))
    if modules is not None:
        table = table.filter(pc.is_in(table.column("module"), pa.array(list(modules), pa.utf8())))
    found = [_entry(row) for row in table.sort_by(_ORDER).to_pylist()]
    if token is not None:
        found = [entry._replace(token=token) for entry in found]
    return _described(reader, found, on_progress)


_ORDER: Final = [("forward", "ascending"), ("rank", "ascending"), ("seq_in", "ascending")]


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as "0-3, 8"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, part)) for part in parts) or "none"


def _entry(row: Mapping[str, Any]) -> Entry:
    key = TensorKey(*(row[name] for name in TensorKey._fields))
    return Entry(
        key,
        row["token"],
        row["class"],
        row["param"],
        row["dtype"],
        row["shape"],
        row["device"],
        row["nbytes"],
        row["status"],
        row["reason"],
        row["tensor"],
        {name: row[name] for name in FIELDS},
    )


def _described(
    reader: IndexedReader, found: list[Entry], on_progress: OnProgress | None
) -> list[Entry]:
    """Fill in the statistics of the records that have values but no statistics."""
    bare = [i for i, e in enumerate(found) if e.owner is not None and e.statistics["count"] is None]
    owners: dict[tuple[int, int, str | None, str, str], list[int]] = {}
    for i in bare:  # bytes that several records share are described once
        e = found[i]
        same = (e.key.rank, e.key.forward, e.owner, e.dtype, str(e.shape))
        owners.setdefault(same, []).append(i)
    groups = list(owners.values())
    for start in range(0, len(groups), _AT_ONCE):
        part = groups[start : start + _AT_ONCE]
        tensors = [reader.load_key(found[group[0]].key) for group in part]
        for group, statistics in zip(part, describe(tensors), strict=True):
            if statistics is not None:
                for i in group:
                    found[i] = found[i]._replace(statistics=statistics._asdict())
        if on_progress is not None:
            on_progress(min(start + _AT_ONCE, len(groups)), len(groups))
    return found
