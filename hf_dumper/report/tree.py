"""The module tree of one token, with the statistics of every tensor."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hf_dumper.core.types import ALIASED, SKIPPED
from hf_dumper.report.numbers import NOTHING, dims, dtype, number, plural, size
from hf_dumper.report.plant import Node, folded, plant, single, walk
from hf_dumper.report.records import Entry, IndexedReader, OnProgress, entries

_HEAD: Final = ("type", "shape", "mean", "std", "absmax")
_FIRST: Final = "module, tensor"
_LEFT: Final = 2
"""The first columns are words and stand left; the others are numbers and stand right."""

_OWNER: Final = 20
"""Room that must be left for the name of a tensor's owner, or it is not shown."""


class Row(NamedTuple):
    """A line of the tree: one tensor, or something without figures when `cells` is None.

    A `remark` is left out where there is no room for it, an `alarm` never.
    """

    depth: int
    name: Text
    cells: tuple[str, ...] | None = None
    remark: str = ""
    style: str = ""
    alarm: str = ""


def tree(
    reader: IndexedReader,
    run: int,
    token: int,
    *,
    fold: bool = True,
    on_progress: OnProgress | None = None,
) -> "ModuleTree":
    """Return the modules that ran for a token, each with its tensors and their statistics.

    `fold` shows the first of several consecutive layers whose tensors have the same names, types
    and shapes, and says how many follow.
    """
    return ModuleTree(plant(entries(reader, run, token, on_progress=on_progress)), fold=fold)


class ModuleTree:
    """A renderable: one line per module and per tensor, laid out for the width at hand.

    Print it with `soft_wrap=True`: where even the narrow layout is too wide, nothing is cut.
    """

    def __init__(self, top: Node, *, fold: bool = True) -> None:
        """Show the tree below `top`, which stands for the dump and has the root as its child."""
        self._rows = list(_rows("", top, -1, fold=fold))
        found = list(walk(top))
        self._notes = []
        if not found:
            self._notes.append("Nothing was recorded.")
        if any(entry.status == ALIASED for entry in found):
            self._notes.append("= shares the memory of a tensor before it, and is stored only once")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        cells = [_HEAD, *(row.cells for row in self._rows if row.cells)]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        room = options.max_width - sum(widths) - len(widths)
        step = 2 if self._name_width(2) <= room else 1
        name_width = self._name_width(step)
        owner_width = room - name_width - 2
        if self._rows:
            head = _line(Text(_FIRST), name_width, _HEAD, widths)
            head.stylize("dim")
            yield head
        for row in self._rows:
            name = Text(" " * (step * row.depth)) + row.name
            line = name if row.cells is None else _line(name, name_width, row.cells, widths)
            if row.alarm or (row.remark and owner_width >= _OWNER):
                remark = Text(row.alarm or row.remark)
                if not row.alarm:
                    remark.truncate(owner_width, overflow="ellipsis")
                line = line + "  " + remark
            line.stylize(row.style)
            yield line
        yield from (Text(note, "dim") for note in self._notes)

    def _name_width(self, step: int) -> int:
        names = (step * row.depth + row.name.cell_len for row in self._rows if row.cells)
        return max(len(_FIRST), *names, 0)


def _rows(name: str, node: Node, depth: int, *, fold: bool) -> Iterator[Row]:
    prefix = f"{name}." if name else ""
    if node.entries:
        title = Text.assemble((name, "bold cyan"), "  ", (node.class_name, "dim"))
        yield Row(depth, title)
        yield from (_row(entry, depth + 1) for entry in node.entries)
        prefix = ""
    inner = depth if prefix else depth + 1
    for names, child in folded(node) if fold else single(node):
        yield from _rows(prefix + names[0], child, inner, fold=fold)
        if len(names) > 1:
            yield Row(inner, _fold_line(prefix, names, child))


def _row(entry: Entry, depth: int) -> Row:
    shared = entry.status == ALIASED
    name = Text(("= " if shared else "  ") + label(entry))
    depth -= 1  # the mark stands in the indentation
    if entry.status == SKIPPED:
        name.append(f"  {entry.reason}")
        return Row(depth, name, style="yellow")
    figures = (number(entry.statistics[column]) for column in _HEAD[_LEFT:])
    cells = (dtype(entry.dtype), dims(entry.shape), *figures)
    bad = sum(int(entry.statistics[column] or 0) for column in ("nan", "pos_inf", "neg_inf"))
    if bad:
        return Row(depth, name, cells, "", "bold red", f"{plural(bad, 'value')} not finite")
    owner = f"= {owner_of(entry)}" if shared and entry.owner else ""
    return Row(depth, name, cells, owner or size(entry.nbytes), "dim" if shared else "")


def _line(name: Text, name_width: int, cells: Sequence[str], widths: Sequence[int]) -> Text:
    line = name.copy()
    line.pad_right(name_width - line.cell_len)
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padding = " " * (width - cell_len(cell))
        line.append(f" {cell}{padding}" if i < _LEFT else f" {padding}{cell}")
    return line


def _fold_line(prefix: str, names: Sequence[str], child: Node) -> Text:
    rest = f"{prefix}{names[1]}" + (f" to {prefix}{names[-1]}" if len(names) > 2 else "")
    each = " each" if len(names) > 2 else ""
    text = f"{rest}: the same {plural(child.count(), 'tensor')}{each}, other values (--all)"
    return Text(text, "italic dim")


def label(entry: Entry) -> str:
    """Return the slot, with the call and the function where they are not the first or none."""
    call = f" (call {entry.key.call})" if entry.key.call else ""
    function = f" [{entry.key.op}]" if entry.key.op else ""
    return entry.slot + call + function


def owner_of(entry: Entry) -> str:
    """Return module and slot out of the owner's name in its shard, `0/module:slot:call`."""
    if entry.owner is None:
        return NOTHING
    module, _, rest = entry.owner.partition("/")[2].partition(":")
    return f"{module} {rest.partition(':')[0]}"
