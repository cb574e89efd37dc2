"""A comparison as the table that msit's `llm compare` writes, column for column."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hf_dumper.compare.pairing import Pairing
from hf_dumper.compare.records import Side
from hf_dumper.compare.rows import match_rows, rows_of
from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import ROOT, TensorKey
from hf_dumper.core.verdicts import GOOD, Comparison, Verdict
from hf_dumper.report.tables import every_record
from hf_dumper.report.words import why
from hf_dumper.store import MsitReader, open_dump

METRICS: Final = {
    "cosine_similarity": "cosine",
    "max_relative_error": "max_rel",
    "mean_relative_error": "mean_rel",
    "max_absolute_error": "max_abs",
    "mean_absolute_error": "mean_abs",
}
"""Column of msit -> metric of ours."""

_FACTS: Final = ("data_path", "dtype", "shape", "max_value", "min_value", "mean_value")

COLUMNS: Final = (
    "token_id",
    "data_id",
    *(f"golden_{name}" for name in _FACTS),
    *(f"my_{name}" for name in _FACTS),
    *METRICS,
    "kl_divergence",
    "relative_euclidean_distance",
    "cmp_fail_reason",
)

_NAME: Final = ("run", "forward", "module", "slot", "call", "op")
"""Columns that name a record of one side."""

_LOGITS: Final = ("logits", "output.logits")

Name = tuple[Any, ...]
Records = Mapping[Name, Mapping[str, Any]]
"""Name of a record -> its row of the index, with statistics."""


class MsitReporter:
    """msit's comparison table: a row per pair, and per record without a partner.

    Statistics are over the whole tensors of each side, padding included; where several tensors of
    the candidate cover one of the golden's, they are those of all of them. `kl_divergence` is given
    for logits only, as the mean over the rows of the batch. The two dumps are opened for this.
    """

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file.

        Raises:
            DumpNotFoundError: a dump is no longer where it was.
        """
        rows = every_record(comparison).to_pylist()
        divergences = _divergences(comparison)
        with (
            open_dump(comparison.golden) as golden,
            open_dump(comparison.candidate) as candidate,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            table = _Table(golden, candidate)
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            for number, row in enumerate(rows):
                facts = table.facts(row) | _numbers(row, divergences)
                writer.writerow({"token_id": row["token"], "data_id": number, **facts})


class _Table:
    """What is known of the records of both sides, and which of them belong together."""

    def __init__(self, golden: DumpReader, candidate: DumpReader) -> None:
        self._golden, self._candidate = _records(golden), _records(candidate)
        sides = Side(golden, "golden"), Side(candidate, "candidate")
        matches, *_ = match_rows(*map(rows_of, sides))
        self._partners: dict[Name, list[Name]] = {}
        for pair in Pairing(*sides, matches).pairs():
            found = [piece.candidate for piece in pair.pieces] or [pair.candidate]
            names = dict.fromkeys(_name(record.key) for record in found)
            self._partners[_name(pair.golden.key)] = list(names)

    def facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of both sides for a row of `every_record`."""
        name = tuple(row[column] for column in _NAME)
        ours = _facts("golden", _known(self._golden, [name] if row["side"] != "candidate" else []))
        partners = {"both": self._partners.get(name, []), "candidate": [name], "golden": []}
        return ours | _facts("my", _known(self._candidate, partners[row["side"]]))


def _numbers(
    row: Mapping[str, Any], divergences: Mapping[tuple[int, int], float]
) -> dict[str, Any]:
    """Return the metrics under msit's names; none where they would say nothing, but the reason."""
    numbers: dict[str, Any] = {"cmp_fail_reason": ""}
    if row["verdict"] not in (*GOOD, Verdict.WARN, Verdict.FAIL):
        numbers["cmp_fail_reason"] = f"{row['verdict']}: {why(row)}"
    if row["verdict"] in (Verdict.SHAPE, Verdict.UNMATCHED, Verdict.TRUNCATED):
        return numbers
    numbers |= {name: _cell(row[metric]) for name, metric in METRICS.items()}
    numbers["relative_euclidean_distance"] = _cell(row["rel_l2"])
    if row["module"] == ROOT and row["slot"] in _LOGITS:
        numbers["kl_divergence"] = _cell(divergences.get((row["run"], row["token"])))
    return numbers


def _facts(prefix: str, records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of a side; several records of one token are described as one."""
    if not records:
        return {}
    first = records[0]
    counted = [r for r in records if r["count"] is not None and r["mean"] is not None]
    weights = [r["count"] - r["nan"] - r["pos_inf"] - r["neg_inf"] for r in counted]
    known: dict[str, Any] = {
        "data_path": "; ".join(_path(record) for record in records),
        "dtype": f"torch.{first['dtype']}",
        "shape": "; ".join(str(list(record["shape"])) for record in records),
    }
    if len(counted) == len(records):
        known["max_value"] = _cell(max(r["max"] for r in counted))
        known["min_value"] = _cell(min(r["min"] for r in counted))
        known["mean_value"] = _cell(np.average([r["mean"] for r in counted], weights=weights))
    return {f"{prefix}_{name}": value for name, value in known.items()}


def _path(record: Mapping[str, Any]) -> str:
    if record["shard"] is None:
        return ""
    if record["shard"].endswith(".pth"):
        return f"{record['dump']}/{record['shard']}"
    run, rank = f"{record['run']:06d}", record["rank"]
    return f"{record['dump']}/runs/{run}/rank-{rank}/{record['shard']}:{record['tensor']}"


def _known(records: Records, names: Iterable[Name]) -> list[Mapping[str, Any]]:
    return [records[name] for name in names if name in records]


def _name(key: TensorKey) -> Name:
    return tuple(getattr(key, column) for column in _NAME)


def _records(reader: DumpReader) -> Records:
    found = {}
    for run in reader.runs():
        path = str(reader.folder(run) if isinstance(reader, MsitReader) else reader.path)
        for row in reader.statistics(run).to_pylist():
            found[tuple(row[column] for column in _NAME)] = row | {"dump": path}
    return found


def _divergences(comparison: Comparison) -> dict[tuple[int, int], float]:
    """Return the mean KL divergence of the rows of each run and token."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in comparison.tokens.select(["run", "token", "kl"]).to_pylist():
        if row["kl"] is not None:
            found.setdefault((row["run"], row["token"]), []).append(row["kl"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
