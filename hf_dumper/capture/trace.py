"""Follows a generation token by token: what went in, what there was to choose, what was chosen.

Hooks copy a few numbers and the last logits, and no more. Ranking the candidates is left to
whoever writes batches, behind the forward; only where no batches leave is it done between tokens.
"""

import ctypes
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_dumper.capture.candidates import as_floats, rank_candidates
from hf_dumper.capture.copying import memmove
from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.integers import Integers, Numbers
from hf_dumper.capture.storable import PLAIN, is_literal
from hf_dumper.capture.verifying import last_columns
from hf_dumper.core.trace import Candidates, TokenTrace
from hf_dumper.core.types import Tick

_MOST, _MOST_BYTES = 32, 32 << 20
"""Tokens, and bytes of their logits, that may wait for their candidates to be ranked."""


_ENOUGH, _ENOUGH_BYTES = 16, 1 << 18
"""As many as are worth a turn of the writer's thread, and as many as are ranked at once."""


class _Inputs(NamedTuple):
    """What went into one forward."""

    tick: Tick
    inputs: RootInputs
    use_cache: Any


class _Token(NamedTuple):
    """One token: its index, what went into its forwards, what was chosen [rows].

    `columns` are those of its one forward that came in for it, where it decided several tokens;
    `accepted` is the number of drafts that it accepted, None without speculative decoding.
    """

    token: int
    forwards: list[_Inputs]
    chosen: Sequence[int]
    logits_shape: tuple[int, ...] | None
    columns: slice = slice(None)
    accepted: int | None = None
    parents: Sequence[int] | None = None


class _Logits(NamedTuple):
    """The logits of the last column of a forward [rows, vocabulary], copied.

    Of a verifying forward, the rows are the last columns of its only row.
    """

    memory: bytearray
    rows: int
    vocabulary: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.rows * self.vocabulary * self.dtype.itemsize

    def column(self, i: int) -> "_Logits":
        """Return one of its rows, copied."""
        width = self.vocabulary * self.dtype.itemsize
        return self._replace(memory=self.memory[i * width : (i + 1) * width], rows=1)


