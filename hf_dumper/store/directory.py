"""The sink that writes the native layout."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa

from hf_dumper.core.types import Batch, RunInfo, RunResult
from hf_dumper.core.weights import Weight
from hf_dumper.errors import CaptureError, DumpError, DumpWriteError
from hf_dumper.store import layout
from hf_dumper.store.budget import COMMIT_BYTES, Budget, bytes_in
from hf_dumper.store.lock import DumpLock, lock_dump
from hf_dumper.store.manifest import add_note, prepare_dump, prepare_folder
from hf_dumper.store.run_writer import RunWriter
from hf_dumper.store.shards import SHARD_BYTES, ShardSet
from hf_dumper.store.sheets import AnalysisSheet
from hf_dumper.store.weights import WEIGHTS, check_weights, write_weights


class DirectorySink:
    """Writes runs into a dump folder, and creates it.

    `run` is the number of the run that was opened last. A run that is not committed, be it for a
    kill or an error, can be read up to its last whole forward.
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
        overwrite: bool = False,
        rank: int = 0,
        shard_bytes: int = SHARD_BYTES,
        max_bytes: int | None = None,
        durable: bool = False,
    ) -> None:
        """Create or continue the dump at `path`.

        `manifest["identity"]` says what is dumped: runs of different identities never share a
        dump. `tensors` keeps values, `statistics` computes statistics behind the forward, `analyze`
        writes them into a sheet of the run as well.
        `overwrite` removes an existing dump, but never a folder that is none. `shard_bytes` is the
        size at which the next shard begins. `max_bytes` bounds what the files of the dump take
        together; what would exceed it is an error. With `durable`, a run is on the disk itself when
        it is committed.

        Raises:
            DumpIdentityError: the folder holds a dump of something else.
            DumpFormatError: the folder is not empty and is no dump, or a damaged one.
            DumpWriteError: the folder cannot be written.
        """
        self.path = Path(path)
        self.run = -1
        self._tensors = tensors
        self._statistics = statistics
        self._analyze = analyze
        self._analysis: AnalysisSheet | None = None
        self._rank = rank
        self._shard_bytes = shard_bytes
        self._max_bytes = max_bytes
        self._durable = durable
        self._taken: int | None = None
        self._writer: RunWriter | None = None
        pa.array([0])  # imports pandas on its first call, which is no work for the first forward
        with writing(self.path):
            prepare_dump(self.path, manifest, tree, overwrite=overwrite, durable=durable)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a JSON-ready fact to the manifest, beside the identity.

        Raises:
            CaptureError: the manifest uses the name itself.
            DumpWriteError: the manifest cannot be written.
        """
        with writing(self.path):
            add_note(self.path, name, value)

    def keep(self, name: str, save: Callable[[Path], object]) -> None:
        """Have `save` write the folder `name` of the dump.

        Raises:
            DumpWriteError: it cannot be written.
        """
        with writing(self.path):
            save(self.path / name)

    def keep_weights(self, weights: Sequence[Weight]) -> None:
        """Write the weights, or make sure that those that are there already are these.

        Raises:
            DumpIdentityError: the dump holds others.
            DumpWriteError: they cannot be written.
        """
        with writing(self.path):
            folder = self.path / WEIGHTS
            if folder.exists():
                check_weights(folder, weights)
            else:
                write_weights(folder, weights)

    def open_run(self, run: RunInfo) -> None:
        """Begin a run under its number, or under the next free one when that is -1.

        Raises:
            DumpWriteError: the number is taken, the folder cannot be written, or its bound is
                reached.
        """
        if self._writer:
            msg = f"Run {self.run} of {self.path} is still open."
            raise CaptureError(msg)
        with writing(self.path):
            budget = self._budget(run)
            number = _claim(self.path, run.run, after=self.run)
            try:
                self._writer = self._begin(replace(run, run=number), budget)
            except BaseException:
                rmtree(layout.run_folder(self.path, number), ignore_errors=True)
                raise
            self.run = number

    def write(self, batch: Batch) -> None:
        """Write a batch of the open run.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        with writing(self.path):
            self._open_writer().write(batch)

    def commit_run(self, result: RunResult) -> None:
        """End the run. After an error it stays readable, and marked as not complete.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        writer = self._open_writer()
        try:
            with writing(self.path):
                writer.commit(result)
        finally:
            self._writer = None
            writer.close()
            if self._analysis:
                self._analysis.close()
            if self._taken is not None:
                self._taken += bytes_in(layout.run_folder(self.path, self.run))

    def close(self) -> None:
        """End an open run as incomplete; may be called twice."""
        if self._writer:
            self.commit_run(RunResult({}, {}, incomplete="closed before the run ended"))

    def _begin(self, run: RunInfo, budget: Budget) -> RunWriter:
        folder = layout.rank_folder(self.path, run.run, self._rank)
        folder.mkdir()
        terms: dict[str, Any] = {"budget": budget, "durable": self._durable}
        shards = ShardSet(folder, run.expected_records, self._shard_bytes, **terms)
        self._analysis = AnalysisSheet(folder.parent, f"{folder.name}/") if self._analyze else None
        return RunWriter(
            folder,
            run,
            rank=self._rank,
            shards=shards if self._tensors else None,
            statistics=self._statistics or self._analyze,
            on_forward=self._analysis.add if self._analysis else None,
            **terms,
        )

    def _budget(self, run: RunInfo) -> Budget:
        """Return what the dump may still take, less what the end of the run will need."""
        if self._max_bytes is None:
            return Budget()
        if self._taken is None:
            self._taken = bytes_in(self.path)
        budget = Budget(self._max_bytes, self._taken)
        # Twice, and in JSON with a line for each number: at the end there are two such files.
        budget.claim(COMMIT_BYTES + 4 * len(json.dumps(dict(run.prompt), default=str)))
        return budget

    def _open_writer(self) -> RunWriter:
        if self._writer is None:
            msg = f"No run of {self.path} is open."
            raise CaptureError(msg)
        return self._writer


def open_folder(path: Path) -> DumpLock:
    """Create the folder of a dump if there is none, and take its lock.

    Raises:
        DumpFormatError: the folder is not empty and is no dump; nothing is changed in it.
        DumpWriteError: another process is writing the dump, or the folder cannot be written.
    """
    with writing(path):
        prepare_folder(path)
        return lock_dump(path)


def _claim(path: Path, wanted: int, after: int) -> int:
    """Create the folder of a run: the wanted one, or for -1 the next free one.

    `after` is the run that was opened before, -1 for none: thousands need not be looked at again.
    """
    runs = path / layout.RUNS
    runs.mkdir(exist_ok=True)
    number = wanted
    if wanted < 0 and after < 0:
        after = max((int(c.name) for c in runs.iterdir() if c.name.isdecimal()), default=-1)
    if wanted < 0:
        number = after + 1
    while True:
        try:
            layout.run_folder(path, number).mkdir()
        except FileExistsError:
            if wanted >= 0:
                msg = f"Run {wanted} exists in {path} already; run=-1 takes the next free number."
                raise DumpWriteError(msg) from None
            number += 1  # another process was quicker
        else:
            return number


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system says into one line of ours."""
    try:
        yield
    except DumpError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = getattr(error, "filename", None) or path
        msg = f"Cannot write {where}: {reason}"
        raise DumpWriteError(msg) from error
