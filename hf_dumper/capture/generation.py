"""The callbacks that follow `generate()`, or lead it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from transformers import LogitsProcessor, StoppingCriteria

from hf_dumper.errors import CaptureError


class DumpLogitsProcessor(LogitsProcessor):
    """Tells a session what the scores are before a token is chosen; returns them as they came."""

    def __init__(self, listener: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        """Call `listener(input_ids, scores)` at every token."""
        self._listener: Callable[[torch.Tensor, torch.Tensor], None] | None = listener

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Take ids [rows, length] and float32 scores [rows, vocabulary]."""
        if self._listener is not None:
            self._listener(input_ids, scores)
        return scores

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the session."""
        return _silent, (type(self),)


class DumpStoppingCriteria(StoppingCriteria):
    """Tells a session which token was chosen; never stops a generation."""

    stops = False  # so that it is not named among what may have ended a row

    def __init__(self, listener: Callable[[torch.Tensor], None]) -> None:
        """Call `listener(input_ids)` when a token was appended."""
        self._listener: Callable[[torch.Tensor], None] | None = listener

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """Take ids [rows, length] that end in the chosen tokens; return False for every row."""
        if self._listener is not None:
            self._listener(input_ids)
        rows = input_ids.shape[0]  # not the prompt's rows: beam search passes more
        none = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        return cast("torch.BoolTensor", none)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the session."""
        return _silent, (type(self),)


class FollowTokens(LogitsProcessor):
    """Teacher forcing: row i is given `ids[i][t]` at token t.

    Args:
        ids: token ids per row, or a tensor [rows, tokens]. Rows may have different lengths.

    A row whose ids are used up repeats its last one, so that no row ends before the others; limit
    the generation to the longest row (`max_new_tokens`). Take a fresh object for each `generate()`.

    Attributes:
        source: Where the ids come from, JSON-ready; a dumped run keeps it under `followed`.

    Raises:
        CaptureError: from `generate()`, when its rows are not as many as the ids', or when the
            vocabulary lacks an id.
    """

    source: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, ids: torch.Tensor | Sequence[Sequence[int]]) -> None:
        """Keep the ids as lists."""
        rows = ids.tolist() if isinstance(ids, torch.Tensor) else [list(row) for row in ids]
        if not rows or not all(rows):
            msg = "FollowTokens needs at least one token id for every row."
            raise CaptureError(msg)
        self._ids: list[list[int]] = rows
        self._prompt_length: int | None = None
        self._last_length = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Take ids [rows, length] and scores [rows, vocabulary]; return -inf but for one token."""
        length = input_ids.shape[1]
        if self._prompt_length is None or length != self._last_length + 1:  # another generate()
            self._prompt_length = length
        self._last_length = length
        if len(self._ids) != input_ids.shape[0]:
            msg = f"FollowTokens has {len(self._ids)} rows of ids, generate() {input_ids.shape[0]}."
            raise CaptureError(msg)
        token = length - self._prompt_length
        chosen = [row[min(token, len(row) - 1)] for row in self._ids]
        if max(chosen) >= scores.shape[1]:
            msg = (
                f"FollowTokens is to choose id {max(chosen)} of a vocabulary of {scores.shape[1]}."
            )
            raise CaptureError(msg)
        index = torch.tensor(chosen, device=scores.device)[:, None]
        forced = torch.full_like(scores, -torch.inf)
        return cast("torch.FloatTensor", forced.scatter(1, index, 0.0))


class FollowRun(FollowTokens):
    """Follows the tokens of a run of another dump, and says so in its own."""

    def __init__(self, ids: torch.Tensor, golden: str, run: int) -> None:
        """Follow ids [rows, tokens] of run `run` of the dump at `golden`."""
        super().__init__(ids)
        self.source = {"golden": golden, "run": run}


def _silent(cls: type[Any]) -> Any:
    callback = object.__new__(cls)
    callback._listener = None
    return callback
