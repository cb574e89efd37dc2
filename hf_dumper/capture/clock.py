"""The one place that knows which token a forward belongs to.

The processor fixes the prompt length on its first call; the criteria set the token index as the
length of the ids less the prompt length. An absolute length, never a counter: a chunk of a
prefill, a forward without cache and a row that ended early cannot shift it.
"""

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.core.types import Phase, Tick


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
        self._ended: NDArray[np.int64] | None = None  # per row: the column from which it is padding

    def provisional(self) -> Tick:
        """Return the tick of what runs before the first forward: an encoder, a vision tower."""
        return Tick(self._run, 0, self._phase(), self.token)

    def tick(self, inputs: RootInputs) -> Tick:
        """Count a forward of the root module and say what it is."""
        self.forward += 1
        past = self._past(inputs)
        self._columns = past + inputs.cols
        return Tick(
            self._run,
            self.forward,
            self._phase(),
            self.token,
            inputs.rows,
            inputs.cols,
            inputs.keep if inputs.keep < inputs.cols else 0,
            past,
            self._positions(inputs, past),
        )

    def set_prompt(self, ids: torch.Tensor) -> None:
        """Take the ids [rows, length] that the first LogitsProcessor call of a run sees."""
        if self.prompt_length is None:
            self.prompt_length = ids.shape[1]

    def advance(self, ids: torch.Tensor) -> None:
        """Take the ids [rows, length] that end in the chosen token: its forward is over."""
        if self.prompt_length is None:
            self.prompt_length = ids.shape[1] - 1
        self.token = ids.shape[1] - self.prompt_length
        if not self._eos:
            return
        chosen = ids[:, -1].tolist()
        if self._ended is None:
            self._ended = np.full(len(chosen), np.iinfo(np.int64).max)
        for row, token in enumerate(chosen):
            if token in self._eos:
                self._ended[row] = min(self._ended[row], self._columns)

    def _phase(self) -> Phase:
        if not self.generating:
            return Phase.FORWARD
        return Phase.DECODE if self.token else Phase.PREFILL

    def _past(self, inputs: RootInputs) -> int:
        if inputs.past is not None:
            return inputs.past
        # A cache that does not tell its length: a state-space state, say.
        return self._columns

    def _positions(self, inputs: RootInputs, past: int) -> NDArray[np.int32] | None:
        if not inputs.cols or not inputs.readable:
            return None
        columns = np.arange(past, past + inputs.cols)
        positions = np.broadcast_to(columns, (inputs.rows, inputs.cols)).astype(np.int32)
        if inputs.mask is not None:
            if inputs.mask.shape not in (
                (inputs.rows, inputs.cols),
                (inputs.rows, past + inputs.cols),
            ):
                return None
            if not inputs.mask.all():
                positions = _masked_positions(inputs.mask, inputs.cols, past)
        if self._ended is not None and len(self._ended) == inputs.rows:
            positions[columns[None, :] >= self._ended[:, None]] = -1
        return positions


def _masked_positions(mask: NDArray[np.int8], cols: int, past: int) -> NDArray[np.int32]:
    """Count the unmasked tokens before each of the last `cols` columns; -1 where masked."""
    width = mask.shape[1]
    counted = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    if width == cols:  # a mask of the new columns alone: all that is cached counts as unmasked
        counted += past
    return np.asarray(np.where(mask, counted, -1)[:, width - cols :], np.int32)
