"""Borrowed tensors in, owned records out: the single point where bytes are copied.

A tensor is copied at once, in the hook, into the current chunk of the arena; no live tensor is
kept, so nothing that the model does later can change what was recorded. Between two hooks the model
streams its weights through the caches, so a hook does no more than it must. The rest (hashes,
aliases, closing the gaps that aliases leave) is done for many records in one loop, when their batch
leaves.

A record whose bytes have the hash of earlier ones in the forward, and their type and shape, becomes
an alias. Where a tensor lies in memory is no proof: addresses are used again, and version counters
miss writes through `.data`.
"""

import ctypes
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from xxhash import xxh3_64_intdigest

from hf_dumper.capture.copying import large_copier, memmove
from hf_dumper.capture.hooks import Call, Intake
from hf_dumper.capture.owners import Owners
from hf_dumper.capture.storable import PLAIN, STORABLE, is_literal, shape_of, unstorable
from hf_dumper.core.arena import Arena, Chunk
from hf_dumper.core.axes import infer_axes
from hf_dumper.core.slots import is_container, leaves
from hf_dumper.core.statistics import describe_adjacent
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Batch, Description, Records, Tick

Source: TypeAlias = tuple[str, str]
"""Name and class name of the module that a tensor was seen at."""


class Kind(NamedTuple):
    """What the tensors of one shape, dtype and device share in a forward."""

    axes: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    nbytes: int


_MOST, _LEAST = 1024, 64
"""Records after which a batch leaves in any case, and at a good moment."""

_LARGE = 1 << 16
"""Bytes from which a tensor is hashed where it lies, before the copy that it may make needless."""

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memory_at.restype = ctypes.py_object
_READ = 0x100
"""PyBUF_READ of CPython's buffer protocol."""

_epochs = itertools.count(1)


