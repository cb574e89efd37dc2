"""The one place that knows which token a forward belongs to.

The processor fixes the prompt length on its first call; the criteria set the token index as the
length of the ids less the prompt length. An absolute length, never a counter: a chunk of a
prefill, a forward without cache and a row that ended early cannot shift it.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.core.types import Phase, Positions, Tick

Counts: TypeAlias = NDArray[np.int64]

_NEVER: Final = 1 << 62
"""Column of an end that has not come."""


class _Stream:
    """What went into the model for one sequence per row.

    `columns` are counted with prompt and padding. `ended` is per row the column from which it is
    padding. `known` is a column and how to count the unmasked ones before it in each row: where the
    mask of a later forward does not tell, its positions go on from there.
    """

    def __init__(self) -> None:
        self.columns = 0
        self.ended: tuple[int, ...] = ()
        self.known: tuple[int, Callable[[], Counts | None]] | None = None

    def end_rows(self, chosen: Sequence[int], eos: frozenset[int]) -> None:
        """Take the chosen ids: a row whose id is one of `eos` is padding from there on."""
        ended = self.ended or (_NEVER,) * len(chosen)
        self.ended = tuple(
            min(end, self.columns) if token in eos else end
            for token, end in zip(chosen, ended, strict=True)
        )


class TokenClock:
    """Token index, forward index and positions of the run in progress."""

    def __init__(self) -> None:
        """Create a clock that stands still until a run is opened."""
        self.token = 0
        self.forward = 0
        self.generating = False
        self.open_run(0, generating=False)

    def open_run(self, run: int, *, generating: bool, eos: Collection[int] = ()) -> None:
        """Start a run at token 0. `eos` are the ids that end a row."""
        self._run = run
        self.generating = generating
        self._eos = frozenset(eos)
        self.token = 0
        self.forward = -1
        self.prompt_length: int | None = None
        self._streams = _Stream(), _Stream()  # the sequence, and what is fed beside it

    def provisional(self) -> Tick:
        """Return the tick of what runs before the first forward: an encoder, a vision tower."""
        return Tick(self._run, 0, self._phase(), self.token)

    def columns(self, *, aside: bool = False) -> int | None:
        """Return how many columns went into the model so far, None before the first forward.

        `aside` asks for those that a logits processor fed beside the sequence.
        """
        return self._streams[aside].columns or None

    def tick(self, inputs: RootInputs, *, aside: bool = False) -> Tick:
        """Count a forward of the root module and say what it is."""
        self.forward += 1
        stream = self._streams[aside]
        # A cache that does not tell its length: a state-space state, say.
        past = stream.columns if inputs.past is None else inputs.past
        stream.columns = past + inputs.cols
        if not inputs.goes_on:
            stream.known = stream.columns, partial(_count_unmasked, inputs, past)
        return Tick(
            self._run,
            self.forward,
            Phase.GUIDANCE if aside else self._phase(),
            self.token,
            inputs.rows,
            inputs.cols,
            inputs.keep if inputs.keep < inputs.cols else 0,
            past,
            partial(_positions, inputs, past, stream.ended, stream.known),
        )

    def set_prompt(self, length: int) -> None:
        """Take the length of the ids that the first LogitsProcessor call of a run sees."""
        if self.prompt_length is None:
            self.prompt_length = length

    def advance(self, length: int, chosen: Sequence[int]) -> None:
        """Take the length of the ids that end in the chosen tokens: their forward is over."""
        if self.prompt_length is None:
            self.prompt_length = length - 1
        self.token = length - self.prompt_length
        if not self._eos.isdisjoint(chosen):
            for stream in self._streams:
                stream.end_rows(chosen, self._eos)

    def _phase(self) -> Phase:
        if not self.generating:
            return Phase.FORWARD
        return Phase.DECODE if self.token else Phase.PREFILL


def _positions(
    inputs: RootInputs,
    past: int,
    ended: Sequence[int],
    known: tuple[int, Callable[[], Counts | None]] | None,
) -> Positions | None:
    found = (
        _later_positions(inputs, past, known) if inputs.goes_on else _own_positions(inputs, past)
    )
    if found is not None and len(ended) == inputs.rows:
        columns = np.arange(past, past + inputs.cols)
        found[columns[None, :] >= np.array(ended)[:, None]] = -1
    return found


def _own_positions(inputs: RootInputs, past: int) -> Positions | None:
    if not inputs.cols or not inputs.readable:
        return None
    rows, cols, mask = inputs.rows, inputs.cols, inputs.mask
    positions = np.broadcast_to(np.arange(past, past + cols), (rows, cols)).astype(np.int32)
    if mask is not None:
        if mask.shape not in ((rows, cols), (rows, past + cols)):
            return None
        if not mask.all():
            positions = _masked_positions(mask, cols, past)
    return positions


def _later_positions(
    inputs: RootInputs, past: int, known: tuple[int, Callable[[], Counts | None]] | None
) -> Positions | None:
    """Go on counting from a column at which the unmasked ones are known: generated ones are."""
    counts = None if known is None else known[1]()
    if known is None or counts is None or counts.size != inputs.rows:
        return None
    later = np.arange(past - known[0], past - known[0] + inputs.cols)
    return np.asarray(counts[:, None] + later, np.int32)


def _count_unmasked(inputs: RootInputs, past: int) -> Counts | None:
    """Count the unmasked columns of each row up to the end of a forward, None if unknown."""
    mask, width = inputs.mask, past + inputs.cols
    if not inputs.cols or not inputs.readable:
        return None
    if mask is None:
        return np.full(inputs.rows, width)
    if mask.shape not in ((inputs.rows, inputs.cols), (inputs.rows, width)):
        return None
    return np.asarray(mask.sum(axis=1) + width - mask.shape[1], np.int64)


def _masked_positions(mask: NDArray[np.int8], cols: int, past: int) -> NDArray[np.int32]:
    """Count the unmasked tokens before each of the last `cols` columns; -1 where masked."""
    width = mask.shape[1]
    counted = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    if width == cols:  # a mask of the new columns alone: all that is cached counts as unmasked
        counted += past
    return np.asarray(np.where(mask, counted, -1)[:, width - cols :], np.int32)
