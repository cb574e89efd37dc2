"""The values that travel from a live model to the disk and back.

Records travel in columns, as a forward has hundreds of them: an object for each would cost more
than its bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from hf_dumper.core.arena import Chunk, Span
from hf_dumper.core.trace import TokenTrace

Positions: TypeAlias = NDArray[np.int32]

ROOT = "root"
"""Name of the outermost module; torch itself calls it the empty string."""

FORMAT_VERSION = 1
"""Version of the native layout; INTERFACE and `docs/format.md` describe it."""


class Phase(StrEnum):
    """What a forward of the root module is for.

    `guidance` is one that a logits processor or a stopping criterion runs beside the sequence: the
    unconditional forward of `guidance_scale`.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    FORWARD = "forward"
    GUIDANCE = "guidance"


def _unknown() -> None:
    """Find no positions."""


def rejected_position(positions: Positions) -> Positions:
    """Return how positions of rejected drafts are written, -2 and below; the inverse of itself."""
    return np.asarray(-2 - positions, np.int32)


@dataclass(frozen=True, slots=True)
class Tick:
    """One forward of the root module.

    `token` is the index of the token that this forward predicts, 0 for the prefill and for a bare
    forward. `keep` is the model's `logits_to_keep` when positive: tensors whose position axis has
    that length cover the last `keep` columns. `past` is the number of cached columns. The last
    `drafted` columns hold drafts of the tokens after `token`, which the forward verifies.
    `find_positions` returns `positions`; it is called behind the forward, as a rule.
    """

    run: int
    forward: int
    phase: Phase
    token: int
    rows: int = 0
    cols: int = 0
    keep: int = 0
    past: int = 0
    find_positions: Callable[[], Positions | None] = _unknown
    drafted: int = 0

    @property
    def positions(self) -> Positions | None:
        """Number of unmasked tokens before each token of this forward in its row, -1 for padding.

        Int32 [rows, cols]; None where the model takes no token columns or its mask does not tell.
        A draft that was rejected has the `rejected_position` of where it would have stood.
        """
        return self.find_positions()


class TensorKey(NamedTuple):
    """Identity of one tensor in a dump."""

    run: int
    rank: int
    forward: int
    module: str
    slot: str
    call: int
    op: str


class Description(NamedTuple):
    """What a tensor is, without its values: much of it is the same from token to token.

    Capture makes one per tensor and shape and uses it again, so that whoever writes records can
    tell by identity that nothing changed. `nbytes` is the length of the values in bytes. `reason`
    says why the values are not recorded, and is empty when they are.
    """

    module: str
    class_name: str
    slot: str
    param: str
    op: str
    axes: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    nbytes: int
    reason: str = ""


STORED, ALIASED, SKIPPED = "stored", "aliased", "skipped"


class Record(NamedTuple):
    """One captured tensor: what it is, where in the forward it was seen, and the bytes it owns.

    The fields are those of `Records`; `span` are the bytes in row-major order, None when the record
    was skipped, is an alias, or was described at once and not kept.
    """

    what: Description
    call: int
    call_index: int
    hash: int | None
    span: Span | None
    alias_of: int | None = None

    @property
    def status(self) -> str:
        """Whether the record has bytes of its own, those of another, or none."""
        if self.what.reason:
            return SKIPPED
        return STORED if self.alias_of is None else ALIASED


@dataclass(frozen=True, slots=True)
class Records(Sequence[Record]):
    """Records of one forward in order of capture, in columns of one length.

    Attributes:
        what: What each tensor is.
        call: Number of the module's call in the forward.
        call_index: Place of this call in the forward's list of calls, -1 outside of any: the order
            of completion is known only when the forward ends.
        hash: xxh3-64 of the bytes, None when they are not recorded.
        offset: Where the bytes begin in `chunk`, None for a record without bytes of its own. Bytes
            that follow each other in the column follow each other in memory, without gaps.
        alias_of: Index, within the forward's records, of the record that owns the same bytes.
        chunk: Memory of all the bytes, None when no record has any.
        described: Statistics of records that were described when they were taken, rows of a TABLE
            by index; those records have no bytes.
    """

    what: Sequence[Description] = ()
    call: Sequence[int] = ()
    call_index: Sequence[int] = ()
    hash: Sequence[int | None] = ()
    offset: Sequence[int | None] = ()
    alias_of: Sequence[int | None] = ()
    chunk: Chunk | None = None
    described: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.what)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | Sequence[Record]:
        """Return one record, or several, as rows."""
        return list(self)[i]

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records as rows."""
        spans = (
            Span(self.chunk, offset, what.nbytes)
            if offset is not None and self.chunk is not None
            else None
            for what, offset in zip(self.what, self.offset, strict=True)
        )
        columns = (self.what, self.call, self.call_index, self.hash, spans, self.alias_of)
        return map(Record._make, zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one forward, in order of capture.

    A forward may send several batches: they travel while it still runs.

    Attributes:
        tick: The forward.
        resolve: Returns the records; to be called once, batch by batch in order, by whoever writes
            them: hashes and aliases are found then, and not while the model waits in a hook.
        count: Number of the records.
        calls: In the last batch of a forward (seq_in, seq_out) per module call of the whole
            forward, seq_out -1 for a call that did not return; None in any other.
        spent: The chunks that no later batch refers to: whoever has written the batch gives them
            back to the arena.
    """

    tick: Tick
    resolve: Callable[[], Records]
    count: int
    calls: Sequence[Sequence[int]] | None = None
    spent: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is known of a run when it starts; `regime` and `prompt` are JSON-ready mappings."""

    run: int
    kind: str
    regime: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    expected_records: int = 0


@dataclass(frozen=True, slots=True)
class RunResult:
    """What is known of a run when it ends: facts, counts, why it is not whole, and its tokens.

    A `prompt` among the facts adds to that of the RunInfo, as it becomes known later.
    `trace` are tokens, or rows of a trace that was read. `unrecorded` is the number of forwards
    that were to be recorded after the recording had ended.
    """

    facts: Mapping[str, Any]
    counts: Mapping[str, Any]
    incomplete: str | None = None
    unrecorded: int = 0
    trace: Sequence[TokenTrace | Mapping[str, Any]] = ()
