"""An outline of a model as a table: type, output shape, parameters and bytes of every module."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hf_dumper.core.outline import ModuleOutline, Outline
from hf_dumper.report.numbers import NOTHING, dims, plural, size

_HEAD: Final = ("module", "type", "output", "parameters", "bytes")
_LEFT: Final = 3
"""The first columns are words and stand left; the others are numbers and stand right."""

_UNKNOWN: Final = "?"
_SHOWN: Final = 2
"""Shapes of a module that are shown; of the others it is said how many there are."""


class _Row(NamedTuple):
    cells: tuple[str, ...]
    remark: str = ""


class SummaryTable:
    """A renderable: one line per module, then the totals; print it with `soft_wrap=True`.

    Of consecutive layers that are alike, the first is shown, and how many follow.
    """

    def __init__(self, outline: Outline, *, depth: int | None = None, fold: bool = True) -> None:
        """Show the modules down to `depth`, 0 being the model itself; None means all."""
        self._outline = outline
        self._rows = list(_rows(_nested(outline.modules), depth, fold=fold))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        columns = zip(_HEAD, *(row.cells for row in self._rows if row.cells), strict=True)
        widths = [max(map(len, column)) for column in columns]
        yield Text(_line(_HEAD, widths), "dim")
        for row in self._rows:
            if row.cells:
                yield Text(_line(row.cells, widths)).append(row.remark, "dim")
            else:
                yield Text(row.remark, "italic dim")
        yield Text()
        yield from map(Text, totals(self._outline))


class _Node(NamedTuple):
    module: ModuleOutline
    children: "list[_Node]"

    def form(self) -> tuple[object, ...]:
        """Return what layers that are alike have in common."""
        m = self.module
        own = (m.class_name, m.outputs, m.why, m.parameters, m.trainable, m.buffers, m.bytes)
        last = m.name.rpartition(".")[2]
        name = "" if last.isdecimal() else last
        return (name, *own, tuple(child.form() for child in self.children))


def totals(outline: Outline) -> Iterator[str]:
    """Yield the sums over the whole model, and what is not known."""
    root = outline.modules[0]
    fixed = root.parameters - root.trainable
    yield f"parameters  {root.parameters:,}, each counted once"
    yield f"trainable   {root.trainable:,}" + (f", and {fixed:,} that are not" if fixed else "")
    yield f"buffers     {root.buffers:,}"
    each = (f"{name} {size(total.bytes)}" for name, total in outline.dtypes.items())
    yield f"bytes       {size(root.bytes)}: " + (", ".join(each) or NOTHING)
    given = (f"{name} {dims(shape)}" for name, shape in outline.inputs.items())
    yield f"inputs      {', '.join(given) or NOTHING}"
    for why, count in outline.unknown.items():
        yield f"unknown     output of {plural(count, 'module')}: {why}"
    for note in outline.notes:
        yield f"note        {note}"


def _nested(modules: Sequence[ModuleOutline]) -> _Node:
    top = _Node(modules[0], [])
    nodes = {"": top, **{module.name: _Node(module, []) for module in modules[1:]}}
    for module in modules[1:]:
        nodes[module.name.rpartition(".")[0]].children.append(nodes[module.name])
    return top


def _rows(node: _Node, depth: int | None, *, fold: bool) -> Iterator[_Row]:
    module = node.module
    indent = "  " * module.depth
    yield _Row((indent + _last(module.name), *_cells(module)), _remark(module))
    if depth is not None and module.depth >= depth:
        return
    for names, child in _alike(node.children) if fold else (([], c) for c in node.children):
        yield from _rows(child, depth, fold=fold)
        if len(names) > 1:
            rest = names[1] + (f" to {names[-1]}" if len(names) > 2 else "")
            yield _Row((), f"{indent}  {rest}: the same (--all)")


def _alike(children: Sequence[_Node]) -> Iterator[tuple[list[str], _Node]]:
    """Yield the children; numbered ones of the same form that follow each other come as one."""
    names: list[str] = []
    first: _Node | None = None
    for child in children:
        name = _last(child.module.name)
        if first is not None and name.isdecimal() and child.form() == first.form():
            names.append(name)
            continue
        if first is not None:
            yield names, first
        names, first = [name], child
    if first is not None:
        yield names, first


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _cells(module: ModuleOutline) -> tuple[str, ...]:
    return (
        module.class_name,
        _output(module),
        f"{module.parameters:,}" if module.parameters else NOTHING,
        size(module.bytes) if module.bytes else NOTHING,
    )


def _output(module: ModuleOutline) -> str:
    if module.outputs is None:
        return _UNKNOWN if module.why else NOTHING
    shapes = [dims(shape) for _, shape in module.outputs]
    more = f" +{len(shapes) - _SHOWN}" if len(shapes) > _SHOWN else ""
    return ", ".join(shapes[:_SHOWN]) + more or NOTHING


def _remark(module: ModuleOutline) -> str:
    return f"  tied: {', '.join(module.tied)}" if module.tied else ""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if i < _LEFT else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded)
