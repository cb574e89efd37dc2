"""A comparison on one screen: same or not, where first, how sure, why."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from hf_dumper.core.verdicts import BAD, GOOD, Comparison, Verdict
from hf_dumper.report.numbers import NOTHING, number
from hf_dumper.report.overview import printable
from hf_dumper.report.words import facts, find, opening

_STYLES: Final = {
    **dict.fromkeys(GOOD, "green"),
    **dict.fromkeys(BAD, "bold red"),
    Verdict.INPUTS: "bold red",
    Verdict.NOTHING: "bold red",
}
_MEASURES: Final = {"rel_l2": "rel_l2", "token_rel_l2": "by token", "channel_rel_l2": "by channel"}
"""Metric -> heading of its column."""

_BEFORE, _AFTER, _WINDOW = 4, 3, 64
"""Pairs shown around the first divergence."""

_TOKENS = 5


def comparison(found: Comparison, *, top: int = 3) -> RenderableType:
    """Return the verdict, what it rests on, and the `top` pairs that are farthest apart."""
    parts: list[RenderableType] = [headline(found), _facts(found)]
    around = _around(found)
    if around:
        parts += ["", Text("Around it, in order of completion:"), PairTable(around)]
    shown = worst(found, top)
    if shown:
        parts += ["", Text("Farthest apart:"), PairTable(shown)]
    flips = _flips(found)
    if flips:
        parts += ["", Text("Tokens that do not agree:"), _token_table(flips)]
    return Group(*parts)


def snippet(found: Comparison) -> Text | None:
    """Return Python that shows the two tensors; printed with `soft_wrap`, it can be run."""
    if found.divergence is None or not found.divergence.snippet:
        return None
    lines = "".join(f"\n  {line}" for line in found.divergence.snippet.rstrip().splitlines())
    return Text.assemble("\nTo see it in Python:", (lines, "cyan"))


def headline(found: Comparison) -> Text:
    """Return the verdict and its sentence."""
    return Text.assemble(
        (found.verdict.upper(), _style(found.verdict)), f"  {printable(opening(found))}"
    )


def worst(found: Comparison, top: int) -> list[dict[str, Any]]:
    """Return the pairs that are farthest apart: faults first, then warnings, each by `rel_l2`.

    Identical pairs are none of them.
    """
    results = found.results
    verdicts = np.asarray(results.column("verdict").to_pylist(), dtype=object)
    rank = np.asarray([0 if v in BAD else 1 + (v != Verdict.WARN) for v in verdicts], dtype=int)
    far = results.column("rel_l2").to_numpy(zero_copy_only=False).astype(float)
    far = np.where(np.isnan(far), -1.0, far)
    order = np.lexsort((-far, rank))
    kept = order[(verdicts[order] != Verdict.IDENTICAL) & ((rank[order] < 2) | (far[order] > 0))]
    return [row for i in kept[:top] for row in results.slice(int(i), 1).to_pylist()]


class PairTable:
    """A renderable: a line per pair, in which the name gets the room that is left."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of `Comparison.results`."""
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        heads = ["verdict", *_MEASURES.values()]
        cells = [_cells(row) for row in self._rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        room = max(20, options.max_width - sum(widths) - 2 * len(widths) - 7)
        yield Text(_line(heads, widths, "token", "tensor"), "dim", no_wrap=True)
        for row, cell in zip(self._rows, cells, strict=True):
            name = _shortened(_name(row), room)
            line = Text(_line(cell, widths, str(row["token"]), name), no_wrap=True)
            line.stylize(_style(row["verdict"]), 0, widths[0])
            yield line


def _line(cells: Sequence[str], widths: Sequence[int], token: str, name: str) -> str:
    verdict, *numbers = cells
    shown = "".join(f"  {cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
    return f"{verdict:<{widths[0]}}{shown}  {token:>5}  {name}".rstrip()


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [row["verdict"] or NOTHING, *(number(row[name], 2) for name in _MEASURES)]


def _name(row: Mapping[str, Any]) -> str:
    call = f" call {row['call']}" if row["call"] else ""
    op = f" {row['op']}" if row["op"] else ""
    return printable(f"{row['module']}{op} {row['slot']}{call}")


def _shortened(text: str, room: int) -> str:
    """Cut a name at its beginning: its end tells more."""
    return text if len(text) <= room else f"…{text[len(text) - room + 1 :]}"


def _style(verdict: str | None) -> str:
    known = [v for v in Verdict if v == verdict]
    return _STYLES.get(known[0], "yellow") if known else ""


def _facts(found: Comparison) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in facts(found).items():
        for i, line in enumerate(lines):
            table.add_row(name if i == 0 else "", Text(printable(line)))
    return table


def _around(found: Comparison) -> list[dict[str, Any]]:
    """Return the pairs of the divergence's forward that completed just before and after it.

    Inputs that agree are left out: they are the outputs of others once more.
    """
    row = None if found.divergence is None else find(found, found.divergence)
    if row is None:
        return []
    start = max(0, row - _WINDOW)
    near = found.results.slice(start, 2 * _WINDOW).to_pylist()
    this = near[row - start]
    before, after = near[: row - start], near[row - start + 1 :]
    same = this["run"], this["token"]
    before, after = (
        [r for r in rows if (r["run"], r["token"]) == same and not _is_good_input(r)]
        for rows in (before, after)
    )
    return [*before[-_BEFORE:], this, *after[:_AFTER]]


def _is_good_input(row: Mapping[str, Any]) -> bool:
    return row["verdict"] in GOOD and row["slot"].startswith("input")


def _flips(found: Comparison) -> list[dict[str, Any]]:
    """Return the first tokens that are not good, those with another first choice before others."""
    rows = [row for row in found.tokens.to_pylist() if row["verdict"] not in GOOD]
    return sorted(rows, key=lambda row: row["top1_equal"] is not False)[:_TOKENS]


def _token_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in ("verdict", "run", "row", "token"):
        table.add_column(name, no_wrap=True, justify="left" if name == "verdict" else "right")
    table.add_column("first choice", no_wrap=True)
    table.add_column("chosen", overflow="fold")
    table.add_column("margin", justify="right", no_wrap=True)
    table.add_column("KL", justify="right", no_wrap=True)
    for row in rows:
        cells = [row["verdict"], *(number(row[name]) for name in ("run", "row", "token"))]
        cells += [{True: "same", False: "another"}.get(row["top1_equal"], NOTHING)]
        chosen = dict.fromkeys(_token(row, side) for side in ("golden", "candidate"))
        cells.append(" / ".join(chosen))
        table.add_row(*map(Text, [*cells, number(row["margin"], 2), number(row["kl"], 2)]))
    return table


def _token(row: Mapping[str, Any], side: str) -> str:
    text, chosen = row[f"{side}_text"], row[f"{side}_id"]
    if chosen is None:
        return NOTHING
    return str(chosen) if text is None else f"{chosen} {printable(repr(text))}"
