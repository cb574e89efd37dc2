"""Where the positions of a row are: in which forwards and columns of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_dumper.compare.records import Layout, RunRecords
from hf_dumper.compare.rows import Row

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

    def __init__(self, records: RunRecords, row: Row) -> None:
        """Look at the layouts of a run."""
        self.run = records.run
        self.layouts: dict[int, Layout] = {}
        self._positions: dict[int, Ints] = {}
        for forward, layout in sorted(records.layouts.items()):
            number = row.place(forward, layout.rows)
            if number is not None and layout.cols:
                self.layouts[forward] = layout
                self._positions[forward] = layout.positions[number].astype(np.int64)
        # With beams, what another row holds of its beginning is in its cache all the same.
        self._fed = {
            forward: records.layouts[forward].positions[number].astype(np.int64)
            for forward, number in sorted(row.fed().items())
            if forward in records.layouts
        } or self._positions

    @cached_property
    def _beginnings(self) -> list[int]:
        """Forwards that feed the row from position 0; chunks of padding alone come before."""
        return [forward for forward, positions in self._positions.items() if (positions == 0).any()]

    @cached_property
    def starts_over(self) -> bool:
        """Whether a later forward feeds the row from its beginning again."""
        return len(self._beginnings) > 1

    @cached_property
    def length(self) -> int:
        """One more than the largest position."""
        ends = [int(positions.max()) + 1 for positions in self._positions.values()]
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
        positions = self._positions.get(forward)
        if positions is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
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
        for number, positions in self._fed.items():
            total = 0 if number in self._beginnings[1:] else total
            counts[number] = total + positions.size
            total += int(np.count_nonzero(positions >= -1))  # a rejected draft has left the cache
        return counts

    def keys(self, forward: int) -> Ints:
        """Return the positions of the columns that a forward can attend to, cached ones first."""
        found: list[Ints] = []
        for number, positions in self._fed.items():
            if number > forward:
                break
            if number in self._beginnings[1:]:
                found.clear()
            # What was rejected has left the cache before the next forward.
            found.append(positions if number == forward else positions[positions >= -1])
        return np.concatenate(found)

    def _cover(self, forwards: list[int]) -> _Cover:
        cover = _Cover(np.full(self.length, -1), np.full(self.length, -1))
        for forward in forwards:
            positions = self._positions[forward]
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
