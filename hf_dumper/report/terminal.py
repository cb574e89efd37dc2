"""What the commands print of a dump: the functions of this package in one place."""

from hf_dumper.report.lines import lines
from hf_dumper.report.numbers import plural, size
from hf_dumper.report.overview import (
    disk_usage,
    overview,
    printable,
    self_check_line,
    summary,
)
from hf_dumper.report.records import Entry, IndexedReader, entries, ranges, tokens
from hf_dumper.report.tensor import module, tensor
from hf_dumper.report.tree import tree

__all__ = [
    "Entry",
    "IndexedReader",
    "disk_usage",
    "entries",
    "lines",
    "module",
    "overview",
    "plural",
    "printable",
    "ranges",
    "self_check_line",
    "size",
    "summary",
    "tensor",
    "tokens",
    "tree",
]
