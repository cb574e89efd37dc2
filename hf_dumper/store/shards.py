"""Shards: safetensors files whose header is reserved first and filled in last.

Offsets in a header are known only at the end, but tensors must reach the disk while the model runs.
So each shard begins with an empty room for its header; spaces fill what the header leaves of it,
which safetensors accepts. The data begins on a page boundary, as unbuffered writes would need it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hf_dumper.core.arena import Chunk, Span
from hf_dumper.core.types import Description, Records
from hf_dumper.errors import DumpWriteError
from hf_dumper.store.budget import Budget
from hf_dumper.store.direct import grow
from hf_dumper.store.dtypes import stored_as
from hf_dumper.store.durable import publish
from hf_dumper.store.layout import PAGE, partial_name, shard_name, tensor_name

SHARD_BYTES: Final = 4 << 30
LEAST_HEAD, FIRST_HEAD, MOST_HEAD = 4 << 10, 1 << 20, 8 << 20
"""Bytes before the data: the least, the most in a first shard, and the most in any."""

ENTRY_BYTES: Final = 160
"""Typical length of one entry of a header, to choose the room of the first shard."""

_LENGTH_BYTES: Final = 8


class Places(NamedTuple):
    """Where the bytes of records are, in columns; None for records without bytes of their own.

    `offset` counts from the start of the file.
    """

    shard: list[str | None]
    tensor: list[str | None]
    offset: list[int | None]


def nowhere(n: int) -> Places:
    """Return the places of `n` records without bytes."""
    return Places([None] * n, [None] * n, [None] * n)


class Shard:
    """One open shard. What `append` has taken is in the file, and will be in the header."""

    def __init__(self, folder: Path, number: int, head: int) -> None:
        """Create the file; `head` is the least number of bytes to reserve before the data."""
        self.name = shard_name(number)
        self.data_start = -(-head // PAGE) * PAGE
        self.room = self.data_start - _LENGTH_BYTES
        self._final = folder / self.name
        # Zeros and not a hole: the header must find its room on a full disk, too.
        path = folder / partial_name(self.name)
        self._file = grow(path, bytes(self.data_start))
        self._entries: list[str] = []
        self._header_bytes = len("{}") - len(",")

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensors so far."""
        return self._file.end - self.data_start

    def append(
        self, forward: int, labels: Sequence["Label"], chunk: Chunk, start: int, most_bytes: int
    ) -> list[int]:
        """Write the first of these tensors, as many as fit; return the offsets of those.

        Their bytes lie end to end in `chunk` from `start` on.
        """
        entries, offsets = [], []
        header, first = self._header_bytes, self.data_bytes
        end = first
        for label in labels:
            begin, end = end, end + label.what.nbytes
            entry = label.entry(forward, begin, end)
            grown = header + len(entry) + len(",")
            if grown > self.room or (begin and end > most_bytes):
                end = begin
                break
            header = grown
            entries.append(entry)
            offsets.append(self.data_start + begin)
        if end > first:
            self._file.append(Span(chunk, start, end - first).view)
        self._entries += entries
        self._header_bytes = header
        return offsets

    def finish(self, *, durable: bool = False) -> None:
        """Fill in the header and give the file its final name."""
        header = "{" + ",".join(self._entries) + "}"
        padded = header.encode("ascii").ljust(self.room)
        self._file.overwrite(len(padded).to_bytes(_LENGTH_BYTES, "little") + padded)
        self._file.close()
        publish(self._file.path, self._final, durable=durable)

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()


