"""Who owns which bytes: of equal tensors of a forward only the first keeps its copy."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest

from hf_dumper.capture.copying import memmove
from hf_dumper.core.arena import Chunk
from hf_dumper.core.types import Description, Records

Statistics: TypeAlias = Mapping[int, tuple[float, ...]]
_NONE: Final[Statistics] = MappingProxyType({})

Key: TypeAlias = tuple[int, tuple[int, ...], str]


class Owners:
    """Finds, within one forward at a time, the first record of the same bytes, type and shape.

    Works where the batches are written: what it knows is used by one thread, in order.

    Attributes:
        aliased: Number of records without bytes of their own so far.
    """

    def __init__(self) -> None:
        """Know of nothing yet."""
        self.aliased = 0
        self._first: dict[Key, int] = {}

    def resolve(
        self,
        rows: Sequence[tuple[object, ...]],
        chunk: Chunk | None,
        begin: int,
        sent: int,
        described: Statistics = _NONE,
    ) -> Records:
        """Hash the bytes of new records, make aliases of equal ones, and close the gaps they leave.

        `rows` are those of an `Intake`. The copies lie in `chunk` from `begin` on, in order. `sent`
        is the number of the forward's records before these; 0 begins a forward. `described` goes
        into the result as it is.
        """
        if not sent:
            self._first.clear()
        if not rows:
            return Records()
        what, call, call_index, offsets, hashes = zip(*rows, strict=True)
        view = memoryview(b"" if chunk is None else chunk.memory)
        digests = [
            known
            if offset is None or known is not None
            else xxh3_64_intdigest(view[offset : offset + w.nbytes])
            for w, offset, known in zip(what, offsets, hashes, strict=True)
        ]
        owners = self._find(what, digests, sent)
        self.aliased += len(owners) - owners.count(None)
        places: Sequence[int | None] = offsets
        if chunk is not None:
            places = _close_gaps(what, offsets, owners, chunk, begin)
        return Records(what, call, call_index, digests, places, owners, chunk, described)

    def _find(
        self, what: Sequence[Description], digests: Sequence[int | None], sent: int
    ) -> list[int | None]:
        setdefault = self._first.setdefault
        owners: list[int | None] = []
        for i, (w, digest) in enumerate(zip(what, digests, strict=True), sent):
            owner = i
            if digest is not None and w.nbytes:
                owner = setdefault((digest, w.shape, w.dtype), i)
            owners.append(None if owner == i else owner)
        return owners


def _close_gaps(
    what: Sequence[Description],
    offsets: Sequence[int | None],
    owners: Sequence[int | None],
    chunk: Chunk,
    begin: int,
) -> list[int | None]:
    """Move the bytes that are kept together; return where they are now, None for the others."""
    places: list[int | None] = []
    first = last = end = begin  # the stretch [first, last) is kept and moves down to `end`
    for w, offset, owner in zip(what, offsets, owners, strict=True):
        if offset is None or owner is not None:
            places.append(None)
            continue
        if offset != last:
            end = _move(chunk, first, last, end)
            first = offset
        places.append(end + offset - first)
        last = offset + w.nbytes
    _move(chunk, first, last, end)
    return places


def _move(chunk: Chunk, first: int, last: int, end: int) -> int:
    if first != end:
        memmove(chunk.address + end, chunk.address + first, last - first)
    return end + last - first
