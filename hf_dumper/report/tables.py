"""A comparison as a table or as JSON: every pair, and every record that no pair covers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from hf_dumper.core.verdicts import RESULT_SCHEMA, Comparison
from hf_dumper.report.numbers import strict

FORMAT: Final = "hf_dumper comparison"
FORMAT_VERSION: Final = 1


def every_record(comparison: Comparison) -> pa.Table:
    """Return the pairs, then what is unmatched, as one table with a column `side`.

    `side` is "both", "golden" or "candidate"; the other columns are those of `results`, null where
    a record has no partner.
    """
    sides = pa.array(["both"] * comparison.results.num_rows, pa.utf8())
    pairs = comparison.results.add_column(0, "side", sides)
    return pa.concat_tables([pairs, _as_results(comparison.unmatched)])


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return JSON-ready values, but for numbers that are not finite."""
    divergence = comparison.divergence
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "verdict": comparison.verdict.value,
        "passed": comparison.passed,
        "golden": comparison.golden,
        "candidate": comparison.candidate,
        "divergence": None if divergence is None else asdict(divergence),
        "inputs": [asdict(finding) for finding in comparison.inputs],
        "regime": [asdict(finding) for finding in comparison.regime],
        "coverage": dict(comparison.coverage),
        "limits": dict(comparison.limits),
        "tokens": comparison.tokens.to_pylist(),
        "results": [row | {"extra": dict(row["extra"] or ())} for row in _rows(comparison)],
        "unmatched": comparison.unmatched.to_pylist(),
    }


class JsonReporter:
    """All of a comparison as one JSON object; the documentation has its fields."""

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file."""
        values = strict(as_dict(comparison))
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False, default=str)
        # Half a character, as in odd file names, becomes an escape that JSON knows as well.
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


class ParquetReporter:
    """`every_record` as Parquet."""

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file."""
        pq.write_table(every_record(comparison), path, compression="zstd")


class CsvReporter:
    """`every_record` as CSV.

    A shape is written "1x9"; each metric of the user's own has a column `extra.<name>`.
    """

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file."""
        table = every_record(comparison)
        for name in ("shape", "candidate_shape"):
            shapes = [None if s is None else "x".join(map(str, s)) for s in _list(table, name)]
            table = _replaced(table, name, pa.array(shapes, pa.utf8()))
        extras = [dict(row or ()) for row in _list(table, "extra")]
        table = table.drop_columns(["extra"])
        for name in sorted({name for row in extras for name in row}):
            values = pa.array([row.get(name) for row in extras], pa.float64())
            table = table.append_column(f"extra.{name}", values)
        pacsv.write_csv(table, path)


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = comparison.results.to_pylist()
    return rows


def _as_results(unmatched: pa.Table) -> pa.Table:
    columns = [unmatched.column("side")]
    for field in RESULT_SCHEMA:
        if field.name in unmatched.column_names:
            columns.append(pc.cast(unmatched.column(field.name), field.type))
        else:
            columns.append(pa.nulls(unmatched.num_rows, field.type))
    return pa.table(columns, names=["side", *RESULT_SCHEMA.names])


def _list(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
