"""One layout of a dump made from another; every value stays what it is."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.weights import Weight
from hf_dumper.errors import ConfigError, DumpWriteError, KeyNotFoundError
from hf_dumper.store.directory import DirectorySink
from hf_dumper.store.files import write_json
from hf_dumper.store.kept import TOKENIZER, tokenizer_folder, write_predictions
from hf_dumper.store.layout import MODEL_TREE
from hf_dumper.store.msit import MsitSink
from hf_dumper.store.npy import write_npy
from hf_dumper.store.reader import NativeReader
from hf_dumper.store.replay import check_replayable, replay_run
from hf_dumper.store.run_sink import writing
from hf_dumper.store.weights import Weights

NATIVE, MSIT, NPY = "native", "msit", "npy"
TARGETS: Final = (NATIVE, MSIT, NPY)

_OF_A_LAYOUT: Final = frozenset({"kind", "format_version", "tensors"})
"""What a manifest says about the layout, and not about the model."""


def convert(
    reader: DumpReader,
    out: Path,
    to: str,
    on_progress: Callable[[int], None] = lambda _n: None,
) -> None:
    """Write what an open dump holds into the new folder `out`, in a layout of TARGETS.

    Runs keep their numbers, and one that is not whole stays marked as such. Tensors pass through
    memory a few at a time. `on_progress` is told how many records were written just now.

    Raises:
        ConfigError: there is no such layout.
        DumpFormatError: the dump is damaged, or several processes wrote a run of it and `to` is not
            NPY.
        DumpWriteError: `out` is not empty, or cannot be written.
    """
    if to not in TARGETS:
        msg = f"Cannot convert to {to!r}; there are {', '.join(map(repr, TARGETS))}."
        raise ConfigError(msg)
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            msg = f"{out} exists and is not empty. Choose a new folder."
            raise DumpWriteError(msg)
        weights = _weights(reader)
        if to == NPY:
            tree = _tree(reader)
            write_npy(reader, out, weights, on_progress)
            if tree is not None:
                write_json(out / MODEL_TREE, tree)
            return
        for run in reader.runs():
            check_replayable(reader, run)
        sink = _sink(reader, out, to)
        try:
            _furnish(reader, sink, weights)
            for run in reader.runs():
                replay_run(reader, run, sink, on_progress)
                _carry_predictions(reader, run, out)
        finally:
            sink.close()


def _sink(reader: DumpReader, out: Path, to: str) -> DirectorySink | MsitSink:
    indexes = [reader.index(run) for run in reader.runs()]
    options = reader.manifest.get("identity", {}).get("dump_config") or {}
    kind: Callable[..., DirectorySink | MsitSink] = DirectorySink
    if to == MSIT:
        kind = partial(MsitSink, device=next(_devices(indexes), "cpu"))
    return kind(
        out,
        _manifest(reader.manifest, to),
        tree=_tree(reader),
        tensors=any(_has(index, "shard") for index in indexes),
        statistics=any(_has(index, "count") for index in indexes),
        analyze=bool(options.get("analyze")),
    )


def _furnish(reader: DumpReader, sink: DirectorySink | MsitSink, weights: Sequence[Weight]) -> None:
    folder = tokenizer_folder(reader.path)
    if folder is not None:
        sink.keep(TOKENIZER, lambda to: shutil.copytree(folder, to))
    if weights:
        sink.keep_weights(weights)


def _carry_predictions(reader: DumpReader, run: int, out: Path) -> None:
    table = reader.predictions(run) if isinstance(reader, NativeReader) else None
    if table is not None:
        write_predictions(out, run, table)


def _manifest(manifest: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return the manifest of the converted dump; its configuration names the new layout."""
    found = {name: value for name, value in manifest.items() if name not in _OF_A_LAYOUT}
    identity = dict(found.get("identity") or {})
    if isinstance(identity.get("dump_config"), dict):
        identity["dump_config"] = identity["dump_config"] | {"layout": to}
    return found | {"identity": identity}


def _weights(reader: DumpReader) -> list[Weight]:
    try:
        weights = reader.weights()
    except KeyNotFoundError:  # the dump has none
        return []
    return weights.described() if isinstance(weights, Weights) else []


def _tree(reader: DumpReader) -> Mapping[str, Any] | None:
    try:
        return reader.tree()
    except KeyNotFoundError:  # the dump has none
        return None


def _has(index: pa.Table, column: str) -> bool:
    return bool(index.column(column).null_count < index.num_rows)


def _devices(indexes: Sequence[pa.Table]) -> Iterator[str]:
    """Yield the devices of the records, as msit writes them."""
    for index in indexes:
        for device in pc.unique(index.column("device")).to_pylist():
            if device:
                yield "".join(c for c in device if c.isascii() and c.isalnum())
