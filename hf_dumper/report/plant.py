"""Records as a tree of their modules, and which layers of it are alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hf_dumper.core.types import ROOT
from hf_dumper.report.records import Entry


@dataclass(slots=True)
class Node:
    """A module: its own records and its children, both in order of execution."""

    entries: list[Entry] = field(default_factory=list)
    children: dict[str, "Node"] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """Class of the module, "" where it was not recorded itself."""
        return self.entries[0].class_name if self.entries else ""

    def count(self) -> int:
        """Return the number of records of the module and everything below it."""
        return len(self.entries) + sum(child.count() for child in self.children.values())

    def form(self) -> tuple[object, ...]:
        """Return what repeated layers have in common: names, classes, types and shapes."""
        own = [(e.slot, e.class_name, e.dtype, tuple(e.shape or ())) for e in self.entries]
        return tuple(own), tuple((name, child.form()) for name, child in self.children.items())


def plant(found: Sequence[Entry]) -> Node:
    """Return a node that has the outermost module as its child."""
    top = Node()
    for entry in found:
        node = top.children.setdefault(ROOT, Node())
        for part in () if entry.module == ROOT else entry.module.split("."):
            node = node.children.setdefault(part, Node())
        node.entries.append(entry)
    return top


def walk(node: Node) -> Iterator[Entry]:
    """Yield every record, a module's own before those of its children."""
    yield from node.entries
    for child in node.children.values():
        yield from walk(child)


def single(node: Node) -> Iterator[tuple[list[str], Node]]:
    """Yield every child by itself."""
    return (([name], child) for name, child in node.children.items())


def folded(node: Node) -> Iterator[tuple[list[str], Node]]:
    """Yield the children; numbered ones of the same form that follow each other come as one."""
    names: list[str] = []
    first: Node | None = None
    for name, child in node.children.items():
        if first is not None and _follows(names[-1], name) and child.form() == first.form():
            names.append(name)
            continue
        if first is not None:
            yield names, first
        names, first = [name], child
    if first is not None:
        yield names, first


def _follows(name: str, other: str) -> bool:
    return name.isdecimal() and other.isdecimal() and int(other) == int(name) + 1
