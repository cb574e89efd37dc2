"""Borrowed tensors in, owned records out: the single point where bytes are copied.

A tensor is copied at once, in the hook, into the current chunk of the arena; no live tensor is
kept, so nothing that the model does later can change what was recorded. A tensor at an address
that was recorded before in the same forward, with the same shape, strides and dtype, becomes an
alias if the hash of its bytes says that they are the same bytes: addresses are reused and version
counters miss writes through `.data`, so neither alone is proof.
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from xxhash import xxh3_64_intdigest

from hf_dumper.core.arena import Arena, Chunk, Span
from hf_dumper.core.axes import infer_axes
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Batch, Description, Record, Tick

Source: TypeAlias = tuple[str, str]
"""Name and class name of the module that a tensor was seen at."""

STORABLE = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    )
}
"""Names of the dtypes that safetensors 0.8 can hold."""

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_STRIDED = torch.strided

_BATCH = 64
"""Records after which a batch leaves, so that the writer works while the forward still runs."""

_LARGE = 1 << 20
"""Bytes from which a copy is worth releasing the GIL for, and torch's threads."""

# ctypes.memmove releases the GIL, and the thread that then takes it may keep it for milliseconds:
# for the few kilobytes of one decoded token that is a hundred times the copy.
_memmove = ctypes.PyDLL(None).memmove
_memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memmove.restype = ctypes.c_void_p

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memory_at.restype = ctypes.py_object
_READ = 0x100
"""PyBUF_READ of CPython's buffer protocol."""


