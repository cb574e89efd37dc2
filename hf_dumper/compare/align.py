"""Puts the records of two dumps together, by row and position, then by name.

Forwards and batches never decide: what one side computed in one forward of four rows, the other may
have computed in twelve forwards of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from hf_dumper.compare.decided import decided_piece
from hf_dumper.compare.keys import Keys, find_keys, varies
from hf_dumper.compare.pairs import Alone, Pair, Piece, Problem, is_mask
from hf_dumper.compare.plans import Plan, Planner, Stretch, clip, last_position
from hf_dumper.compare.problems import (
    DRAFTS,
    NO_AXES,
    OTHER_MASKS,
    other_shapes,
    skipped,
    skipped_by_either,
)
from hf_dumper.compare.records import Layout, Rec, RunRecords, Side
from hf_dumper.compare.rows import Match
from hf_dumper.compare.views import Shape, is_one_per_row, shape_of
from hf_dumper.core.axes import POS, ROW_POS
from hf_dumper.core.types import SKIPPED
from hf_dumper.core.verdicts import Verdict

_NOT_THERE = "the candidate has no such record"
_NO_VALUES = "the candidate has no values at these positions"
_ALL = slice(None)


@dataclass(slots=True)
class _Found:
    """What was found for one golden record so far; counts are rows x positions."""

    pieces: list[Piece] = field(default_factory=list)
    problem: Problem | None = None
    partner: Rec | None = None
    truncated: int = 0
    missing: int = 0

    def add(self, partner: Rec, found: Sequence[Piece] | Problem) -> None:
        """Keep what came of one stretch or row; the first partner and problem stand for all."""
        self.partner = self.partner or partner
        if isinstance(found, Problem):
            self.problem = self.problem or found
        else:
            self.pieces += found


class RunAligner:
    """Finds partners for the records of one golden run; `matches` are those of its rows."""

    def __init__(self, golden: RunRecords, candidate: Side, matches: Sequence[Match]) -> None:
        """Look at the layouts of the rows."""
        self._planner = Planner(golden, candidate, matches)
        self._golden = golden
        self._matches = matches

    def align(self, record: Rec) -> Pair | Alone | None:
        """Return the pair of a record, why it has none, or None when it holds only padding."""
        if not self._matches:
            return _alone(record, Verdict.UNMATCHED, "the candidate has no row of these prompts")
        layout = self._golden.layouts.get(record.forward)
        if layout is None:
            return self._whole(record, None)
        shape = shape_of(record, layout)
        plan = self._planner.plan(record, layout, shape.offset)
        if not plan.stretches:
            return self._nothing(record, plan)
        if shape.kind == "whole" or record.status == SKIPPED:
            return self._whole(record, layout)
        if shape.kind == "row":
            return self._by_row(record, layout)
        return self._by_position(record, layout, shape, plan)

    # --- by position ----------------------------------------------------------------------------

    def _by_position(
        self, record: Rec, layout: Layout, shape: Shape, plan: Plan
    ) -> Pair | Alone | None:
        found = _Found(truncated=plan.truncated, missing=plan.missing)
        for stretch in plan.stretches:
            partner = self._planner.runs[stretch.match.candidate.run].find(stretch.forward, record)
            if partner is None:
                found.missing += stretch.length
                continue
            pieces = self._pieces(record, layout, shape, stretch, partner)
            if not pieces:
                found.missing += stretch.length
                continue
            found.add(partner, pieces)
            if not isinstance(pieces, Problem):
                found.missing += stretch.length - _length(pieces[0])
        return self._pair(record, layout, found)

    def _pieces(
        self, record: Rec, layout: Layout, shape: Shape, stretch: Stretch, partner: Rec
    ) -> list[Piece] | Problem:
        other_layout = self._planner.runs[partner.run].layouts[partner.forward]
        other = shape_of(partner, other_layout)
        if partner.status == SKIPPED:
            return skipped("candidate", partner)
        if other.kind == "row":
            return self._row_pieces(record, partner, stretch.match)
        if other.kind == "whole":
            return Problem(Verdict.NOT_COMPUTABLE, NO_AXES)
        keys = find_keys(self._planner, stretch, (record, partner), (shape, other))
        if not _same_channels((record, partner), (shape, other), keys):
            return self._other_shapes(record, shape, partner, other)
        clipped = clip(stretch, shape.offset, other.offset)
        if clipped is None:
            return []
        layouts = layout, other_layout
        if keys is None:
            return [_position_piece(clipped, (record, partner), layouts)]
        if not keys.stretches:
            return Problem(Verdict.NOT_COMPUTABLE, "no key has the same position on both sides")
        return [
            _position_piece(clipped, (record, partner), layouts, keys.axis, both)
            for both in keys.stretches
        ]

    def _other_shapes(self, record: Rec, shape: Shape, partner: Rec, other: Shape) -> Problem:
        """Return that shapes differ, which is a fault unless the layouts may be the reason."""
        if is_mask(record) and is_mask(partner) and len(record.shape) != len(partner.shape):
            return Problem(Verdict.NOT_COMPUTABLE, OTHER_MASKS)
        layout = self._golden.layouts[record.forward]
        run = self._planner.runs[partner.run]
        other_layout = run.layouts[partner.forward]
        if np.array_equal(layout.positions, other_layout.positions):
            return other_shapes(record, partner, known=True)
        # One column: rows x positions may as well be rows beside anything, and a single value may
        # stand for as many as there are columns.
        is_told = ROW_POS in record.axes and min(layout.cols, other_layout.cols) > 1
        is_single = 1 in (prod(record.shape), prod(partner.shape))
        if POS in record.axes and not is_told and not is_single:
            pairs = zip(shape.channels, other.channels, strict=False)
            is_told = not any(
                record.shape[ours] != partner.shape[theirs]
                and (varies(self._golden, record, ours) or varies(run, partner, theirs))
                for ours, theirs in pairs
            )
        return other_shapes(record, partner, known=is_told)

    # --- by row ---------------------------------------------------------------------------------

    def _by_row(self, record: Rec, layout: Layout) -> Pair | Alone | None:
        found = _Found()
        for match, row in self._planner.rows(record.forward, layout):
            position = last_position(layout, row)
            if position < 0:
                continue
            if position >= match.end:
                found.truncated += 1
                continue
            partner = self._planner.partner_of_row(record, match, position)
            if partner is None:
                found.missing += 1
                continue
            found.add(partner, self._row_pieces(record, partner, match))
        return self._pair(record, layout, found)

    def _row_pieces(self, record: Rec, partner: Rec, match: Match) -> list[Piece] | Problem:
        layout = self._golden.layouts[record.forward]
        other = self._planner.runs[partner.run].layouts.get(partner.forward)
        if partner.status == SKIPPED:
            return skipped("candidate", partner)
        if other is not None and (piece := decided_piece(record, partner, (layout, other), match)):
            return [piece]
        plain = other is not None and is_one_per_row(partner, other)
        if other is None or not plain or not is_one_per_row(record, layout):
            return Problem(Verdict.NOT_COMPUTABLE, NO_AXES)
        if _takes_in_drafts(record, partner, (layout, other)):
            return Problem(Verdict.NOT_COMPUTABLE, DRAFTS)
        if record.shape[1:] != partner.shape[1:]:
            alike = np.array_equal(layout.positions, other.positions)
            return other_shapes(record, partner, known=alike)
        rows = _rows_in(match, (record, layout), (partner, other))
        position = last_position(layout, rows[0])
        if last_position(other, rows[1]) != position:
            reason = "the forwards of the two sides end at other positions"
            return Problem(Verdict.NOT_COMPUTABLE, reason)
        return [Piece("row", rows[0], _ALL, position, partner, rows[1], _ALL)]

    # --- whole ----------------------------------------------------------------------------------

    def _whole(self, record: Rec, layout: Layout | None) -> Pair | Alone | None:
        if self._is_cut(record, layout):
            return _alone(record, Verdict.TRUNCATED, self._reason())
        partner = self._partner_of_whole(record, layout)
        if partner is None:
            return self._nothing(record, Plan((), 0, 1))
        found = _Found(problem=skipped_by_either(record, partner), partner=partner)
        if found.problem is None and not self._planner.same_rows(record, layout, partner):
            found.problem = Problem(Verdict.NOT_COMPUTABLE, NO_AXES)
        if found.problem is None and record.shape != partner.shape:
            found.problem = other_shapes(record, partner, known=True)
        if found.problem is None and _takes_in_drafts(record, partner, (layout,)):
            found.problem = Problem(Verdict.NOT_COMPUTABLE, DRAFTS)
        if found.problem is None:
            found.pieces = [Piece("whole", 0, _ALL, None, partner, 0, _ALL)]
        return self._pair(record, layout, found)

    def _partner_of_whole(self, record: Rec, layout: Layout | None) -> Rec | None:
        if layout is None:
            run = self._planner.runs[self._matches[0].candidate.run]
            return run.find(record.forward, record)
        for match, row in self._planner.rows(record.forward, layout):
            position = last_position(layout, row)
            if position >= 0:
                return self._planner.partner_of_row(record, match, position)
        return None

    def _is_cut(self, record: Rec, layout: Layout | None) -> bool:
        if layout is None:
            return any(m.token is not None and record.token > m.token for m in self._matches)
        rows = self._planner.rows(record.forward, layout)
        return any(last_position(layout, row) >= m.end for m, row in rows)

    # --- results --------------------------------------------------------------------------------

    def _pair(self, record: Rec, layout: Layout | None, found: _Found) -> Pair | Alone | None:
        if found.partner is None or not (found.pieces or found.problem):
            return self._nothing(record, Plan((), found.truncated, found.missing))
        self._settle_axes(record, layout, found)
        partners = {(p.candidate.run, p.candidate.number) for p in found.pieces}
        same = (
            not (found.problem or found.truncated or found.missing)
            and len(partners) == 1
            and self._planner.same_rows(record, layout, found.partner)
        )
        pieces = () if found.problem else tuple(found.pieces)
        counts = found.truncated, found.missing
        drafts = layout is not None and layout.rejected > 0  # as on the other side, if `same`
        return Pair(record, found.partner, pieces, found.problem, same, *counts, drafts)

    def _settle_axes(self, record: Rec, layout: Layout | None, found: _Found) -> None:
        """Compare whole what two forwards of the same rows and columns hold, whatever the axes."""
        partner, problem = found.partner, found.problem
        if partner is None or problem is None or problem.reason != NO_AXES or found.truncated:
            return
        if not self._planner.same_rows(record, layout, partner):
            return
        if _takes_in_drafts(record, partner, (layout,)):
            found.problem = Problem(Verdict.NOT_COMPUTABLE, DRAFTS)
            return
        found.problem, found.missing = None, 0
        if record.shape == partner.shape:
            found.pieces = [Piece("whole", 0, _ALL, None, partner, 0, _ALL)]
        else:
            found.problem = other_shapes(record, partner, known=True)

    def _nothing(self, record: Rec, plan: Plan) -> Alone | None:
        """Say why a record has no partner; None when it holds only padding."""
        if plan.truncated and not plan.missing:
            return _alone(record, Verdict.TRUNCATED, self._reason())
        if not (plan.truncated or plan.missing):
            if self._planner.is_known(record, with_positions=True):
                return None
            return _alone(record, Verdict.UNMATCHED, _NOT_THERE)
        named = self._planner.is_known(record, with_positions=False)
        return _alone(record, Verdict.UNMATCHED, _NO_VALUES if named else _NOT_THERE)

    def _reason(self) -> str:
        return next((m.reason for m in self._matches if m.reason), "")


def _takes_in_drafts(record: Rec, partner: Rec, layouts: Sequence[Layout | None]) -> bool:
    """Tell whether values that are not of single columns mix in those of rejected drafts."""
    drafted = any(layout is not None and layout.rejected for layout in layouts)
    return drafted and (record.hash is None or record.hash != partner.hash)


def _rows_in(
    match: Match, golden: tuple[Rec, Layout], candidate: tuple[Rec, Layout]
) -> tuple[int, int]:
    """Return the numbers that a matched row has in the forwards of two records."""
    sides = (match.golden, golden), (match.candidate, candidate)
    ours, theirs = (row.place(of.forward, layout.rows) for row, (of, layout) in sides)
    return (-1 if ours is None else ours), (-1 if theirs is None else theirs)


def _same_channels(
    records: tuple[Rec, Rec], shapes: tuple[Shape, Shape], keys: Keys | None
) -> bool:
    """Compare sizes without those of 1: ids [4, 1] may be rows x positions beside nothing."""
    sizes = [[r.shape[i] for i in s.channels] for r, s in zip(records, shapes, strict=True)]
    if keys is not None:
        return len(sizes[0]) == len(sizes[1]) and all(
            ours == theirs
            for i, (ours, theirs) in enumerate(zip(*sizes, strict=True))
            if i != keys.axis
        )
    ours, theirs = ([n for n in one if n != 1] for one in sizes)
    return ours == theirs


def _length(piece: Piece) -> int:
    return int(piece.columns.stop - piece.columns.start) if piece.mode == "positions" else 1


def _position_piece(
    stretch: Stretch,
    both: tuple[Rec, Rec],
    layouts: tuple[Layout, Layout],
    key_axis: int | None = None,
    keys: tuple[slice, slice] | None = None,
) -> Piece:
    rows = _rows_in(stretch.match, *zip(both, layouts, strict=True))
    return Piece(
        "positions",
        rows[0],
        stretch.columns,
        stretch.position,
        both[1],
        rows[1],
        stretch.candidate_columns,
        keys,
        layouts,
        key_axis,
    )


def _alone(record: Rec, verdict: Verdict, reason: str) -> Alone:
    return Alone("golden", record, verdict, reason)
