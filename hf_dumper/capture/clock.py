"""The one place that knows which token a forward belongs to.

The processor fixes the prompt length on its first call; the criteria set the token index as the
length of the ids less the prompt length. An absolute length, never a counter: a chunk of a
prefill, a forward without cache and a row that ended early cannot shift it.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.speculation import Speculation, drafted_columns
from hf_dumper.core.types import Phase, Positions, Tick
from hf_dumper.errors import CaptureError

_NEVER: Final = 1 << 62
"""Column of an end that has not come."""

_WITHOUT_LENGTH: Final = ("tuple", "list")
"""Caches of before transformers had a class for them: which axis holds the columns is not known."""

Prompt: TypeAlias = Callable[[], Positions | None]
"""Positions of a run's first forward, worked out when they are asked for."""


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
        self.speculation: Speculation | None = None
        self._is_counted = True
        self._columns = 0  # columns that went into the model so far, prompt and padding included
        self._ended: tuple[int, ...] = ()  # per row: the column from which it is padding
        self._prompt: Prompt | None = None

    def provisional(self) -> Tick:
        """Return the tick of what runs before the first forward: an encoder, a vision tower."""
        return Tick(self._run, 0, self._phase(), self.token)

    def tick(self, inputs: RootInputs) -> Tick:
        """Count a forward of the root module and say what it is."""
        self.forward += 1
        if inputs.past is None and not self.forward:  # states of columns that nobody counted
            self._is_counted = False
        if not self._is_counted:
            inputs = inputs._replace(readable=False)
        past = self._past(inputs)
        self._columns = past + inputs.cols
        if not self.forward:
            self._prompt = _prompt(inputs, past)
        # Decoded tokens are no padding; with a mask that tells nothing, the prompt's is all of it.
        prompt = self._prompt if self.token or _is_without_length(inputs) else None
        tick = Tick(
            self._run,
            self.forward,
            self._phase(),
            self.token,
            inputs.rows,
            inputs.cols,
            inputs.keep if inputs.keep < inputs.cols else 0,
            past,
            partial(_positions, inputs, past, self._ended, prompt),
            self._drafted(inputs, past),
        )
        return tick if self.speculation is None else self.speculation.begin(tick)

    @property
    def drafted(self) -> int:
        """Number of drafts of the forward in progress."""
        return 0 if self.speculation is None else self.speculation.drafted

    def verify(self, length: int) -> tuple[Tick, int]:
        """Take the length of the ids that a verifying forward decided, before `advance`.

        Returns:
            The tick of the forward, with rejected drafts marked, and how many were accepted.

        Raises:
            CaptureError: the forward cannot have decided so many.
        """
        if self.speculation is None or self.prompt_length is None:
            msg = "A forward was verified where none drafts."
            raise CaptureError(msg)
        tick, accepted = self.speculation.accept(length - self.prompt_length - self.token)
        self._columns -= tick.drafted - accepted
        return tick, accepted

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

    def _drafted(self, inputs: RootInputs, past: int) -> int:
        if self.speculation is None:
            return 0
        return drafted_columns(inputs, past, self.token, self.prompt_length)

    def _phase(self) -> Phase:
        if not self.generating:
            return Phase.FORWARD
        return Phase.DECODE if self.token else Phase.PREFILL

    def _past(self, inputs: RootInputs) -> int:
        if inputs.past is not None:
            return inputs.past
        # A cache that does not tell its length: a state-space state, say.
        return self._columns


def _prompt(inputs: RootInputs, past: int) -> Prompt:
    """Return the positions of a first forward, which may begin with a cache of unknown length."""
    if _is_without_length(inputs):
        return lambda: None
    return cache(partial(_positions, inputs, past, ()))


def _is_without_length(inputs: RootInputs) -> bool:
    return inputs.past is None and inputs.cache in _WITHOUT_LENGTH


def _positions(
    inputs: RootInputs, past: int, ended: Sequence[int], prompt: Prompt | None = None
) -> Positions | None:
    if not inputs.cols:
        return None
    rows, cols, mask = inputs.rows, inputs.cols, inputs.mask
    columns = np.arange(past, past + cols)
    positions = np.broadcast_to(columns, (rows, cols)).astype(np.int32)
    if mask is not None:
        if mask.shape not in ((rows, cols), (rows, past + cols)):
            return None
        if not mask.all():
            positions = _masked_positions(mask, cols, past)
    elif prompt is not None or not inputs.readable:
        before = None if prompt is None else prompt()
        if before is None or len(before) != rows:
            return None
        positions -= np.count_nonzero(before < 0, axis=1).astype(np.int32)[:, None]
    if len(ended) == rows:
        positions[columns[None, :] >= np.array(ended)[:, None]] = -1
    return positions


def _masked_positions(mask: NDArray[np.int8], cols: int, past: int) -> NDArray[np.int32]:
    """Count the unmasked tokens before each of the last `cols` columns; -1 where masked."""
    width = mask.shape[1]
    counted = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    if width == cols:  # a mask of the new columns alone: all that is cached counts as unmasked
        counted += past
    return np.asarray(np.where(mask, counted, -1)[:, width - cols :], np.int32)
