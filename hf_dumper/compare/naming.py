"""The smallest evidence of a divergence: where it is, and Python that shows it."""

from dataclasses import replace

from hf_dumper.compare.evidence import explain
from hf_dumper.compare.pairs import Pair, Piece, segments
from hf_dumper.compare.records import Layout, Rec, Side
from hf_dumper.compare.views import shape_of
from hf_dumper.core.axes import POS, ROW, ROW_POS
from hf_dumper.core.verdicts import Divergence, Verdict


def describe(divergence: Divergence, pair: Pair, golden: Side, candidate: Side) -> Divergence:
    """Return a divergence with evidence from the tensors of its pair, and a snippet."""
    found: tuple[str, ...] = ()
    if pair.pieces and pair.has_values:
        rows = [piece.row for piece in pair.pieces]
        found = explain(segments(pair, golden, candidate), by_token=pair.by_token, rows=rows)
    if pair.problem is not None and pair.problem.verdict == Verdict.SHAPE:
        found = (f"shape {pair.problem.reason}",)
    elif pair.problem is None and pair.pieces and pair.has_values:
        rows = [piece.row for piece in pair.pieces]
        found = explain(segments(pair, golden, candidate), by_token=pair.by_token, rows=rows)
    return replace(
        divergence,
        evidence=(*found, *divergence.evidence),
        snippet=_snippet(divergence, pair, golden, candidate),
    )


def _snippet(divergence: Divergence, pair: Pair, golden: Side, candidate: Side) -> str:
    """Return five lines that load the two tensors of the divergence and print how they differ."""
    if not pair.has_values or pair.golden.op:
        return ""
    piece = _piece_at(pair, divergence)
    ours, theirs = (
        _load(golden, pair.golden, piece, 0),
        _load(candidate, piece.candidate if piece else pair.candidate, piece, 1),
    )
    difference = "print((candidate.double() - golden.double()).abs().max())"
    if pair.problem is not None:
        difference = "print(golden.shape, candidate.shape)"
    return "\n".join(
        [
            "from hf_dumper import open_dump",
            f"golden = {ours}",
            f"candidate = {theirs}",
            difference,
            "print(golden, candidate, sep='\\n')",
        ]
    )


def _piece_at(pair: Pair, divergence: Divergence) -> Piece | None:
    """Return the piece that holds the place of a divergence, else the first."""
    for piece in pair.pieces:
        if piece.row == divergence.row and piece.mode == "row":
            return piece
        if None in (piece.position, divergence.position) or piece.row != divergence.row:
            continue
        length = piece.columns.stop - piece.columns.start
        if 0 <= (divergence.position or 0) - (piece.position or 0) < length:
            return piece
    return pair.pieces[0] if pair.pieces else None


def _load(side: Side, record: Rec, piece: Piece | None, which: int) -> str:
    call = f", call={record.call}" if record.call else ""
    where = f"run={record.run}, forward={record.forward}{call}"
    loaded = (
        f"open_dump({side.name!r}).load({record.module!r}, {record.slot!r}, "
        f"{record.token}, {where})"
    )
    layout = side.records(record.run).layouts.get(record.forward)
    if piece is None or piece.mode == "whole" or layout is None:
        return loaded
    return loaded + _index(record, layout, piece, which)


def _index(record: Rec, layout: Layout, piece: Piece, which: int) -> str:
    row = (piece.row, piece.candidate_row)[which]
    columns = (piece.columns, piece.candidate_columns)[which]
    if piece.mode == "row":
        return f"[{row}]"
    if record.axes[0] == ROW_POS:
        return f".unflatten(0, ({layout.rows}, -1))[{row}, {columns.start}:{columns.stop}]"
    shape = shape_of(record, layout)
    offset = shape.offset
    words = {ROW: str(row), POS: f"{columns.start - offset}:{columns.stop - offset}"}
    parts = [words.get(axis, ":") for axis in record.axes]
    if piece.keys is not None and piece.key_axis is not None:
        keys = piece.keys[which]
        parts[shape.channels[piece.key_axis]] = f"{keys.start}:{keys.stop}"
    while parts[-1] == ":":
        parts.pop()
    return f"[{', '.join(parts)}]"
