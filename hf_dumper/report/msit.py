"""A comparison as the table that msit's `llm compare` writes, column for column."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import ROOT
from hf_dumper.core.verdicts import GOOD, Comparison, Verdict
from hf_dumper.report.tables import every_record
from hf_dumper.report.words import why
from hf_dumper.store import open_dump

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

_KEY: Final = ("run", "token", "module", "slot", "call", "op")
_LOGITS: Final = ("logits", "output.logits")

Side = Mapping[tuple[Any, ...], list[Mapping[str, Any]]]
"""What names a record, but for its forward -> the records, with their statistics."""


class MsitReporter:
    """msit's comparison table: a row per pair, and per record without a partner.

    Statistics are over the whole tensors of each side, padding included; a token that the candidate
    computed in several forwards has those of all of them. `kl_divergence` is given for logits only,
    as the mean over the rows of the batch. The two dumps are opened for their statistics.
    """

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the file.

        Raises:
            DumpNotFoundError: a dump is no longer where it was.
        """
        rows = every_record(comparison).to_pylist()
        runs = sorted({row["run"] for row in rows})
        golden, candidate = (_side(p, runs) for p in (comparison.golden, comparison.candidate))
        divergences = _divergences(comparison)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            for number, row in enumerate(rows):
                facts = _row(row, golden, candidate, divergences)
                writer.writerow({"token_id": row["token"], "data_id": number, **facts})


def _row(
    row: Mapping[str, Any],
    golden: Side,
    candidate: Side,
    divergences: Mapping[tuple[int, int], float],
) -> dict[str, Any]:
    facts: dict[str, Any] = {"cmp_fail_reason": ""}
    if row["side"] != "candidate":
        facts |= _facts("golden", [r for r in _of(golden, row) if r["forward"] == row["forward"]])
    if row["side"] != "golden":
        facts |= _facts("my", _of(candidate, row))
    if row["verdict"] not in (*GOOD, Verdict.WARN, Verdict.FAIL):
        facts["cmp_fail_reason"] = f"{row['verdict']}: {why(row)}"
    if row["verdict"] in (Verdict.SHAPE, Verdict.UNMATCHED, Verdict.TRUNCATED):
        return facts
    facts |= {name: _cell(row[metric]) for name, metric in METRICS.items()}
    facts["relative_euclidean_distance"] = _cell(row["rel_l2"])
    if row["module"] == ROOT and row["slot"] in _LOGITS:
        facts["kl_divergence"] = _cell(divergences.get((row["run"], row["token"])))
    return facts


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
    run, rank = f"{record['run']:06d}", record["rank"]
    return f"{record['dump']}/runs/{run}/rank-{rank}/{record['shard']}:{record['tensor']}"


def _of(side: Side, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the records of one name; a parameter that is passed the other way is found by name."""
    key = tuple(row[name] for name in _KEY)
    param = row.get("param")
    found = side.get(key)
    if found is None and param:
        run, token, module, _, call, op = key
        found = side.get((run, token, module, f"param.{param}", call, op))
    return found or []


def _side(path: str, runs: Iterable[int]) -> Side:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    with open_dump(path) as reader:
        have = set(reader.runs())
        for run in runs:
            for record in _records(reader, run) if run in have else ():
                key = tuple(record[name] for name in _KEY)
                found.setdefault(key, []).append(record)
                if record["param"]:
                    by_name = (*key[:3], f"param.{record['param']}", *key[4:])
                    found.setdefault(by_name, []).append(record)
    return found


def _records(reader: DumpReader, run: int) -> list[dict[str, Any]]:
    rows = reader.statistics(run).to_pylist()
    return [row | {"dump": str(reader.path)} for row in rows]


def _divergences(comparison: Comparison) -> dict[tuple[int, int], float]:
    """Return the mean KL divergence of the rows of each run and token."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in comparison.tokens.select(["run", "token", "kl"]).to_pylist():
        if row["kl"] is not None:
            found.setdefault((row["run"], row["token"]), []).append(row["kl"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
