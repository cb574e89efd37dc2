"""Print the figures that `bench.py` kept as a Markdown table.

    python benchmarks/table.py [FILE ...]

Without a file it is benchmarks/results/bench.json; figures of several files make one table each.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench.json"

Row = Mapping[str, Any]


def main() -> None:
    """Print one table per file."""
    files = [Path(name) for name in sys.argv[1:]] or [RESULTS]
    print(markdown(json.loads(file.read_text("utf-8")) for file in files))


def markdown(figures: Iterable[Mapping[str, Any]]) -> str:
    """Return what was measured, and a table of the figures."""
    return "\n\n".join(f"{_machine(each['machine'])}\n\n{_table(each['rows'])}" for each in figures)


def _machine(facts: Mapping[str, Any]) -> str:
    hooks = "compiled hooks" if facts["compiled"] else "hooks in Python"
    return (
        f"Measured on {facts['date']} on {facts['cores']} cores ({facts['cpu']}), "
        f"{facts['file_system']}, Python {facts['python']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}, hf_dumper {facts['hf_dumper']}, {hooks}:"
    )


def _table(rows: Iterable[Row]) -> str:
    names = list(COLUMNS)
    lines = [[column(row) for column in COLUMNS.values()] for row in rows]
    head = [f"| {' | '.join(names)} |", f"|---|---{'|--:' * (len(names) - 2)}|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def _number(name: str, form: str, unit: float = 1) -> Callable[[Row], str]:
    """Return a function that shows a figure in some unit, and a dash where there is none."""
    return lambda row: "-" if row[name] is None else format(row[name] / unit, form)


def _share(row: Row) -> str:
    return "-" if row["raw_write"] is None else f"{row['raw_write'] / row['plain']:.3f}"


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "workload": lambda row: row["workload"],
    "mode": lambda row: row["mode"],
    "dumped / plain": _number("ratio", ".3f"),
    "spread": lambda row: f"{row['lowest']:.2f} to {row['highest']:.2f}",
    "aim": _number("aim", ".2f"),
    "plain, s": _number("plain", ".3f"),
    "dumped, s": _number("dumped", ".3f"),
    "records": _number("records", ",.0f"),
    "MB": _number("bytes", ",.1f", 1e6),
    "files": _number("files", ".0f"),
    "peak extra, MB": _number("peak_extra", ",.0f", 1e6),
    "reading, s": _number("reading", ".3f"),
    "raw write, s": _number("raw_write", ".3f"),
    "raw write / plain": _share,
}


if __name__ == "__main__":
    main()