class TraceRecorder:
    """Records one generation.

    `rank` and `rank_if_worth` may be called from any thread, everything else from the model's.
    """

    def __init__(self) -> None:
        """Record nothing yet."""
        self._inputs: list[_Inputs] = []
        self._logits: _Logits | None = None
        self._shape: tuple[int, ...] | None = None
        self._tokens: list[_Token] = []
        self._candidates: dict[int, Candidates] = {}
        self._waiting: deque[tuple[int, _Logits]] = deque()
        self._free: list[bytearray] = []
        self._ranking = threading.Lock()
        self._failure: Exception | None = None

    def see_inputs(self, tick: Tick, inputs: RootInputs, use_cache: object) -> None:
        """Take what goes into a forward, and its argument `use_cache`."""
        self._inputs.append(_Inputs(tick, inputs, use_cache))

    def see_logits(self, logits: torch.Tensor | None) -> None:
        """Take the logits [rows, columns, vocabulary] or [rows, vocabulary] of a forward."""
        self._shape = None if logits is None else tuple(logits.shape)
        self._put_back()
        if logits is not None and type(logits) in PLAIN and logits.ndim in (2, 3):
            self._logits = self._copy_last(logits)

    def see_token(
        self, token: int, chosen: Sequence[int], parents: Sequence[int] | None = None
    ) -> None:
        """Take the ids [rows] that were chosen as token `token`, NO_ID where none is known.

        `parents` are the rows of the token before whose sequences these continue, None where every
        row continues its own.
        """
        forwards, self._inputs = self._inputs, []
        logits, self._logits = self._logits, None
        if not forwards:
            return
        self._tokens.append(_Token(token, forwards, chosen, self._shape, parents=parents))
        if logits is not None and logits.rows == len(chosen):
            self._waiting.append((len(self._tokens) - 1, logits))
            if self._is_full(_MOST + 1, _MOST_BYTES + logits.nbytes):
                self.rank()

    def see_columns(self, logits: torch.Tensor | None, count: int) -> None:
        """Take the logits [1, columns, vocabulary] of a forward that decides up to `count` tokens.

        Raises:
            CaptureError: they have fewer columns.
        """
        self._shape = None if logits is None else tuple(logits.shape)
        self._put_back()
        if logits is not None and type(logits) in PLAIN:
            columns = last_columns(logits, count).detach().transpose(0, 1).contiguous()
            self._logits = self._copy_last(columns)

    def see_tokens(self, tick: Tick, chosen: Sequence[int]) -> None:
        """Take the ids that one forward of one row decided; `tick` is that forward's."""
        (inputs,), self._inputs = self._inputs, []
        logits, self._logits = self._logits, None
        first = tick.cols - tick.drafted
        for i, id_ in enumerate(chosen):
            columns = slice(first + i - 1 if i else 0, first + i)
            forwards, accepted = [inputs._replace(tick=tick)], len(chosen) - 1
            token = _Token(tick.token + i, forwards, [id_], self._shape, columns, accepted)
            self._tokens.append(token)
            if logits is not None:
                self._waiting.append((len(self._tokens) - 1, logits.column(i)))
                if self._is_full(_MOST, _MOST_BYTES):
                    self.rank()

    def _is_full(self, tokens: int, nbytes: int) -> bool:
        """Tell whether so many tokens wait, or so many bytes of logits like the last ones."""
        try:
            _, last = self._waiting[-1]
        except IndexError:  # another thread has just ranked them
            return False
        waiting = len(self._waiting)
        return waiting >= tokens or waiting * last.nbytes >= nbytes

    def rank_if_worth(self) -> None:
        """Rank what waits, if there is enough of it by now."""
        if self._is_full(_ENOUGH, _ENOUGH_BYTES):
            self.rank()

    def rank(self) -> None:
        """Rank the candidates of all tokens that wait for it; an error is kept for `tokens`."""
        if not self._waiting:
            return
        with self._ranking:
            while self._waiting:
                group = self._alike()
                try:
                    self._rank(group)
                except Exception as error:  # in whatever thread: the model must go on
                    self._failure = self._failure or error
                for _, logits in group:
                    self._waiting.popleft()
                    self._free.append(logits.memory)

    def _alike(self) -> list[tuple[int, _Logits]]:
        """Return the first that wait, as far as their logits have one shape and type."""
        form, nbytes = self._waiting[0][1][1:], self._waiting[0][1].nbytes
        most = min(_ENOUGH, max(1, _ENOUGH_BYTES // (nbytes or 1)), len(self._waiting))
        first = (self._waiting[i] for i in range(most))  # more may come while we look
        return list(itertools.takewhile(lambda item: item[1][1:] == form, first))

    def _rank(self, group: list[tuple[int, _Logits]]) -> None:
        _, rows, vocabulary, dtype = group[0][1]
        flat = [as_floats(logits.memory, rows * vocabulary, dtype) for _, logits in group]
        chosen = [id_ for index, _ in group for id_ in self._tokens[index].chosen]
        table = flat[0] if len(flat) == 1 else np.concatenate(flat)  # a copy
        found = rank_candidates(table.reshape(-1, vocabulary), chosen)
        for i, (index, _) in enumerate(group):
            self._candidates[index] = found.of_rows(i * rows, (i + 1) * rows)

    def tokens(self) -> tuple[TokenTrace, ...]:
        """Return the tokens that were chosen, with their candidates.

        Raises:
            Exception: what went wrong in `rank`.
        """
        self.rank()
        if self._failure is not None:
            raise self._failure
        found = self._candidates
        return tuple(_traced(token, found.get(i)) for i, token in enumerate(self._tokens))

    def _copy_last(self, logits: torch.Tensor) -> _Logits:
        """Copy the last column, without an operator of torch where that is possible."""
        rows, vocabulary = logits.shape[0], logits.shape[-1]
        columns = logits.shape[1] if logits.ndim == 3 else 1
        width = vocabulary * logits.dtype.itemsize
        memory = self._take(rows * width)
        if not rows * width * columns:
            return _Logits(memory, 0, vocabulary, logits.dtype)
        if is_literal(logits):
            into = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            last = logits.data_ptr() + (columns - 1) * width
            for row in range(rows):
                memmove(into + row * width, last + row * columns * width, width)
        else:
            flat = torch.frombuffer(memory, dtype=logits.dtype, count=rows * vocabulary)
            column = logits[:, -1] if logits.ndim == 3 else logits
            flat.view(rows, vocabulary).copy_(column.detach())
        return _Logits(memory, rows, vocabulary, logits.dtype)

    def _take(self, nbytes: int) -> bytearray:
        """Return memory that was used before, if it is large enough."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= nbytes:
                return memory
        return bytearray(nbytes)

    def _put_back(self) -> None:
        if self._logits is not None:  # an earlier chunk of a prompt, which predicts nothing
            self._free.append(self._logits.memory)
            self._logits = None


def _traced(taken: _Token, candidates: Candidates | None) -> TokenTrace:
    forwards = taken.forwards
    first, last = forwards[0], forwards[-1]
    cut = partial(_cut, taken.columns)
    past, verified = first.inputs.past, taken.accepted is not None
    return TokenTrace(
        token=taken.token,
        forward=last.tick.forward,
        phase=str(last.tick.phase),
        chosen=np.array(taken.chosen, np.int64),
        input_ids=cut(_together([_columns(f.inputs.ids, f.inputs) for f in forwards])),
        position_ids=cut(_together([_columns(f.inputs.position_ids, f.inputs) for f in forwards])),
        mask=cut(_together([_mask(f.inputs) for f in forwards])),
        positions=cut(_together([f.tick.positions for f in forwards])),
        cache=first.inputs.cache,
        cache_length=None if past is None else past + (taken.columns.start or 0),
        use_cache=first.use_cache if isinstance(first.use_cache, bool) else None,
        logits_shape=taken.logits_shape,
        candidates=candidates,
        drafted=last.tick.drafted if verified else None,
        accepted=taken.accepted,
        parents=None if taken.parents is None else np.array(taken.parents, np.int32),
    )


def _cut(columns: slice, numbers: Numbers | None) -> Numbers | None:
    return None if numbers is None else numbers[:, columns]


def _columns(found: Integers | None, inputs: RootInputs) -> Numbers | None:
    """Return one integer per token that went in, None where there are others."""
    if found is None or found.rows not in (1, inputs.rows):
        return None
    table = found.table(inputs.rows)
    return table if table.shape[1] == inputs.cols else None


def _mask(inputs: RootInputs) -> Numbers | None:
    mask, cols = inputs.mask, inputs.cols
    return None if mask is None or not cols else mask[:, -cols:]


def _together(parts: list[Numbers | None]) -> Numbers | None:
    """Join arrays [rows, columns] along their columns; None if one is missing."""
    if len(parts) == 1:
        return parts[0]
    known = [part for part in parts if part is not None]
    return np.concatenate(known, axis=1) if len(known) == len(parts) else None
