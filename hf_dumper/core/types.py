"""The values that travel from a live model to the disk and back.

`Record` and its like are named tuples rather than frozen dataclasses: they are made once per tensor
inside the forward, where a frozen dataclass costs several times as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_dumper.core.arena import Chunk, Span

ROOT = "root"
"""Name of the outermost module; torch itself calls it the empty string."""

FORMAT_VERSION = 1
"""Version of the native layout; INTERFACE and `docs/format.md` describe it."""


class Phase(StrEnum):
    """What a forward of the root module is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Tick:
    """One forward of the root module.

    `token` is the index of the token that this forward predicts, 0 for the prefill and for a bare
    forward. `positions` is int32 [rows, cols]: the number of unmasked tokens before each token of
    this forward in its row, -1 for padding; None where the model takes no token columns or its mask
    does not tell. `keep` is the model's `logits_to_keep` when positive: tensors whose position axis
    has that length cover the last `keep` columns. `past` is the number of cached columns.
    """

    run: int
    forward: int
    phase: Phase
    token: int
    rows: int = 0
    cols: int = 0
    keep: int = 0
    past: int = 0
    positions: NDArray[np.int32] | None = None


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
    tell by identity that nothing changed. `nbytes` is the length of the values in bytes.
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


class Record(NamedTuple):
    """One captured tensor: what it is, where in the forward it was seen, and the bytes it owns.

    `call` counts the calls of the module in the forward; `call_index` is the place of this call in
    the forward's list of calls, -1 outside of any: the order of completion is known only when the
    forward ends. `hash` is the xxh3-64 of the bytes. `span` are the bytes in row-major order, None
    when the record was skipped or is an alias. `alias_of` is the index, within the forward's
    records, of the record that owns the same bytes. `reason` says why a record was skipped.
    """

    what: Description
    call: int
    call_index: int
    hash: int | None
    span: Span | None
    alias_of: int | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """Whether the record has bytes of its own, those of another, or none."""
        if self.span is not None:
            return STORED
        return SKIPPED if self.alias_of is None else ALIASED


STORED, ALIASED, SKIPPED = "stored", "aliased", "skipped"


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one forward, in order of capture.

    A forward may send several batches: each full chunk travels while the forward still runs. The
    last one has `calls`: (seq_in, seq_out) per module call of the whole forward, seq_out -1 for a
    call that did not return. `spent` are the chunks that no later batch refers to: whoever has
    written the batch gives them back to the arena.
    """

    tick: Tick
    records: list[Record]
    calls: list[tuple[int, int]] | None = None
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
    """What is known of a run when it ends: facts, counts, and why it is not whole."""

    facts: Mapping[str, Any]
    counts: Mapping[str, Any]
    incomplete: str | None = None
