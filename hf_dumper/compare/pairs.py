"""A golden record and what covers it on the candidate's side."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch

from hf_dumper.compare.records import Layout, Rec, Side
from hf_dumper.compare.views import by_position, by_row
from hf_dumper.core.verdicts import Verdict

_MASKED: Final = 0.5
"""Share of the smallest finite value below which an additive mask hides what it is added to."""


class Piece(NamedTuple):
    """Places that belong together: `columns` of a row of the golden record and of a candidate's.

    `mode` says how both are taken apart: by position, one row whole, or the whole tensor.
    `position` is that of the first column, None where the tensor has none. `keys` are the columns
    of a key axis on both sides and `key_axis` is its number among the axes that are neither row nor
    position, both None where there is none. `layouts` are those of the two forwards,
    given where the mode is by position.
    """

    mode: Literal["positions", "row", "whole"]
    row: int
    columns: slice
    position: int | None
    candidate: Rec
    candidate_row: int
    candidate_columns: slice
    keys: tuple[slice, slice] | None = None
    layouts: tuple[Layout, Layout] | None = None
    key_axis: int | None = None

    @property
    def place(self) -> tuple[object, ...]:
        """Which values of which bytes it puts together: equal places give equal numbers."""
        columns = (self.columns, self.candidate_columns, *(self.keys or ()))
        edges = tuple((part.start, part.stop) for part in columns)
        other = self.candidate
        bytes_of = other.hash, other.dtype, other.shape, other.axes
        return (
            self.mode,
            self.row,
            self.position,
            self.candidate_row,
            edges,
            self.key_axis,
            bytes_of,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pair has no numbers."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One golden record with its partner: `pieces` in order of rows and positions.

    `same` tells that the two records hold the same rows and columns in the same places, so that
    their hashes and statistics speak of the same values. `truncated` counts rows x positions left
    out after a first differing token, `missing` those that the candidate does not hold. `drafts`
    tells that a forward also has columns of rejected drafts, which its statistics take in.
    """

    golden: Rec
    candidate: Rec
    pieces: tuple[Piece, ...]
    problem: Problem | None
    same: bool
    truncated: int
    missing: int
    drafts: bool = False

    @property
    def identical(self) -> bool:
        """Whether the hashes tell that both sides hold the same bytes."""
        ours, theirs = self.golden, self.candidate
        known = ours.hash is not None and ours.hash == theirs.hash
        return self.same and known and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)

    @property
    def elements(self) -> int:
        """Number of elements of the golden record, padding included."""
        return math.prod(self.golden.shape)

    @property
    def content(self) -> object:
        """A key that two pairs of the same bytes and places share; None where hashes are missing.

        One module's output is the next one's input: it need not be measured again.
        """
        ours = self.golden
        if ours.hash is None or any(piece.candidate.hash is None for piece in self.pieces):
            return None
        places = tuple(piece.place for piece in self.pieces)
        return ours.hash, ours.dtype, ours.shape, ours.axes, is_mask(ours), places, self.same

    @property
    def has_values(self) -> bool:
        """Whether both sides have bytes to read."""
        return self.golden.has_values and all(p.candidate.has_values for p in self.pieces)

    @property
    def by_token(self) -> bool:
        """Whether the first axis of a segment is the position."""
        return all(piece.mode != "whole" for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Alone:
    """A record without a partner, and why."""

    side: Literal["golden", "candidate"]
    record: Rec
    verdict: Verdict
    reason: str


def segments(
    pair: Pair, golden: Side, candidate: Side
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield views of equal shape [positions, ...channels], one per piece.

    Raises:
        DumpFormatError: a shard is damaged.
    """
    ours = golden.tensor(pair.golden)
    for piece in pair.pieces:
        views = _views(pair.golden, piece, ours, candidate.tensor(piece.candidate))
        yield _as_masks(*views) if is_mask(pair.golden) else views


def _views(
    record: Rec, piece: Piece, ours: torch.Tensor, theirs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if piece.layouts is None:
        if piece.mode == "whole":
            return ours, theirs
        return by_row(ours, piece.row), by_row(theirs, piece.candidate_row)
    layout, other = piece.layouts
    ours = by_position(ours, record, layout, piece.row, piece.columns)
    rows = piece.candidate_row
    theirs = by_position(theirs, piece.candidate, other, rows, piece.candidate_columns)
    if piece.keys is not None and piece.key_axis is not None:
        before = (slice(None),) * (1 + piece.key_axis)  # positions come first
        ours, theirs = ours[*before, piece.keys[0]], theirs[*before, piece.keys[1]]
    return ours, theirs.reshape(ours.shape)  # axes of size 1 may come and go; never a copy


def is_mask(record: Rec) -> bool:
    """Tell whether a record is an input that its module calls a mask."""
    return "mask" in record.param.partition(".")[0]


def _as_masks(golden: torch.Tensor, candidate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what two masks of different types let through; others stay as they are.

    What hides a key is False, 0, or a number next to the smallest of the mask's own dtype.
    """
    if golden.dtype == candidate.dtype:
        return golden, candidate
    passed = _passed(golden), _passed(candidate)
    if passed[0] is None or passed[1] is None:
        return golden, candidate
    return passed[0], passed[1]


def _passed(mask: torch.Tensor) -> torch.Tensor | None:
    """Return True where a mask lets through, None when it holds more than yes and no."""
    if not mask.is_floating_point():
        return mask != 0
    hidden = mask < _MASKED * torch.finfo(mask.dtype).min
    return ~hidden if bool((hidden | (mask == 0)).all()) else None
