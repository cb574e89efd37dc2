"""Names, columns and numbers of the native layout; `docs/format.md` has the picture."""

from pathlib import Path
from typing import Final

import pyarrow as pa

from hf_dumper.core.statistics import COUNTS, FIELDS

KIND: Final = "hf_dumper dump"
"""Value of `kind` in the manifest of every dump; detection looks for it."""

MANIFEST: Final = "manifest.json"
MODEL_TREE: Final = "model_tree.json"
LOCK: Final = ".lock"
"""Locked by the process that writes the dump. It holds its number; a crash leaves it unlocked."""
FAILURES: Final = "failures.jsonl"
"""The rows of a data set from which no run could be made, a line for each time."""
RUNS: Final = "runs"
RUN: Final = "run.json"
RUN_PARTIAL: Final = "run.partial.json"
INDEX: Final = "index"
POSITIONS: Final = "positions"

PAGE: Final = 4096

INDEX_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("rank", pa.int16()),
        ("forward", pa.int32()),
        ("token", pa.int32()),
        ("phase", pa.utf8()),
        ("seq_in", pa.int64()),
        ("seq_out", pa.int64()),
        *((name, pa.utf8()) for name in ("module", "class", "slot", "param")),
        ("call", pa.int32()),
        *((name, pa.utf8()) for name in ("op", "axes", "dtype")),
        ("shape", pa.list_(pa.int64())),
        *((name, pa.utf8()) for name in ("device", "shard", "tensor")),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("hash", pa.uint64()),
        ("status", pa.utf8()),
        ("reason", pa.utf8()),
        *((name, pa.int64() if name in COUNTS else pa.float64()) for name in FIELDS),
    ]
)

POSITIONS_SCHEMA: Final = pa.schema(
    [(name, pa.int32()) for name in ("forward", "row", "column", "position")]
)


def run_folder(dump: Path, run: int) -> Path:
    """Return the folder of a run."""
    return dump / RUNS / f"{run:06d}"


def rank_folder(dump: Path, run: int, rank: int) -> Path:
    """Return the folder that one process writes its shards and its index into."""
    return run_folder(dump, run) / f"rank-{rank}"


def shard_name(number: int) -> str:
    """Return the final name of a shard; the index holds this one from the start."""
    return f"shard-{number:05d}.safetensors"


def partial_name(name: str) -> str:
    """Return the name that a file has until its run is committed."""
    return Path(name).with_suffix(".partial").name


def tensor_name(forward: int | str, module: str, slot: str, call: int, op: str) -> str:
    """Return the name of a tensor inside its shard."""
    name = f"{forward}/{module}:{slot}:{call}"
    return f"{name}:{op}" if op else name