class Snapshot:
    """Collects the records of one forward at a time and sends them on in batches.

    Attributes:
        tick: The forward in progress, None between forwards.
        intake: Where hooks leave what they take; its functions are those of this snapshot.
    """

    def __init__(
        self,
        arena: Arena,
        send: Callable[[Batch], None],
        intake: Intake | None = None,
        *,
        device: int | None = None,
        hurry: Callable[[], None] = lambda: None,
        behind: Callable[[], None] = lambda: None,
        describe_large: bool = False,
        routed: frozenset[str] = frozenset(),
    ) -> None:
        """Copy into chunks of `arena`; give every batch to `send`.

        `hurry` tells whoever writes them that the moment is good, and `behind` is called there
        before each batch is resolved. `device` is the index of the one
        accelerator whose tensors are taken, None means all. With `describe_large`, the statistics
        of large tensors are computed in the hook, while their bytes are in the caches, and the
        bytes are not kept. The modules named in `routed` are given tokens that are not in order.
        """
        self.tick: Tick | None = None
        self._taken = 0
        self._reasons: Counter[str] = Counter()
        self._arena = arena
        self._send = send
        self._device = device
        self._routed = routed
        self._hurry = hurry
        self._behind = behind
        self._chunk: Chunk | None = None
        self._begin = 0
        self._sent = 0
        self._owners = Owners()
        self._unstorable = 0
        self._large: set[tuple[object, ...]] = set()
        self._describe_large = describe_large
        self._described_now: dict[int, tuple[float, ...]] = {}
        self._sizes = (0, 0, 0, False)
        self._by_sizes: dict[
            tuple[object, ...], tuple[int, dict[Any, Description], dict[Any, Kind]]
        ] = {}
        self._described: dict[Any, Description] = {}
        self._kinds: dict[Any, Kind] = {}
        self.intake = Intake() if intake is None else intake
        self._copy_large = large_copier(compiled=type(self.intake) is not Intake)
        self._connect(self.intake)

    def _connect(self, intake: Intake) -> None:
        intake.rows, intake.calls, intake.not_tensors = [], [], {}
        intake.plain = {type(None), bool, int, float, str}
        intake.address = intake.used = intake.size = intake.sequence = 0
        intake.batch, intake.large = _MOST, _LARGE
        intake.check_device = self._device is not None
        intake.describe, intake.make_room = self.describe, self._make_room
        intake.push, intake.take, intake.take_large = self.push, self.take, self.take_literal

    def begin(self, tick: Tick) -> None:
        """Start a forward; one that is still open is ended first."""
        self.end()
        self.settle(tick)

    def settle(self, tick: Tick) -> None:
        """Take the tick of the forward in progress, whose sizes the records that follow have."""
        self.tick = tick
        self._sizes = (tick.rows, tick.cols, tick.keep, tick.past > 0)
        known = self._by_sizes.get(self._sizes)
        if known is None:
            known = self._by_sizes[self._sizes] = (next(_epochs), {}, {})
        self.intake.epoch, self._described, self._kinds = known

    def call(self) -> Call:
        """Count a call that is over at once, for a tensor that belongs to no module's call."""
        intake = self.intake
        intake.calls += (intake.sequence, intake.sequence + 1)
        intake.sequence += 2
        return 0, len(intake.calls) // 2 - 1

    def take(self, source: Source, slot: str, param: str, call: Call, value: Any) -> None:
        """Record an argument or an output: every tensor in it; anything else is counted.

        `source` is the module's name and class name, `param` the input's name in the forward's
        signature, empty for outputs.
        """
        if isinstance(value, torch.Tensor):
            if self._device is not None and (value.is_cpu or value.get_device() != self._device):
                self.skip("on another device")
            else:
                self.add(source, slot, param, call, value)
        elif is_container(value):
            self._take_parts(source, slot, param, call, value)
        else:
            self.intake.plain.add(type(value))
            self.skip_value(value)

    def _take_parts(self, source: Source, prefix: str, param: str, call: Call, value: Any) -> None:
        # A dict may hold keys that come out as one name, such as 1 and "1". A second tensor of
        # one name could not be told from the first, so it is counted instead.
        seen = set()
        for slot, leaf in leaves(prefix, value):
            if slot in seen:
                self.skip("a second value under one slot name")
                continue
            seen.add(slot)
            if isinstance(leaf, torch.Tensor):
                self.take(source, slot, param and param + slot[len(prefix) :], call, leaf)
            else:
                self.skip_value(leaf)

    def add(self, source: Source, slot: str, param: str, call: Call, tensor: torch.Tensor) -> None:
        """Record a borrowed tensor."""
        what = self.describe(source, slot, param, tensor)
        if what is None:
            self._skip(source, slot, param, call, tensor)
        elif is_literal(tensor):
            self.take_literal(what, *call, tensor)
        else:
            self._note(what, *call, self._copy_values(tensor, what.nbytes), None)

    def take_known(
        self, source: Source, slot: str, axes: str, call: Call, tensor: torch.Tensor
    ) -> None:
        """Record a borrowed tensor whose axes are known."""
        if self._device is not None and (tensor.is_cpu or tensor.get_device() != self._device):
            self.skip("on another device")
            return
        what = self.describe(source, slot, "", tensor)
        if what is None:
            self._skip(source, slot, "", call, tensor)
        else:
            offset = self._copy_values(tensor, what.nbytes)
            self._note(what._replace(axes=axes), *call, offset, None)

    def take_literal(
        self, what: Description, number: int, index: int, tensor: torch.Tensor
    ) -> None:
        """Record a borrowed tensor whose values are plain bytes, and that is described already.

        There is no copy of a large one whose bytes were recorded before in the forward, or that is
        described at once.
        """
        nbytes, pointer = what.nbytes, tensor.data_ptr()
        if nbytes < _LARGE:
            self._note(what, number, index, self._copy(pointer, nbytes, memmove), None)
            return
        digest = xxh3_64_intdigest(_memory_at(pointer, nbytes, _READ))
        key = (digest, what.shape, what.dtype)
        is_new = key not in self._large
        self._large.add(key)
        offset = None
        if is_new and self._describe_large and not tensor.is_complex():
            table = describe_adjacent(tensor.detach().view(-1), [tensor.numel()])
            # No array, which would lie between blocks of the heap that the model frees: with
            # some hundred of them a long prompt took 300 MB more.
            self._described_now[len(self.intake.rows)] = table[0].item()
        elif is_new:
            offset = self._copy(pointer, nbytes, self._copy_large)
        self._note(what, number, index, offset, digest)

    def _note(
        self, what: Description, number: int, index: int, offset: int | None, digest: int | None
    ) -> None:
        rows = self.intake.rows
        rows.append((what, number, index, offset, digest))
        if len(rows) >= _MOST:
            self.push()

    def describe(
        self, source: Source, slot: str, param: str, tensor: torch.Tensor
    ) -> Description | None:
        """Describe a tensor in the forward in progress; None when it cannot be stored."""
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
            return None
        shape, dtype = tensor.shape, tensor.dtype
        kind = (shape, dtype, tensor.get_device())
        key = (source[0], slot, kind)
        what = self._described.get(key)
        if what is None or not tensor.data_ptr():
            values = self._kinds.get(kind)
            if values is None or not tensor.data_ptr():
                if unstorable(tensor) is not None:
                    return None
                values = self._kinds[kind] = self._kind_of(tensor)
            if source[0] in self._routed:
                values = values._replace(axes="")
            where = (*source, slot, param, "")
            what = self._described[key] = Description._make((*where, *values, ""))
        return what

    def _kind_of(self, tensor: torch.Tensor) -> Kind:
        shape = tuple(tensor.shape)
        axes = infer_axes(shape, *self._sizes)
        return Kind(axes, STORABLE[tensor.dtype], shape, str(tensor.device), tensor.nbytes)

    @property
    def counts(self) -> Counter[str]:
        """Records by status, over the run; aliases that were not written yet count as stored."""
        skipped, aliased = self._unstorable, self._owners.aliased
        stored = self._taken - skipped - aliased
        return Counter({STORED: stored, ALIASED: aliased, SKIPPED: skipped})

    @property
    def skipped(self) -> Counter[str]:
        """What was not recorded, by reason, over the run."""
        types = ((f"not a tensor: {cls.__name__}", n) for cls, n in self.intake.not_tensors.items())
        found = self._reasons.copy()
        for reason, n in types:
            found[reason] += n
        return found

    def skip(self, reason: str) -> None:
        """Count something that is not recorded."""
        self._reasons[reason] += 1

    def skip_value(self, value: object) -> None:
        """Count a value that is not a tensor, by its type."""
        counts = self.intake.not_tensors
        counts[type(value)] = counts.get(type(value), 0) + 1

    def push(self) -> None:
        """Send what was recorded so far; the forward goes on."""
        if self.tick is not None and self.intake.rows:
            self._leave(None, ())

    def pause(self) -> None:
        """Send what there is: the model is about to be in a long kernel, without need of Python."""
        if len(self.intake.rows) >= _LEAST:
            self.push()
        self._hurry()

    def end(self) -> None:
        """End the forward in progress, if any: its calls are complete, its last batch leaves."""
        if self.tick is None:
            return
        # The chunk leaves, too, though it has room: the next forward finds it again, or its twin,
        # and memory that is used again is in the caches and costs no page faults.
        calls, self.intake.calls = self.intake.calls, []
        self._leave(list(zip(calls[::2], calls[1::2], strict=True)), self._spend())
        self.tick = None
        self._sent = 0
        self._large.clear()

    def _spend(self) -> tuple[Chunk, ...]:
        chunk, self._chunk = self._chunk, None
        return () if chunk is None else (chunk,)

    def _copy(self, pointer: int, nbytes: int, move: Callable[[int, int, int], Any]) -> int:
        """Copy bytes into the chunk; return where they are."""
        offset = self._room_for(nbytes)
        move(self.intake.address + offset, pointer, nbytes)
        return offset

    def _copy_values(self, tensor: torch.Tensor, nbytes: int) -> int:
        """Copy the values of a tensor into the chunk in row-major order; return where they are."""
        offset = self._room_for(nbytes)
        if nbytes:
            memory, count = cast("Chunk", self._chunk).memory, tensor.numel()
            flat = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=offset)
            flat.view(tensor.shape).copy_(tensor.detach())
        return offset

    def _room_for(self, nbytes: int) -> int:
        intake = self.intake
        if not intake.size or intake.used + nbytes > intake.size:
            self._make_room(nbytes)
        offset = intake.used
        intake.used = offset + nbytes
        return offset

    def _make_room(self, nbytes: int) -> None:
        """Make room for so many bytes; what fills the chunk at hand leaves."""
        if self._chunk is not None:
            self._leave(None, self._spend())
            self._hurry()
        self._chunk = chunk = self._arena.take(nbytes)
        self.intake.address, self.intake.size = chunk.address, chunk.size

    def _leave(self, calls: Sequence[tuple[int, int]] | None, spent: tuple[Chunk, ...]) -> None:
        intake = self.intake
        rows, intake.rows = intake.rows, []
        chunk = spent[0] if spent else self._chunk
        described, self._described_now = self._described_now, {}
        resolve = partial(self._resolve, rows, chunk, self._begin, self._sent, described)
        self._taken += len(rows)
        self._begin = intake.used
        self._sent += len(rows)
        if spent:
            intake.address = intake.used = intake.size = self._begin = 0
        self._send(Batch(cast("Tick", self.tick), resolve, len(rows), calls, spent))

    def _resolve(self, *taken: Any) -> Records:
        self._behind()
        return self._owners.resolve(*taken)

    def _skip(
        self, source: Source, slot: str, param: str, call: Call, tensor: torch.Tensor
    ) -> None:
        reason = unstorable(tensor) or ""
        self.skip(reason)
        self._unstorable += 1
        dtype, device = str(tensor.dtype).removeprefix("torch."), str(tensor.device)
        shape = shape_of(tensor)
        what = Description(*source, slot, param, "", "", dtype, shape, device, 0, reason)
        self.intake.rows.append((what, *call, None, None))
