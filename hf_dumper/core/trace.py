"""What is kept of each generated token: what went into the model, and what there was to choose."""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

NO_ID: Final = -1
"""Stands for the id of a token that is not known."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest tokens of each row by the model's raw logits, before any logits processor.

    Attributes:
        ids: Their ids, likeliest first [rows, count]; of equal logits the lower id comes first.
        probabilities: Softmax of the logits at these ids, float64 [rows, count].
        margin: Logit of the first less that of the second, float64 [rows]; NaN where there is no
            second.
        chosen_probability: Softmax at the chosen id, float64 [rows]; NaN where there is none.
        chosen_rank: 1 and the number of ids with a greater logit than the chosen one [rows]; 0
            where the vocabulary has no such id.

    A row with a NaN among its logits has NaN probabilities.
    """

    ids: Ints
    probabilities: Floats
    margin: Floats
    chosen_probability: Floats
    chosen_rank: Ints

    def of_rows(self, start: int, stop: int) -> "Candidates":
        """Return those of some rows, half-open."""
        rows = slice(start, stop)
        return Candidates(
            self.ids[rows],
            self.probabilities[rows],
            self.margin[rows],
            self.chosen_probability[rows],
            self.chosen_rank[rows],
        )


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One generated token, in all rows.

    Attributes:
        token: Its index, 0 being the one that the prefill predicts.
        forward: The forward that predicted it, the last one where its input came in chunks.
        phase: `prefill` or `decode`.
        chosen: The ids that were chosen, int64 [rows]; padding where a row had ended, NO_ID with
            beams: no id or several may continue a row, and the rows of the next token say which.
        input_ids: Ids that went into its forwards [rows, columns]; None for embeddings.
        position_ids: As the model was given them [rows, columns]; None where it was given none, or
            not one for each of these columns.
        mask: Attention mask of these columns [rows, columns]; None where the model was given none,
            or one with other than two axes.
        positions: Unmasked tokens before each of them in its row [rows, columns], -1 for padding;
            None where the mask does not tell.
        cache: Class of the cache, None without one.
        cache_length: Columns in the cache before the first of its forwards, None where the cache
            does not tell.
        use_cache: As the model was given it, None where it was not.
        logits_shape: Shape of the logits that the model returned, None where it returned none.
        candidates: What there was to choose from, None where the logits cannot be read.
        drafted: Drafts that its forward verified, None without speculative decoding.
        accepted: How many of them were accepted, likewise.
        parents: With beams, the rows of the token before whose sequences these rows continue,
            int32 [rows]; None where every row continues its own.

    Where one forward decided several tokens, each has the columns that came in for it.
    """

    token: int
    forward: int
    phase: str
    chosen: Ints
    input_ids: NDArray[np.integer] | None = None
    position_ids: NDArray[np.integer] | None = None
    mask: NDArray[np.integer] | None = None
    positions: NDArray[np.integer] | None = None
    cache: str | None = None
    cache_length: int | None = None
    use_cache: bool | None = None
    logits_shape: tuple[int, ...] | None = None
    candidates: Candidates | None = None
    drafted: int | None = None
    accepted: int | None = None
    parents: NDArray[np.int32] | None = None
