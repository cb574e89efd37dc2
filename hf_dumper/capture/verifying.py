"""Records what a verifying forward decided: logits, scores and ids, a column for each token."""

import torch

from hf_dumper.capture.snapshot import Snapshot, Source
from hf_dumper.core.axes import OTHER, POS, ROW
from hf_dumper.core.types import Tick
from hf_dumper.errors import CaptureError


class DecisionRecorder:
    """Follows one generation; `source` is the name and class name of its outermost module.

    With `last_logits`, logits and scores are recorded, too.
    """

    def __init__(self, source: Source, *, last_logits: bool) -> None:
        """Have seen nothing."""
        self._source = source
        self._last_logits = last_logits
        self._scores: list[torch.Tensor] = []

    def see_logits(self, snapshot: Snapshot, logits: torch.Tensor | None) -> None:
        """Take the logits [1, columns, vocabulary] of a forward, before any processor does."""
        self._scores = []
        if self._last_logits and snapshot.tick is not None and logits is not None:
            self._take(snapshot, "logits", last_columns(logits, snapshot.tick.drafted + 1))

    def see_scores(self, snapshot: Snapshot, scores: torch.Tensor) -> None:
        """Take the scores [1, vocabulary] of the next column; a drafter's come before any."""
        if self._last_logits and snapshot.tick is not None:
            self._scores.append(scores.clone())

    def see_tokens(self, snapshot: Snapshot, tick: Tick, ids: torch.Tensor, accepted: int) -> None:
        """Take the ids [1, length] that end in the tokens which the forward of `tick` decided."""
        if snapshot.tick is None:
            return
        snapshot.settle(tick)
        if self._scores:
            self._take(snapshot, "scores", torch.stack(self._scores, dim=1))
        self._take(snapshot, "token_ids", _by_column(ids, tick.drafted, accepted))

    def _take(self, snapshot: Snapshot, slot: str, columns: torch.Tensor) -> None:
        """Record [1, columns, ...]; a forward without drafts gives what any other does."""
        call = snapshot.call()
        if columns.shape[1] == 1:
            snapshot.take(self._source, slot, "", call, columns[:, 0])
        else:
            axes = ",".join([ROW, POS] + [OTHER] * (columns.ndim - 2))
            snapshot.take_known(self._source, slot, axes, call, columns)


def last_columns(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the last `count` columns of logits [1, columns, vocabulary].

    Raises:
        CaptureError: there are not so many.
    """
    if logits.ndim != 3 or logits.shape[1] < count:
        msg = f"Logits of shape {list(logits.shape)} do not hold {count} columns."
        raise CaptureError(msg)
    return logits[:, -count:]


def _by_column(ids: torch.Tensor, drafted: int, accepted: int) -> torch.Tensor:
    """Return the chosen ids [1, drafted + 1] by column, -1 where a draft was rejected."""
    columns = torch.full((1, drafted + 1), -1, dtype=ids.dtype, device=ids.device)
    columns[:, : accepted + 1] = ids[:, -accepted - 1 :]
    return columns