class ShardSet:
    """The shards of one process in one run, each opened when the first tensor needs it."""

    def __init__(
        self,
        folder: Path,
        expected_records: int,
        shard_bytes: int = SHARD_BYTES,
        *,
        budget: Budget | None = None,
        durable: bool = False,
    ) -> None:
        """Create nothing yet; `expected_records` sets the header room of the first shard.

        What is written is claimed from `budget` first. With `durable`, a shard is on the disk
        before it gets its name.
        """
        self._folder = folder
        self._most_bytes = shard_bytes
        self._budget = budget or Budget()
        self._durable = durable
        self._head = min(max(expected_records * ENTRY_BYTES, LEAST_HEAD), FIRST_HEAD)
        self._shard: Shard | None = None
        self._count = 0
        self._bytes = 0
        self._forward = -1
        self._tails: set[str] = set()
        self._labels: dict[tuple[int, int], Label] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the tensors in all shards."""
        return self._bytes + (self._shard.data_bytes if self._shard else 0)

    def store(self, forward: int, records: Records) -> Places:
        """Write the bytes of records; return where they are.

        Raises:
            DumpWriteError: they do not fit into the budget; none of them is written then.
        """
        places = nowhere(len(records))
        own = [i for i, offset in enumerate(records.offset) if offset is not None]
        if not own or records.chunk is None:
            return places
        labels = [self._label(records.what[i], records.call[i]) for i in own]
        self._claim(forward, labels)
        self._budget.claim(sum(label.what.nbytes for label in labels))
        done = 0
        while done < len(own):
            shard = self._shard or self._open(labels[done], forward)
            start = records.offset[own[done]] or 0
            offsets = shard.append(forward, labels[done:], records.chunk, start, self._most_bytes)
            for i, label, offset in zip(own[done:], labels[done:], offsets, strict=False):
                places.shard[i] = shard.name
                places.tensor[i] = f"{forward}{label.tail}"
                places.offset[i] = offset
            done += len(offsets)
            if done < len(own):
                self.finish()
        return places

    def finish(self) -> None:
        """Complete the open shard."""
        if self._shard:
            self._shard.finish(durable=self._durable)
            self._bytes += self._shard.data_bytes
            self._shard = None

    def close(self) -> None:
        """Let go of the open shard; its data stays readable through the index."""
        if self._shard:
            self._shard.close()
            self._bytes += self._shard.data_bytes
            self._shard = None

    def _label(self, what: Description, call: int) -> "Label":
        # By identity: descriptions are used again, and comparing them would cost more than a label.
        key = (id(what), call)
        label = self._labels.get(key)
        if label is None or label.what is not what:
            label = self._labels[key] = Label(what, call)
        return label

    def _claim(self, forward: int, labels: Sequence["Label"]) -> None:
        # Names hold the forward, so they can only clash within one: the set stays small.
        if forward != self._forward:
            self._forward = forward
            self._tails.clear()
        for label in labels:
            if label.tail in self._tails:
                msg = f"Two tensors of one forward are named {label.tail!r}; "
                msg += "a shard can hold only one."
                raise DumpWriteError(msg)
            self._tails.add(label.tail)

    def _open(self, label: "Label", forward: int) -> Shard:
        needed = len(label.entry(forward, 0, label.what.nbytes)) + len("{}") + _LENGTH_BYTES
        head = max(self._head, needed)
        self._budget.claim(head + 2 * PAGE)  # it is rounded up, and so is what is written
        self._shard = Shard(self._folder, self._count, head)
        self._count += 1
        self._head = min(self._head * 2, MOST_HEAD)
        return self._shard


class Label:
    """What a tensor is called in a shard, but for the forward, which comes first in the name."""

    __slots__ = ("_after", "tail", "what")

    def __init__(self, what: Description, call: int) -> None:
        """Prepare the name, and the text of the header around its offsets."""
        self.what = what
        self.tail = tensor_name("", what.module, what.slot, call, what.op)
        code, shape = stored_as(what.dtype, what.shape, what.nbytes)
        quoted = json.dumps(self.tail)[1:]
        self._after = f'{quoted}:{{"dtype":"{code}","shape":{json.dumps(shape)},"data_offsets":['

    def entry(self, forward: int, begin: int, end: int) -> str:
        """Return the header's entry for the tensor of a forward."""
        return f'"{forward}{self._after}{begin},{end}]}}'
