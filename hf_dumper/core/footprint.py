"""What one forward would leave in a dump."""

from typing import NamedTuple


class Piece(NamedTuple):
    """One record: a tensor that goes into a module or comes out of it.

    `nbytes` are those of its elements; `is_new` is False where the forward has the same memory in
    a record before, which a dump stores once.
    """

    module: str
    slot: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    is_new: bool


class Footprint(NamedTuple):
    """The records of one token.

    `rows` is the number of rows, `logits` the number of last logits in all of them, and
    `logit_bytes` the size of one; all are 0 for a model without logits.
    """

    pieces: tuple[Piece, ...]
    rows: int
    logits: int
    logit_bytes: int