class Snapshot:
    """Collects the records of one forward at a time and sends them on in batches.

    Attributes:
        tick: The forward in progress, None between forwards.
        calls: [seq_in, seq_out] of every module call of the forward.
        counts: Records by status, over the run.
    """

    def __init__(self, arena: Arena, send: Callable[[Batch], None]) -> None:
        """Copy into chunks of `arena`; give every batch to `send`."""
        self.tick: Tick | None = None
        self.calls: list[list[int]] = []
        self.counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._not_tensors: Counter[type] = Counter()
        self._arena = arena
        self._send = send
        self._chunk: Chunk | None = None
        self._view = memoryview(b"")
        self._records: list[Record] = []
        self._sent = 0
        self._seen: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._sizes = (0, 0, 0, False)
        self._by_sizes: dict[tuple[object, ...], dict[tuple[object, ...], Description]] = {}
        self._described: dict[tuple[object, ...], Description] = {}

    def begin(self, tick: Tick) -> None:
        """Start a forward; one that is still open is ended first."""
        self.end()
        self.settle(tick)

    def settle(self, tick: Tick) -> None:
        """Take the tick of the forward in progress, whose sizes the records that follow have."""
        self.tick = tick
        self._sizes = (tick.rows, tick.cols, tick.keep, tick.past > 0)
        self._described = self._by_sizes.setdefault(self._sizes, {})

    def add(
        self, source: Source, slot: str, param: str, call: tuple[int, int], tensor: torch.Tensor
    ) -> None:
        """Record a borrowed tensor.

        `source` is the module's name and class name, `call` the index of this call of the module
        in the forward and its place in the forward's list of calls.
        """
        if type(tensor) not in _PLAIN or tensor.layout is not _STRIDED:
            self._skip(source, slot, param, call, tensor)
            return
        shape, dtype, pointer = tensor.shape, tensor.dtype, tensor.data_ptr()
        key = (source[0], slot, shape, dtype, tensor.get_device())
        what = self._described.get(key)
        if what is None or not pointer:
            if unstorable(tensor) is not None:
                self._skip(source, slot, param, call, tensor)
                return
            what = self._describe(source, slot, param, tensor)
            self._described[key] = what
        digest, span, owner = self._own(tensor, what, pointer)
        self.counts[STORED if owner is None else ALIASED] += 1
        self._records.append(Record(what, call[0], call[1], digest, span, owner))
        if len(self._records) >= _BATCH:
            self.push()

    @property
    def skipped(self) -> Counter[str]:
        """What was not recorded, by reason, over the run."""
        types = ((f"not a tensor: {cls.__name__}", n) for cls, n in self._not_tensors.items())
        found = self._reasons.copy()
        for reason, n in types:
            found[reason] += n
        return found

    def skip(self, reason: str) -> None:
        """Count something that is not recorded."""
        self._reasons[reason] += 1

    def skip_value(self, value: object) -> None:
        """Count a value that is not a tensor, by its type."""
        self._not_tensors[type(value)] += 1

    def push(self) -> None:
        """Send what was recorded so far; the forward goes on."""
        if self.tick is not None and self._records:
            self._leave(None, ())

    def end(self) -> None:
        """End the forward in progress, if any: its calls are complete, its last batch leaves."""
        if self.tick is not None:
            self._finish(())

    def close(self) -> None:
        """End the forward in progress and give up the chunk in hand."""
        chunk, self._chunk = self._chunk, None
        if self.tick is not None:
            self._finish(() if chunk is None else (chunk,))
        elif chunk is not None:
            self._arena.release(chunk)

    def _finish(self, spent: tuple[Chunk, ...]) -> None:
        self._leave([(seq_in, seq_out) for seq_in, seq_out in self.calls], spent)
        self.tick = None
        self.calls = []
        self._sent = 0
        self._seen.clear()

    def _describe(self, source: Source, slot: str, param: str, tensor: torch.Tensor) -> Description:
        shape = tuple(tensor.shape)
        axes = infer_axes(shape, *self._sizes)
        dtype, device = STORABLE[tensor.dtype], str(tensor.device)
        return Description(*source, slot, param, "", axes, dtype, shape, device, tensor.nbytes)

    def _own(
        self, tensor: torch.Tensor, what: Description, pointer: int
    ) -> tuple[int, Span | None, int | None]:
        """Return (hash, bytes, None), or (hash, None, owner) when these bytes were seen before."""
        nbytes = what.nbytes
        if _is_literal(tensor):
            key: tuple[object, ...] = (pointer, what.shape, tensor.dtype)
            digest = xxh3_64_intdigest(_memory_at(pointer, nbytes, _READ) if nbytes else b"")
            seen = self._seen.get(key)
            if seen is not None and seen[1] == digest:
                return digest, None, seen[0]
            span = self._copy_bytes(pointer, nbytes)
        else:
            key = (pointer, what.shape, tensor.dtype, tensor.stride(), tensor.is_neg())
            span = self._copy_values(tensor, nbytes)
            digest = xxh3_64_intdigest(self._view[span.offset : span.offset + nbytes])
            seen = self._seen.get(key)
            if seen is not None and seen[1] == digest:
                span.chunk.used = span.offset
                return digest, None, seen[0]
        if nbytes:
            self._seen[key] = (self._sent + len(self._records), digest)
        return digest, span, None

    def _copy_bytes(self, pointer: int, nbytes: int) -> Span:
        span = self._reserve(nbytes)
        move = _memmove if nbytes < _LARGE else ctypes.memmove
        move(span.chunk.address + span.offset, pointer, nbytes)
        return span

    def _copy_values(self, tensor: torch.Tensor, nbytes: int) -> Span:
        span = self._reserve(nbytes)
        if nbytes:
            memory, count = span.chunk.memory, tensor.numel()
            flat = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=span.offset)
            flat.view(tensor.shape).copy_(tensor.detach())
        return span

    def _reserve(self, nbytes: int) -> Span:
        chunk = self._chunk
        if chunk is None or chunk.used + nbytes > chunk.size:
            chunk = self._next_chunk(nbytes)
        offset = chunk.used
        chunk.used = offset + nbytes
        return Span(chunk, offset, nbytes)

    def _next_chunk(self, nbytes: int) -> Chunk:
        if self._chunk is not None:
            chunk, self._chunk = self._chunk, None
            self._leave(None, (chunk,))
        self._chunk = self._arena.take(nbytes)
        self._view = memoryview(self._chunk.memory)
        return self._chunk

    def _leave(self, calls: list[tuple[int, int]] | None, spent: tuple[Chunk, ...]) -> None:
        records, self._records = self._records, []
        self._sent += len(records)
        self._send(Batch(cast("Tick", self.tick), records, calls, spent))

    def _skip(
        self, source: Source, slot: str, param: str, call: tuple[int, int], tensor: torch.Tensor
    ) -> None:
        reason = unstorable(tensor) or ""
        self.counts[SKIPPED] += 1
        self.skip(reason)
        dtype, device = str(tensor.dtype).removeprefix("torch."), str(tensor.device)
        what = Description(*source, slot, param, "", "", dtype, _shape(tensor), device, 0)
        self._records.append(Record(what, *call, None, None, reason=reason))


def unstorable(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be stored as plain bytes, None when it can."""
    if type(tensor) not in _PLAIN:
        return f"tensor subclass {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_meta:
        return "meta tensor, it has no values"
    if not tensor.data_ptr() and tensor.numel():
        return "tensor without memory"
    if tensor.dtype not in STORABLE:
        return f"dtype {str(tensor.dtype).removeprefix('torch.')} cannot be stored"
    return None


def _is_literal(tensor: torch.Tensor) -> bool:
    """Tell whether the values are plain bytes at one place in this process's memory."""
    return (
        tensor.is_cpu
        and tensor.is_contiguous()
        and not (tensor.is_neg() or tensor.is_conj())  # flags that a reader of the bytes must apply
    )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in tensor.shape)
    except (RuntimeError, TypeError, AttributeError):  # a nested tensor has no shape
        return ()
