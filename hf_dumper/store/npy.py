"""A dump as NumPy files, for programs that know neither torch nor us."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import ROOT, SKIPPED, Phase, Tick
from hf_dumper.core.weights import Weight
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store.files import temporary, write_json
from hf_dumper.store.layout import INDEX_SCHEMA, MANIFEST, RUN
from hf_dumper.store.paths import Paths, distinct, escaped
from hf_dumper.store.reader import NativeReader
from hf_dumper.store.replay import load_row

INDEX: Final = "index.csv"

COLUMNS: Final = (
    *("file", "stored_as"),
    *(name for name in INDEX_SCHEMA.names if name not in ("shard", "tensor", "offset")),
)

_BITS: Final = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}

_NOT_NUMPY: Final = frozenset(
    getattr(torch, name)
    for name in dir(torch)
    if name.startswith(("float8", "float4")) or name in ("bfloat16", "complex32")
)


def write_npy(
    reader: DumpReader,
    out: Path,
    weights: Sequence[Weight] = (),
    on_progress: Callable[[int], None] = lambda _n: None,
) -> None:
    """Write every tensor of a dump into an .npy file of its own, with an index of them.

    A type that NumPy lacks is stored as its bits in an unsigned integer of the same width:
    `stored_as` of the index is the type in the file, `dtype` the type of the values.

    Raises:
        DumpFormatError: a file of the dump is damaged.
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MANIFEST, dict(reader.manifest) | {"kind": "hf_dumper npy export"})
    index = out / INDEX
    unfinished = temporary(index)
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        for run in reader.runs():
            for row in _run(reader, run, out):
                table.writerow(_plain(row))
                on_progress(1)
        taken: set[str] = set()
        for weight in weights:
            table.writerow(_plain(_weight(weight, out, taken)))
    unfinished.replace(index)


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the values of a tensor, or their bits where NumPy has no such type."""
    plain = tensor.detach().contiguous()
    if plain.dtype in _NOT_NUMPY:
        plain = plain.view(_BITS[plain.dtype.itemsize])
    return plain.numpy()


def _run(reader: DumpReader, run: int, out: Path) -> Iterator[dict[str, Any]]:
    """Write a run; yield a row of the index for each record, also for one without values."""
    folder = f"run_{run:06d}"
    (out / folder).mkdir(exist_ok=True)
    write_json(out / folder / RUN, reader.run_info(run))
    for name, table in _tables(reader, run):
        _write_table(table, out / folder / f"{name}.csv")
    paths = Paths(".npy")
    for row in reader.index(run).to_pylist():
        place: dict[str, Any] = {}
        if row["status"] != SKIPPED and row["shard"] is not None:
            paths.begin(Tick(run, row["forward"], Phase(row["phase"]), row["token"]))
            file = f"{folder}/{paths.file(row['module'], row['slot'], row['op'], row['call'])}"
            place = {"file": file, "stored_as": _save(out / file, load_row(reader, row))}
        yield row | place


def _tables(reader: DumpReader, run: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield what is known of the tokens of a run, by name."""
    yield "positions", reader.positions(run)
    with suppress(KeyNotFoundError):  # the run generated nothing
        yield "trace", reader.trace(run)
    predictions = reader.predictions(run) if isinstance(reader, NativeReader) else None
    if predictions is not None:
        yield "prompt_predictions", predictions


def _write_table(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(map(_cell, row.values()) for row in table.to_pylist())


def _weight(weight: Weight, out: Path, taken: set[str]) -> dict[str, Any]:
    """Write a weight, if it has values; return its row: further names are in `param`."""
    first, *others = weight.names
    module, _, name = first.rpartition(".")
    row: dict[str, Any] = {
        "module": module or ROOT,
        "slot": f"{weight.kind}.{name}",
        "param": " ".join(others),
        "dtype": weight.dtype,
        "shape": list(weight.shape),
        "nbytes": weight.nbytes,
        "reason": weight.reason,
        "status": SKIPPED if weight.reason else "stored",
    }
    if weight.reason:
        return row
    file = distinct(f"weights/{escaped(f'root.{first}')}", ".npy", taken)
    return row | {"file": file, "stored_as": _save(out / file, weight.load())}


def _save(path: Path, tensor: torch.Tensor) -> str:
    """Write an .npy file, which appears whole; return the type that it holds."""
    array = as_numpy(tensor)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path)
    with unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    unfinished.replace(path)
    return str(array.dtype)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _cell(row.get(name)) for name in COLUMNS}


def _cell(value: Any) -> Any:
    """Return a value as a cell of a table; a list is JSON, what is not known is empty."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list) else value
