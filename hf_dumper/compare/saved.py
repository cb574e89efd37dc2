"""A comparison in a folder: facts as JSON, tables as Parquet; no tensors are needed again."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hf_dumper.core.verdicts import (
    RESULT_SCHEMA,
    TOKEN_SCHEMA,
    UNMATCHED_SCHEMA,
    Comparison,
    Divergence,
    Finding,
    Verdict,
)
from hf_dumper.errors import DumpFormatError, DumpNotFoundError, DumpWriteError

KIND: Final = "hf_dumper comparison"
VERSION: Final = 1
FACTS: Final = "comparison.json"
_TABLES: Final = {
    "results": RESULT_SCHEMA,
    "unmatched": UNMATCHED_SCHEMA,
    "tokens": TOKEN_SCHEMA,
}


class SavableComparison(Comparison):
    """A comparison that can be written to a folder."""

    __slots__ = ()

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it to a folder, from which `load_comparison` and `judge` read it.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        save(self, folder)


def save(comparison: Comparison, folder: str | PathLike[str]) -> None:
    """Write a comparison; files of an earlier one are replaced, the facts last.

    Raises:
        DumpWriteError: the folder cannot be written.
    """
    path = Path(folder)
    facts = {
        "kind": KIND,
        "version": VERSION,
        "verdict": comparison.verdict,
        "divergence": None if comparison.divergence is None else asdict(comparison.divergence),
        "coverage": dict(comparison.coverage),
        "inputs": [asdict(finding) for finding in comparison.inputs],
        "regime": [asdict(finding) for finding in comparison.regime],
        "limits": dict(comparison.limits),
        "golden": comparison.golden,
        "candidate": comparison.candidate,
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / FACTS).unlink(missing_ok=True)
        for name in _TABLES:
            pq.write_table(getattr(comparison, name), path / f"{name}.parquet", compression="zstd")
        (path / FACTS).write_text(json.dumps(facts, indent=1, default=str), "utf-8")
    except OSError as error:
        msg = f"Cannot save the comparison to '{path}': {error.strerror or error}."
        raise DumpWriteError(msg) from error


def load(folder: str | PathLike[str]) -> SavableComparison:
    """Read a saved comparison.

    Raises:
        DumpNotFoundError: there is none.
        DumpFormatError: it is damaged, or of another version.
    """
    path = Path(folder)
    facts = _facts(path)
    tables = {name: _table(path / f"{name}.parquet", schema) for name, schema in _TABLES.items()}
    try:
        divergence = facts["divergence"]
        return SavableComparison(
            verdict=Verdict(facts["verdict"]),
            divergence=None if divergence is None else _divergence(divergence),
            coverage=facts["coverage"],
            inputs=tuple(Finding(**finding) for finding in facts["inputs"]),
            regime=tuple(Finding(**finding) for finding in facts["regime"]),
            limits=facts["limits"],
            golden=facts["golden"],
            candidate=facts["candidate"],
            **tables,
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"'{path / FACTS}' is damaged: {type(error).__name__}: {error}."
        raise DumpFormatError(msg) from error


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads((path / FACTS).read_text("utf-8"))
    except FileNotFoundError as error:
        msg = f"There is no saved comparison at '{path}'."
        raise DumpNotFoundError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"'{path / FACTS}' cannot be read: {error}."
        raise DumpFormatError(msg) from error
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        msg = f"'{path / FACTS}' is no saved comparison."
        raise DumpFormatError(msg)
    if facts.get("version") != VERSION:
        msg = (
            f"'{path / FACTS}' has version {facts.get('version')!r}; this release of hf_dumper "
            f"reads version {VERSION}."
        )
        raise DumpFormatError(msg)
    return facts


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        msg = f"'{path}' cannot be read: {str(error).splitlines()[0]}"
        raise DumpFormatError(msg) from error
    if not table.schema.equals(schema):
        msg = f"'{path}' is no table of a comparison of this version: its columns differ."
        raise DumpFormatError(msg)
    return table


def _divergence(facts: Mapping[str, Any]) -> Divergence:
    lists = {name: tuple(facts[name]) for name in ("evidence", "suspects")}
    return Divergence(**{**facts, **lists})
