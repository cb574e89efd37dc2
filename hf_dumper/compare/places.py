"""Where the positions of a row are: in which forwards and columns of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_dumper.compare.records import RunRecords

Ints = NDArray[np.int64]


class Place(NamedTuple):
    """A stretch of one row in one forward: the columns from `start` to `stop`."""

    run: int
    forward: int
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Cover:
    """For each position of a row: the forward and the column that hold it, -1 where none does."""

    forward: Ints
    column: Ints


class RowPlaces:
    """The forwards of a run, seen from one row.

    With a cache each position is fed once; where it is fed again without starting over, as after a
    rejected guess of speculative decoding, the last time counts. Without a cache every forward
    starts over at position 0: then the forward of the same token is preferred, else the first.
    """

    def __init__(self, records: RunRecords, row: int) -> None:
        """Look at the layouts of a run."""
        self.run = records.run
        self.row = row
        self.layouts = {
            forward: layout
            for forward, layout in sorted(records.layouts.items())
            if row < layout.rows and layout.cols
        }

    @cached_property
    def _beginnings(self) -> list[int]:
        """Forwards that feed the row from position 0; chunks of padding alone come before."""
        return [
            forward
            for forward, layout in self.layouts.items()
            if (layout.positions[self.row] == 0).any()
        ]

    @cached_property
    def starts_over(self) -> bool:
        """Whether a later forward feeds the row from its beginning again."""
        return len(self._beginnings) > 1

    @cached_property
    def length(self) -> int:
        """One more than the largest position."""
        ends = [int(layout.positions[self.row].max()) + 1 for layout in self.layouts.values()]
        return max(ends, default=0)

    @cached_property
    def _owner(self) -> _Cover:
        """Where each position counts: its last forward with a cache, its first without."""
        forwards = list(self.layouts)
        return self._cover(forwards[::-1] if self.starts_over else forwards)

    @cached_property
    def _by_token(self) -> dict[int, _Cover]:
        tokens: dict[int, list[int]] = {}
        for forward, layout in self.layouts.items():
            tokens.setdefault(layout.token, []).append(forward)
        return {token: self._cover(forwards) for token, forwards in tokens.items()}

    def columns(self, forward: int) -> tuple[Ints, Ints]:
        """Return the columns of a forward whose values count, and their positions."""
        layout = self.layouts.get(forward)
        if layout is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        positions = layout.positions[self.row].astype(np.int64)
        columns = np.flatnonzero(positions >= 0)
        if not self.starts_over:
            columns = columns[self._owner.forward[positions[columns]] == forward]
        return columns, positions[columns]

    def find(self, positions: Ints, token: int) -> tuple[Ints, Ints]:
        """Return forward and column of each position, -1 where there is none."""
        forward, column = self._take(self._owner, positions)
        if self.starts_over and token in self._by_token:
            same_forward, same_column = self._take(self._by_token[token], positions)
            there = same_forward >= 0
            forward = np.where(there, same_forward, forward)
            column = np.where(there, same_column, column)
        return forward, column

    @cached_property
    def key_counts(self) -> dict[int, int]:
        """Number of columns that each forward can attend to, cached ones included."""
        counts, total = {}, 0
        for number, layout in self.layouts.items():
            total = 0 if number in self._beginnings[1:] else total
            total += layout.cols
            counts[number] = total
        return counts

    def keys(self, forward: int) -> Ints:
        """Return the positions of the columns that a forward can attend to, cached ones first."""
        found: list[Ints] = []
        for number, layout in self.layouts.items():
            if number > forward:
                break
            if number in self._beginnings[1:]:
                found.clear()
            found.append(layout.positions[self.row].astype(np.int64))
        return np.concatenate(found)

    def _cover(self, forwards: list[int]) -> _Cover:
        cover = _Cover(np.full(self.length, -1), np.full(self.length, -1))
        for forward in forwards:
            positions = self.layouts[forward].positions[self.row]
            columns = np.flatnonzero(positions >= 0)
            cover.forward[positions[columns]] = forward
            cover.column[positions[columns]] = columns
        return cover

    @staticmethod
    def _take(cover: _Cover, positions: Ints) -> tuple[Ints, Ints]:
        inside = positions < cover.forward.size
        safe = np.where(inside, positions, 0)
        if not cover.forward.size:
            return np.full(positions.size, -1), np.full(positions.size, -1)
        return (
            np.where(inside, cover.forward[safe], -1),
            np.where(inside, cover.column[safe], -1),
        )


def stretches(
    columns: Ints, forwards: Ints, candidate_columns: Ints
) -> Iterator[tuple[slice, int, slice]]:
    """Yield (golden columns, candidate forward, candidate columns), as long as they run on."""
    if not columns.size:
        return
    breaks = (np.diff(columns) != 1) | (np.diff(forwards) != 0) | (np.diff(candidate_columns) != 1)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), columns.size]
    for start, stop in pairwise(edges):
        first, last = int(columns[start]), int(columns[stop - 1])
        begin, end = int(candidate_columns[start]), int(candidate_columns[stop - 1])
        yield slice(first, last + 1), int(forwards[start]), slice(begin, end + 1)
