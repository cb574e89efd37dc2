"""The sink that writes msit's layout: a folder for each run, a .pth file for each tensor.

Beside the files of msit, the folder `hf_dumper/` of a run holds what they have no place for: the
manifest, the run's facts, and its index, all as in the native layout. So nothing is lost, a run
that is not whole says so, and every reader of an index reads this layout, too.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hf_dumper.core.types import FORMAT_VERSION, Batch, RunInfo, RunResult, Tick
from hf_dumper.core.weights import Weight
from hf_dumper.errors import DumpWriteError
from hf_dumper.store.budget import Budget, bytes_in
from hf_dumper.store.files import write_json
from hf_dumper.store.layout import MANIFEST, MODEL_TREE
from hf_dumper.store.manifest import add_note
from hf_dumper.store.paths import Paths, prefixed
from hf_dumper.store.pth_files import PthFiles
from hf_dumper.store.run_sink import RunSink, writing
from hf_dumper.store.run_writer import RunWriter
from hf_dumper.store.sheets import AnalysisSheet, StatisticsSheets
from hf_dumper.store.weights import write_weight_files

KIND: Final = "hf_dumper msit dump"
"""Value of `kind` in the manifest of every run in this layout."""

SIDECAR: Final = "hf_dumper"
"""Folder, in that of a run, with what msit has no place for."""

TENSORS: Final = "torch_tensors"

FOLDER: Final = re.compile(r"msit_dump_\d{8}_\d{6}(?:_(\d+))?")
"""Name of a run's folder; the number of the run follows the time, unless it is 0."""


class MsitSink(RunSink):
    """Writes each run into a folder of its own below `path`, which may hold anything else.

    Numbers of runs go on from those that are there.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        *,
        tree: Mapping[str, Any] | None = None,
        tensors: bool = True,
        statistics: bool = False,
        analyze: bool = False,
        device: str = "cpu",
        rank: int = 0,
        max_bytes: int | None = None,
        durable: bool = False,
    ) -> None:
        """Create the folder at `path`, but none of a run.

        The arguments are those of a DirectorySink. Nothing is ever overwritten. `device` is where
        the model is, such as "cuda0". What other programs keep at `path` does not count as bytes
        of the dump.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        super().__init__(path, max_bytes=max_bytes, durable=durable)
        self._manifest = dict(manifest)
        self._tree = None if tree is None else _named_as_msit(tree)
        self._tensors = tensors
        self._statistics = statistics
        self._analyze = analyze
        self._rank = rank
        self._inside = f"{TENSORS}/{device}_{os.getpid()}"
        self._time = f"{datetime.now():%Y%m%d_%H%M%S}"
        self._keepers: dict[str, Callable[[Path], object]] = {}
        self._weights: Sequence[Weight] = ()
        self._folders: list[Path] = []
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a JSON-ready fact to the manifest of every run of this sink, beside the identity.

        Raises:
            CaptureError: the manifest uses the name itself.
            DumpWriteError: a manifest cannot be written.
        """
        with writing(self.path):
            for folder in self._folders:
                add_note(folder / SIDECAR, name, value)
        self._manifest[name] = dict(value)

    def keep(self, name: str, save: Callable[[Path], object]) -> None:
        """Have `save` write the folder `name` into that of every run."""
        self._keepers[name] = save

    def keep_weights(self, weights: Sequence[Weight]) -> None:
        """Write the weights into the folder of the next run."""
        self._weights = weights

    def _create(self, wanted: int) -> tuple[int, Path]:
        return _claim(self.path, self._time, wanted)

    def _begin(self, folder: Path, run: RunInfo, budget: Budget) -> "_Run":
        weights = sum(weight.nbytes for weight in self._weights)
        budget.claim(weights)  # before they are written, as they may be large
        self._furnish(folder)
        budget.claim(bytes_in(folder) - weights)
        paths = Paths(".pth")
        files = PthFiles(
            folder, self._inside, paths, budget, tensors=self._tensors, durable=self._durable
        )
        sheets = list(self._sheets(folder, paths, budget))
        place = folder / SIDECAR / f"rank-{self._rank}"
        place.mkdir()
        writer = RunWriter(
            place,
            run,
            rank=self._rank,
            shards=files,
            statistics=self._statistics or self._analyze,
            on_forward=partial(_give, sheets),
            budget=budget,
            durable=self._durable,
        )
        self._folders.append(folder)
        self._weights = ()
        return _Run(writer, files.begin)

    def _bytes_before(self) -> int:
        return sum(map(bytes_in, _run_folders(self.path)))

    def _sheets(
        self, folder: Path, paths: Paths, budget: Budget
    ) -> Iterator[Callable[[pa.RecordBatch], None]]:
        """Yield what takes the index of each forward that ends."""
        if self._statistics:
            yield StatisticsSheets(folder / self._inside, paths, budget).add
        if self._analyze:
            analysis = AnalysisSheet(folder, budget=budget)
            self._held.callback(analysis.close)
            yield analysis.add

    def _furnish(self, folder: Path) -> None:
        """Write what a run's folder holds besides the run.

        The folder is known as a dump once it has `torch_tensors`: the manifest is there by then.
        """
        inside, sidecar = folder / self._inside, folder / SIDECAR
        sidecar.mkdir()
        head = {"kind": KIND, "format_version": FORMAT_VERSION}
        write_json(sidecar / MANIFEST, head | self._manifest | head | {"tensors": self._inside})
        for name, save in self._keepers.items():
            save(folder / name)
        inside.mkdir(parents=True)
        if self._tree is not None:
            write_json(inside / MODEL_TREE, self._tree)
        if self._weights:
            write_weight_files(folder, f"{self._inside}/weights", sidecar, self._weights)


class _Run:
    """One run being written by a RunWriter, after `begin` was told of which forward."""

    def __init__(self, writer: RunWriter, begin: Callable[[Tick], None]) -> None:
        self._writer = writer
        self._begin = begin

    def write(self, batch: Batch) -> None:
        self._begin(batch.tick)
        self._writer.write(batch)

    def commit(self, result: RunResult) -> None:
        self._writer.commit(result)

    def close(self) -> None:
        self._writer.close()


def _give(takers: Sequence[Callable[[pa.RecordBatch], None]], index: pa.RecordBatch) -> None:
    for take in takers:
        take(index)


def _claim(path: Path, time: str, wanted: int) -> tuple[int, Path]:
    """Create the folder of a run; return its number and itself."""
    while True:
        taken = _run_folders(path).values()
        number = wanted if wanted >= 0 else max(taken, default=-1) + 1
        folder = path / (f"msit_dump_{time}_{number}" if number else f"msit_dump_{time}")
        if number in taken:
            msg = f"Run {wanted} exists in {path} already; run=-1 takes the next free number."
            raise DumpWriteError(msg)
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir()
            return number, folder


def _run_folders(path: Path) -> dict[Path, int]:
    """Return the folders of runs below a path, with their numbers."""
    matches = ((child, FOLDER.fullmatch(child.name)) for child in path.iterdir())
    return {child: int(match[1] or 0) for child, match in matches if match}


def _named_as_msit(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": prefixed(tree["name"]),
        "type": tree.get("type"),
        "children": [_named_as_msit(child) for child in tree.get("children", ())],
    }
