"""One tensor of a dump, or all tensors of one module."""

import sys
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_dumper.core.types import ALIASED, SKIPPED
from hf_dumper.report.numbers import number, shape, size
from hf_dumper.report.records import Entry
from hf_dumper.report.tree import label, owner_of

_CORNERS: Final = 64
"""Number of values from which only the corners of a tensor are shown."""

_STATISTICS: Final = {
    "range": ("min", "max", "absmax"),
    "moments": ("mean", "std", "sum", "l2"),
    "counts": ("count", "zeros", "nan", "pos_inf", "neg_inf"),
}


def tensor(entry: Entry, values: torch.Tensor | None, *, whole: bool = False) -> RenderableType:
    """Return the facts, the statistics and the values of a tensor; None where none were kept.

    `whole` prints every value, else only the corners of a large tensor are.
    """
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(entry).items():
        facts.add_row(name, Text(value))
    title = Text.assemble((entry.module, "bold cyan"), " ", (label(entry), "bold"))
    shown = Text("The values were not kept, only statistics." if values is None else "")
    if values is not None:
        shown = Text(_values(values, whole=whole))
    return Group(title, facts, Text(""), shown)


def module(found: Sequence[Entry]) -> RenderableType:
    """Return the tensors of one module, a line of statistics each."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("slot", overflow="fold")
    for name in ("shape", "mean", "std", "min", "max"):
        table.add_column(name, justify="left" if name == "shape" else "right", no_wrap=True)
    for entry in found:
        cells = [label(entry), shape(entry.shape)]
        cells += [number(entry.statistics[name]) for name in ("mean", "std", "min", "max")]
        table.add_row(*map(Text, cells if entry.status != SKIPPED else [cells[0], entry.reason]))
    first = found[0]
    title = Text.assemble((first.module, "bold cyan"), "  ", (first.class_name, "dim"))
    return Group(title, table)


def _facts(entry: Entry) -> dict[str, str]:
    key = entry.key
    facts = {
        "class": entry.class_name,
        "token": f"{entry.token} (run {key.run}, forward {key.forward}, call {key.call})",
        "type": f"{entry.dtype} on {entry.device}",
        "shape": shape(entry.shape),
        "size": size(entry.nbytes),
    }
    if entry.param:
        facts["parameter"] = entry.param
    if entry.status == ALIASED and entry.owner:
        facts["stored as"] = owner_of(entry)
    if entry.status == SKIPPED:
        return facts | {"skipped": entry.reason}
    for name, fields in _STATISTICS.items():
        shown = (f"{field} {number(entry.statistics[field], 6)}" for field in fields)
        facts[name] = ", ".join(shown)
    return facts


def _values(values: torch.Tensor, *, whole: bool) -> str:
    array = values.float() if values.is_floating_point() and values.itemsize < 4 else values
    threshold = sys.maxsize if whole else _CORNERS
    return np.array2string(array.numpy(), separator=", ", threshold=threshold, precision=6)
