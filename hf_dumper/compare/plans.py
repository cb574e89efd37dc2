"""Where the positions of each golden forward are on the candidate's side, made once per forward."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_dumper.compare.places import Ints, RowPlaces, stretches
from hf_dumper.compare.records import Layout, Rec, RunRecords, Side
from hf_dumper.compare.rows import Match


class Stretch(NamedTuple):
    """Columns of a row in a golden forward, and where the candidate has the same positions."""

    match: Match
    columns: slice
    position: int
    forward: int
    candidate_columns: slice

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.columns.stop - self.columns.start)


class Plan(NamedTuple):
    """Where the positions of one golden forward are; counts are rows x positions."""

    stretches: tuple[Stretch, ...]
    truncated: int
    missing: int


class Planner:
    """The rows of one golden run, those that they match, and where their positions are."""

    def __init__(self, golden: RunRecords, candidate: Side, matches: Sequence[Match]) -> None:
        """Look at the layouts of the rows."""
        self.golden = golden
        self.matches = matches
        self.runs: Mapping[int, RunRecords] = {
            m.candidate.run: candidate.records(m.candidate.run) for m in matches
        }
        self._places = [
            (RowPlaces(golden, m.golden), RowPlaces(self.runs[m.candidate.run], m.candidate))
            for m in matches
        ]
        self._numbers = {id(match): i for i, match in enumerate(matches)}
        self._plans: dict[tuple[int, int], Plan] = {}

    def plan(self, record: Rec, layout: Layout, offset: int) -> Plan:
        """Return where the positions of a record are, from column `offset` of its forward on."""
        key = (record.forward, offset)
        if key not in self._plans:
            self._plans[key] = self._make(record, layout, offset)
        return self._plans[key]

    def places(self, match: Match) -> tuple[RowPlaces, RowPlaces]:
        """Return where the positions of a matched row are, on the golden side and on the other."""
        return self._places[self._numbers[id(match)]]

    def rows(self, forward: int, layout: Layout) -> list[tuple[Match, int]]:
        """Return the matches of the rows of a forward, and the row of each in it."""
        found = ((m, m.golden.place(forward, layout.rows)) for m in self.matches)
        return [(match, row) for match, row in found if row is not None]

    def same_rows(self, record: Rec, layout: Layout | None, partner: Rec) -> bool:
        """Tell whether two records hold the same rows and columns in the same places."""
        other = self.runs[partner.run].layouts.get(partner.forward)
        if layout is None or other is None:
            whole = all(m.golden.row == m.candidate.row for m in self.matches)
            here = all(m.candidate.run == partner.run for m in self.matches)
            return whole and here and layout is other
        found = self.rows(record.forward, layout)
        in_place = all(
            m.candidate.run == partner.run and m.candidate.place(partner.forward, other.rows) == row
            for m, row in found
        )
        return (
            in_place
            and len({row for _, row in found}) == layout.rows
            and np.array_equal(layout.positions, other.positions)
        )

    def partner_of_row(self, record: Rec, match: Match, position: int) -> Rec | None:
        """Return the record of the forward that ends where the golden one does, or of its token."""
        places = self.places(match)[1]
        run = self.runs[match.candidate.run]
        forward, _ = places.find(np.asarray([position]), record.token)
        same_token = [f for f, layout in places.layouts.items() if layout.token == record.token]
        for number in (int(forward[0]), *same_token):
            if (found := run.find(number, record)) is not None:
                return found
        return None

    def is_known(self, record: Rec, *, with_positions: bool) -> bool:
        """Tell whether any forward of the candidate has a record of that name."""
        return any(
            run.find(forward, record) is not None
            for run in self.runs.values()
            for forward in (run.layouts if with_positions else run.forwards)
        )

    def _make(self, record: Rec, layout: Layout, offset: int) -> Plan:
        found: list[Stretch] = []
        truncated = missing = 0
        for match, _ in self.rows(record.forward, layout):
            golden, candidate = self.places(match)
            columns, positions = golden.columns(record.forward)
            wanted = columns >= offset
            kept = wanted & (positions < match.end)
            truncated += int((wanted & ~kept).sum())
            columns, positions = columns[kept], positions[kept]
            forwards, others = candidate.find(positions, record.token)
            there = forwards >= 0
            missing += int((~there).sum())
            position = dict(zip(columns.tolist(), positions.tolist(), strict=True))
            for ours, other, theirs in stretches(columns[there], forwards[there], others[there]):
                found.append(Stretch(match, ours, position[ours.start], other, theirs))
        return Plan(tuple(found), truncated, missing)


def last_position(layout: Layout, row: int) -> int:
    """Return the position of the last column of a row that is no padding, -1 without any."""
    return int(layout.positions[row].max())


def clip(stretch: Stretch, offset: int, other_offset: int) -> Stretch | None:
    """Leave out columns that a short position axis does not hold; None when none are left."""
    cut = max(0, offset - stretch.columns.start, other_offset - stretch.candidate_columns.start)
    if cut >= stretch.length:
        return None
    return stretch._replace(
        columns=slice(stretch.columns.start + cut, stretch.columns.stop),
        position=stretch.position + cut,
        candidate_columns=slice(
            stretch.candidate_columns.start + cut, stretch.candidate_columns.stop
        ),
    )


def common_keys(golden: Ints, candidate: Ints, end: int) -> list[tuple[slice, slice]]:
    """Return the stretches of two key axes that hold the same positions, below `end`."""
    column_of = np.full(max(int(golden.max(initial=-1)), int(candidate.max(initial=-1))) + 1, -1)
    there = np.flatnonzero(candidate >= 0)
    column_of[candidate[there]] = there
    columns = np.flatnonzero((golden >= 0) & (golden < end))
    others = column_of[golden[columns]]
    columns, others = columns[others >= 0], others[others >= 0]
    return [
        (ours, theirs) for ours, _, theirs in stretches(columns, np.zeros_like(columns), others)
    ]
