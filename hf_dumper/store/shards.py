"""Shards: safetensors files whose header is reserved first and filled in last.

Offsets in a header are known only at the end, but tensors must reach the disk while the model runs.
So each shard begins with an empty room for its header; spaces fill what the header leaves of it,
which safetensors accepts. The data begins on a page boundary, as unbuffered writes would need it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hf_dumper.core.arena import Span
from hf_dumper.core.types import Description, Record
from hf_dumper.errors import DumpWriteError
from hf_dumper.store.direct import grow
from hf_dumper.store.dtypes import stored_as
from hf_dumper.store.layout import PAGE, partial_name, shard_name, tensor_name

SHARD_BYTES: Final = 4 << 30
LEAST_HEAD, FIRST_HEAD, MOST_HEAD = 4 << 10, 1 << 20, 8 << 20
"""Bytes before the data: the least, the most in a first shard, and the most in any."""

ENTRY_BYTES: Final = 160
"""Typical length of one entry of a header, to choose the room of the first shard."""

_LENGTH_BYTES: Final = 8


class Place(NamedTuple):
    """Where the bytes of a tensor are; `offset` counts from the start of the file."""

    shard: str
    tensor: str
    offset: int


class Shard:
    """One open shard. What was added is in the file, and in the header, once `flush` returns."""

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
        self._waiting: list[str] = []
        self._extents: list[Span] = []
        self._header_bytes = len("{}") - len(",")
        self._waiting_bytes = 0
        self._end = self.data_start

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensors added so far."""
        return self._end - self.data_start

    def add(self, label: "Label", forward: int, span: Span, most_bytes: int) -> Place | None:
        """Queue a tensor and return its place, or None when it does not fit any more."""
        begin = self._end - self.data_start
        if begin and begin + span.nbytes > most_bytes:
            return None
        entry = label.entry(forward, begin, begin + span.nbytes)
        needed = self._waiting_bytes + len(entry) + len(",")
        if self._header_bytes + needed > self.room:
            return None
        place = Place(self.name, f"{forward}{label.tail}", self._end)
        self._waiting_bytes = needed
        self._waiting.append(entry)
        self._extend(span)
        self._end += span.nbytes
        return place

    def flush(self) -> None:
        """Write what was queued: one extent per stretch of adjacent spans."""
        try:
            self._file.append([extent.view for extent in self._extents])
            self._entries += self._waiting
            self._header_bytes += self._waiting_bytes
        finally:
            self.forget()

    def forget(self) -> None:
        """Drop what was queued and is not in the file."""
        self._extents, self._waiting = [], []
        self._waiting_bytes = 0
        self._end = self._file.end

    def finish(self) -> None:
        """Fill in the header and give the file its final name."""
        header = "{" + ",".join(self._entries) + "}"
        padded = header.encode("ascii").ljust(self.room)
        self._file.overwrite(len(padded).to_bytes(_LENGTH_BYTES, "little") + padded)
        self._file.close()
        self._file.path.rename(self._final)

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _extend(self, span: Span) -> None:
        if not span.nbytes:
            return
        if self._extents:
            chunk, offset, nbytes = self._extents[-1]
            if chunk is span.chunk and offset + nbytes == span.offset:
                self._extents[-1] = Span(chunk, offset, nbytes + span.nbytes)
                return
        self._extents.append(span)


class ShardSet:
    """The shards of one process in one run, each opened when the first tensor needs it."""

    def __init__(self, folder: Path, expected_records: int, shard_bytes: int = SHARD_BYTES) -> None:
        """Create nothing yet; `expected_records` sets the header room of the first shard."""
        self._folder = folder
        self._most_bytes = shard_bytes
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

    def store(self, forward: int, records: Sequence[Record]) -> list[Place | None]:
        """Write the records that have bytes; return the place of each, None for the others."""
        try:
            places = [
                None if record.span is None else self._place(forward, record, record.span)
                for record in records
            ]
        except BaseException:
            # The caller gives the memory back: queued spans must not be written later.
            if self._shard:
                self._shard.forget()
            raise
        if self._shard:
            self._shard.flush()
        return places

    def finish(self) -> None:
        """Complete the open shard."""
        if self._shard:
            self._shard.flush()
            self._shard.finish()
            self._bytes += self._shard.data_bytes
            self._shard = None

    def close(self) -> None:
        """Let go of the open shard; its data stays readable through the index."""
        if self._shard:
            self._shard.close()
            self._shard = None

    def _place(self, forward: int, record: Record, span: Span) -> Place:
        label = self._label(record)
        self._claim(forward, label)
        while True:
            shard = self._shard or self._open(label, forward, span)
            place = shard.add(label, forward, span, self._most_bytes)
            if place is not None:
                return place
            self.finish()

    def _label(self, record: Record) -> "Label":
        # By identity: descriptions are used again, and comparing them would cost more than a label.
        key = (id(record.what), record.call)
        label = self._labels.get(key)
        if label is None or label.what is not record.what:
            label = self._labels[key] = Label(record.what, record.call)
        return label

    def _claim(self, forward: int, label: "Label") -> None:
        # Names hold the forward, so they can only clash within one: the set stays small.
        if forward != self._forward:
            self._forward = forward
            self._tails.clear()
        if label.tail in self._tails:
            msg = f"Two tensors of one forward are named {label.tail!r}; a shard can hold only one."
            raise DumpWriteError(msg)
        self._tails.add(label.tail)

    def _open(self, label: "Label", forward: int, span: Span) -> Shard:
        needed = len(label.entry(forward, 0, span.nbytes)) + len("{}") + _LENGTH_BYTES
        self._shard = Shard(self._folder, self._count, max(self._head, needed))
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
