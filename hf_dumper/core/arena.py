"""Bounded, reusable, page-aligned memory that carries tensors from the hook to the writer.

A hook copies a tensor once, into a span of the current chunk. Full chunks travel to the sink, which
releases them when their bytes are written or no longer needed; then they are used again, so that a
long generation touches no new memory. The number of bytes in flight is bounded: `reserve` waits for
the writer when the bound is reached.
"""

import ctypes
import mmap
import threading
from contextlib import suppress
from typing import NamedTuple

CHUNK_BYTES = 24 << 20
MAX_BYTES = 256 << 20

_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
"""Python maps anonymous memory shared otherwise: a forked process could write into ours."""


class Chunk:
    """One page-aligned block of memory, filled from the front."""

    __slots__ = ("address", "memory", "size")

    def __init__(self, size: int) -> None:
        """Map `size` bytes of anonymous memory; `address` is where they lie in this process."""
        self.memory = mmap.mmap(-1, size, **_PRIVATE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = size

    def unmap(self) -> None:
        """Give the memory back to the system, unless something still looks at it."""
        with suppress(BufferError):  # then it goes when nobody does any more
            self.memory.close()


class Span(NamedTuple):
    """`nbytes` bytes of a chunk, from `offset`."""

    chunk: Chunk
    offset: int
    nbytes: int

    @property
    def view(self) -> memoryview:
        """The bytes, valid until the chunk is released."""
        return memoryview(self.chunk.memory)[self.offset : self.offset + self.nbytes]


class Arena:
    """A pool of chunks between one capturing thread and one releasing thread.

    At most `max_bytes` are mapped, in flight or free to be used again. A tensor that is larger than
    that is in flight alone.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES, max_bytes: int = MAX_BYTES) -> None:
        """Create an empty pool; memory is mapped when it is first needed."""
        self._chunk_bytes = chunk_bytes
        self._max_bytes = max(max_bytes, 2 * chunk_bytes)
        self._free: list[Chunk] = []
        self._in_flight = 0
        self._changed = threading.Condition()

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of the chunks that were taken and not yet released."""
        return self._in_flight

    def prepare(self) -> None:
        """Map a chunk and touch its pages, so that the first forward finds them there."""
        with self._changed:
            self._touch_one()

    def prepare_next(self) -> None:
        """Do so with a second chunk, if there is one and no more; in whatever thread.

        Who needs it meanwhile waits for it, which takes no longer than to touch another.
        """
        with self._changed:
            if self._in_flight + self._free_bytes == self._chunk_bytes:
                self._touch_one()

    def _touch_one(self) -> None:
        chunk = Chunk(self._chunk_bytes)
        ctypes.memset(chunk.address, 0, chunk.size)
        self._free.append(chunk)

    def take(self, nbytes: int) -> Chunk:
        """Return an empty chunk with room for `nbytes`, waiting for the writer at the bound.

        The writer gives chunks back also when it drops them after an error, so the wait ends.
        """
        size = max(self._chunk_bytes, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(size))
            self._in_flight += size
            if size == self._chunk_bytes and self._free:
                return self._free.pop()
            while self._free and self._in_flight + self._free_bytes > self._max_bytes:
                self._free.pop().unmap()
        return Chunk(size)

    def release(self, chunk: Chunk) -> None:
        """Give a chunk back; its spans must not be read any more."""
        with self._changed:
            self._in_flight -= chunk.size
            if chunk.size == self._chunk_bytes:
                self._free.append(chunk)
            else:  # here, and not when the last reference goes: whoever waits maps memory then
                chunk.unmap()
            self._changed.notify_all()

    def write_off(self) -> None:
        """Count nothing as in flight: an interruption took a chunk from those who had it."""
        with self._changed:
            self._in_flight = 0
            self._changed.notify_all()

    @property
    def _free_bytes(self) -> int:
        return len(self._free) * self._chunk_bytes

    def _has_room(self, size: int) -> bool:
        return self._in_flight == 0 or self._in_flight + size <= self._max_bytes
