"""Tokens, and what they were chosen from: by row on one side, by column on the other.

A forward that verifies drafts decides several tokens and holds them by column; any other decides
one, that of the last position.
"""

import numpy as np

from hf_dumper.compare.pairs import Piece
from hf_dumper.compare.plans import last_position
from hf_dumper.compare.records import Layout, Rec
from hf_dumper.compare.rows import Match
from hf_dumper.compare.views import shape_of
from hf_dumper.core.axes import POS
from hf_dumper.core.types import ROOT
from hf_dumper.core.verified import DECIDED


def decided_piece(
    record: Rec, partner: Rec, layouts: tuple[Layout, Layout], match: Match
) -> Piece | None:
    """Return the one column that both sides hold; None where that is no question here."""
    is_decided = record.module == ROOT and record.slot in DECIDED
    by_column = POS in record.axes, POS in partner.axes
    if not is_decided or by_column[0] == by_column[1]:
        return None
    rows = match.golden.row, match.candidate.row
    position = last_position(layouts[by_column[0]], rows[by_column[0]])
    golden = _column(record, layouts[0], rows[0], position)
    candidate = _column(partner, layouts[1], rows[1], position)
    sizes = _channels(record, layouts[0]), _channels(partner, layouts[1])
    if position < 0 or golden is None or candidate is None or sizes[0] != sizes[1]:
        return None
    columns = golden, position, partner, rows[1], candidate
    return Piece("positions", rows[0], *columns, keys=None, layouts=layouts)


def _column(record: Rec, layout: Layout, row: int, position: int) -> slice | None:
    found = np.flatnonzero(layout.positions[row] == position)
    if not found.size or found[0] < shape_of(record, layout).offset:
        return None
    return slice(int(found[0]), int(found[0]) + 1)


def _channels(record: Rec, layout: Layout) -> list[int]:
    return [record.shape[axis] for axis in shape_of(record, layout).channels]
