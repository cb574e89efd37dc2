"""The one place that knows which token a forward belongs to.

The processor fixes the prompt length on its first call; the criteria set the token index as the
length of the ids less the prompt length. An absolute length, never a counter: a chunk of a
prefill, a forward without cache and a row that ended early cannot shift it.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.speculation import Speculation, drafted_columns
from hf_dumper.core.types import Phase, Positions, Tick
from hf_dumper.errors import CaptureError

Mask = NDArray[np.int8]
"""1 for a real token, 0 for padding, [rows, columns]."""

_NEVER: Final = 1 << 62
"""Column of an end that has not come."""


class _Known(NamedTuple):
    """The latest forward that says which columns are padding, and how many came before it."""

    inputs: RootInputs
    past: int

    def mask(self, width: int) -> Mask | None:
        """Return the mask of that many columns, later ones real; None where nobody knows it."""
        inputs, whole = self.inputs, self.past + self.inputs.cols
        if not inputs.readable or inputs.is_cut:
            return None
        found = inputs.mask
        if found is None:
            found = np.ones((inputs.rows, whole), np.int8)
        before, after = whole - found.shape[1], max(0, width - whole)
        if len(found) != inputs.rows or before not in (0, self.past):
            return None
        # np.pad does the same in ten times the time, and every token comes here.
        mask = np.ones((inputs.rows, before + found.shape[1] + after), np.int8)
        mask[:, before : before + found.shape[1]] = found
        return mask[:, :width]


class _Stream:
    """What went into the model for one sequence per row.

    `columns` are counted with prompt and padding. `ended` is per row the column from which it is
    padding. `known` is how the padding of the prompt is known where the mask of a later forward
    does not tell. `is_counted` is False where the sequence begins with states that do not tell how
    many columns they have seen.
    """

    def __init__(self) -> None:
        self.columns = 0
        self.ended: tuple[int, ...] = ()
        self.known: _Known | None = None
        self.is_counted = True

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
        self.speculation: Speculation | None = None
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
        if inputs.past is None and not stream.columns:
            stream.is_counted = False
        past = self._past(inputs, stream)
        known = self._earlier(inputs, stream)
        if known is None:
            stream.known = _Known(inputs, past)
        stream.columns = past + inputs.cols
        tick = Tick(
            self._run,
            self.forward,
            Phase.GUIDANCE if aside else self._phase(),
            self.token,
            inputs.rows,
            inputs.cols,
            inputs.keep if inputs.keep < inputs.cols else 0,
            past,
            partial(_positions, inputs, past, stream.ended, known) if stream.is_counted else _none,
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
        self._streams[False].columns -= tick.drafted - accepted
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
            for stream in self._streams:
                stream.end_rows(chosen, self._eos)

    def _drafted(self, inputs: RootInputs, past: int) -> int:
        if self.speculation is None:
            return 0
        return drafted_columns(inputs, past, self.token, self.prompt_length)

    def _phase(self) -> Phase:
        if not self.generating:
            return Phase.FORWARD
        return Phase.DECODE if self.token else Phase.PREFILL

    def _past(self, inputs: RootInputs, stream: _Stream) -> int:
        if inputs.past is None:  # a cache that does not tell its length: a state-space state, say
            return stream.columns
        if stream.columns and inputs.past > stream.columns:
            # The model put columns of its own there, and is fed all the others again.
            return max(0, (self.prompt_length or 0) + self.token - inputs.cols)
        return inputs.past

    def _earlier(self, inputs: RootInputs, stream: _Stream) -> _Known | None:
        """Return what tells of padding where a forward does not; decoded tokens are none."""
        is_silent = inputs.given_mask is None and (inputs.readable or self.token > 0)
        return stream.known if inputs.goes_on or is_silent else None


def _none() -> None:
    """Find no positions."""


def _positions(
    inputs: RootInputs, past: int, ended: Sequence[int], known: _Known | None
) -> Positions | None:
    if not inputs.cols or inputs.is_cut or not (inputs.readable or known):
        return None
    rows, cols = inputs.rows, inputs.cols
    mask = inputs.mask if known is None else known.mask(past + cols)
    if known is not None and mask is None:
        return None
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


def _masked_positions(mask: NDArray[np.int8], cols: int, past: int) -> NDArray[np.int32]:
    """Count the unmasked tokens before each of the last `cols` columns; -1 where masked."""
    width = mask.shape[1]
    counted = np.cumsum(mask, axis=1, dtype=np.int32) - 1
    if width == cols:  # a mask of the new columns alone: all that is cached counts as unmasked
        counted += past
    return np.asarray(np.where(mask, counted, -1)[:, width - cols :], np.int32)
