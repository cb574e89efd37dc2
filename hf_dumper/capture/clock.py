"""The one place that knows which token a forward belongs to.

The processor fixes the prompt length on its first call; the criteria set the token index as the
length of the ids less the prompt length. An absolute length, never a counter: a chunk of a
prefill, a forward without cache and a row that ended early cannot shift it.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.integers import Integers
from hf_dumper.core.types import Phase, Positions, Tick

_NEVER: Final = 1 << 62
"""Column of an end that has not come."""


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
        self._columns = 0  # columns that went into the model so far, prompt and padding included
        self._mask: Integers | None = None  # the latest that a forward was given
        self._ended: tuple[int, ...] = ()  # per row: the column from which it is padding

    def provisional(self) -> Tick:
        """Return the tick of what runs before the first forward: an encoder, a vision tower."""
        return Tick(self._run, 0, self._phase(), self.token)

    def tick(self, inputs: RootInputs) -> Tick:
        """Count a forward of the root module and say what it is."""
        self.forward += 1
        past = self._past(inputs)
        self._columns = past + inputs.cols
        self._mask = inputs.given_mask or self._mask
        return Tick(
            self._run,
            self.forward,
            self._phase(),
            self.token,
            inputs.rows,
            inputs.cols,
            inputs.keep if inputs.keep < inputs.cols else 0,
            past,
            partial(_positions, inputs, self._mask, past, self._ended),
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
            ended = self._ended or (_NEVER,) * len(chosen)
            self._ended = tuple(
                min(end, self._columns) if token in self._eos else end
                for token, end in zip(chosen, ended, strict=True)
            )

    def _phase(self) -> Phase:
        if not self.generating:
            return Phase.FORWARD
        return Phase.DECODE if self.token else Phase.PREFILL

    def _past(self, inputs: RootInputs) -> int:
        if inputs.past is not None and (not self.forward or inputs.past <= self._columns):
            return inputs.past
        if inputs.past is not None:  # the model put columns of its own there, and is fed all again
            return max(0, (self.prompt_length or 0) + self.token - inputs.cols)
        # A cache that does not tell its length: a state-space state, say.
        return self._columns


def _positions(
    inputs: RootInputs, latest: Integers | None, past: int, ended: Sequence[int]
) -> Positions | None:
    if not inputs.cols or not inputs.readable:
        return None
    rows, cols, mask = inputs.rows, inputs.cols, inputs.mask
    if mask is None and latest is not None:  # a step of a state-space model: what was, still is
        mask = _extended(latest, rows, past + cols)
    columns = np.arange(past, past + cols)
    positions = np.broadcast_to(columns, (rows, cols)).astype(np.int32)
    if mask is not None:
        if mask.shape not in ((rows, cols), (rows, past + cols)):
            return None
        if not mask.all():
            positions = _masked_positions(mask, cols, past)
    if len(ended) == rows:
        positions[columns[None, :] >= np.array(ended)[:, None]] = -1
    return positions


def _extended(latest: Integers, rows: int, width: int) -> NDArray[np.int8] | None:
    """Return an earlier mask as one of so many columns, the new ones real."""
    known = (latest.table() != 0).astype(np.int8)
    if known.shape[0] != rows or known.shape[1] > width:
        return None
    return np.pad(known, ((0, 0), (0, width - known.shape[1])), constant_values=1)


def _masked_positions(mask: NDArray[np.int8], cols: int, past: int) -> NDArray[np.int32]:
    """Count the unmasked tokens before each of the last `cols` columns; -1 where masked."""
    width = mask.shape[1]
    counted = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    if width == cols:  # a mask of the new columns alone: all that is cached counts as unmasked
        counted += past
    return np.asarray(np.where(mask, counted, -1)[:, width - cols :], np.int32)
