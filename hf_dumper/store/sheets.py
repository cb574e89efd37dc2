"""Statistics as msit writes them: a sheet per token and module, and one of a whole run."""

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hf_dumper.core.types import SKIPPED
from hf_dumper.store.budget import Budget
from hf_dumper.store.files import GrowingFile, temporary
from hf_dumper.store.paths import Paths, place, prefixed

STATISTICS: Final = "statistics.csv"
STATISTICS_COLUMNS: Final = (
    *("NodeName", "NodeType", "InputOutput", "Index", "DataType", "Shape"),
    *("Max", "Min", "Mean", "L2Norm"),
)
ANALYSIS: Final = "tensor_analyze.csv"
ANALYSIS_COLUMNS: Final = (
    *("Node Name", "Node Type", "Tensor Path", "dtype", "shape"),
    *("max", "min", "variance", "mean"),
)

Row = Mapping[str, Any]
"""A row of the index."""


class StatisticsSheets:
    """Writes `statistics.csv` into the folder of each module's call, a row per tensor."""

    def __init__(self, top: Path, paths: Paths, budget: Budget | None = None) -> None:
        """Write below `top`, into the folders that `paths` names, within the budget."""
        self._top = top
        self._paths = paths
        self._budget = budget or Budget()

    def add(self, index: pa.RecordBatch) -> None:
        """Take the index of the forward that `paths` is at, which has ended."""
        sheets: dict[str, list[list[Any]]] = {}
        for row in index.to_pylist():
            if row["status"] != SKIPPED:
                module, _ = place(row["module"], row["slot"])
                folder = self._paths.folder(module, row["op"], row["call"])
                sheets.setdefault(folder, []).append(_statistics(row))
        for folder, rows in sheets.items():
            path = self._top / folder / STATISTICS
            text = _csv([STATISTICS_COLUMNS, *rows])
            self._budget.claim(len(text))
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = temporary(path)
            unfinished.write_bytes(text)
            unfinished.replace(path)


class AnalysisSheet:
    """Writes `tensor_analyze.csv`: a row per tensor of a run, forward by forward."""

    def __init__(self, folder: Path, prefix: str = "", budget: Budget | None = None) -> None:
        """Create the file; `prefix` leads from `folder` to the files that an index names."""
        self._prefix = prefix
        self._budget = budget or Budget()
        head = _csv([ANALYSIS_COLUMNS])
        self._budget.claim(len(head))
        self._file = GrowingFile(folder / ANALYSIS, head)

    def add(self, index: pa.RecordBatch) -> None:
        """Take the index of a forward that has ended."""
        rows = [self._row(row) for row in index.to_pylist() if row["status"] != SKIPPED]
        text = _csv(rows)
        self._budget.claim(len(text))
        self._file.append(memoryview(text))

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def _row(self, row: Row) -> list[Any]:
        shard = row["shard"]
        path = "" if shard is None else f"{self._prefix}{shard}"
        if path and not path.endswith(".pth"):
            path = f"{path}:{row['tensor']}"
        std = row["std"]
        numbers = (row["max"], row["min"], None if std is None else std * std, row["mean"])
        return [*_node(row), path, f"torch.{row['dtype']}", _shape(row), *map(_number, numbers)]


def _statistics(row: Row) -> list[Any]:
    part, _, index = place(row["module"], row["slot"])[1].partition(".")
    numbers = (row["max"], row["min"], row["mean"], row["l2"])
    what = (part, index, f"torch.{row['dtype']}", _shape(row))
    return [*_node(row), *what, *map(_number, numbers)]


def _node(row: Row) -> tuple[str, str]:
    name = prefixed(place(row["module"], row["slot"])[0])
    return (f"{name}.{row['op']}" if row["op"] else name), row["class"]


def _shape(row: Row) -> str:
    return str(list(row["shape"]))


def _number(value: float | None) -> str:
    """Return a number as a text that reads back as the same number; none as nothing."""
    return "" if value is None else repr(float(value))


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
