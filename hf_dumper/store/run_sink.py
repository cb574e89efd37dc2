"""What the sinks that write into folders share: one run after the other, within a bound."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Protocol

import pyarrow as pa

from hf_dumper.core.types import Batch, RunInfo, RunResult
from hf_dumper.errors import CaptureError, DumpError, DumpWriteError
from hf_dumper.store.budget import COMMIT_BYTES, Budget, bytes_in


class OpenRun(Protocol):
    """A run that is being written, such as a RunWriter."""

    def write(self, batch: Batch) -> None:
        """Write a batch."""

    def commit(self, result: RunResult) -> None:
        """Give every file its final name."""

    def close(self) -> None:
        """Close the files as they are; may be called twice."""


class RunSink(ABC):
    """A sink of which each run has a folder.

    `run` is the number of the run that was opened last. A run that is not committed, be it for a
    kill or an error, can be read up to its last whole forward.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None, durable: bool = False) -> None:
        """Write below `path`.

        `max_bytes` bounds what the files of the dump take together; what would exceed it is an
        error. With `durable`, a run is on the disk itself when it is committed.
        """
        self.path = Path(path)
        self.run = -1
        self._folder = self.path
        self._max_bytes = max_bytes
        self._durable = durable
        self._taken: int | None = None
        self._open: OpenRun | None = None
        self._held = ExitStack()  # what else is open as long as the run is
        pa.array([0])  # imports pandas on its first call, which is no work for the first forward

    def open_run(self, run: RunInfo) -> None:
        """Begin a run under its number, or under the next free one when that is -1.

        Raises:
            DumpWriteError: the number is taken, the folder cannot be written, or its bound is
                reached.
        """
        if self._open:
            msg = f"Run {self.run} of {self.path} is still open."
            raise CaptureError(msg)
        with writing(self.path):
            budget = self._budget(run)
            number, folder = self._create(run.run)
            try:
                self._open = self._begin(folder, replace(run, run=number), budget)
            except BaseException:
                self._held.close()
                rmtree(folder, ignore_errors=True)
                raise
        self.run, self._folder = number, folder

    def share_bound(self, processes: int) -> None:
        """Take an equal part of what `max_bytes` leaves now, before any process writes a run."""
        if self._max_bytes is not None and processes > 1:
            self._taken = self._bytes_before()
            self._max_bytes = self._taken + (self._max_bytes - self._taken) // processes

    def write(self, batch: Batch) -> None:
        """Write a batch of the open run.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        with writing(self.path):
            self._open_run().write(batch)

    def commit_run(self, result: RunResult) -> None:
        """End the run. After an error it stays readable, and marked as not complete.

        Raises:
            DumpWriteError: the folder cannot be written.
        """
        run = self._open_run()
        try:
            with writing(self.path):
                run.commit(result)
        finally:
            self._open = None
            run.close()
            self._held.close()
            if self._taken is not None:
                self._taken += bytes_in(self._folder)

    def close(self) -> None:
        """End an open run as incomplete; may be called twice."""
        if self._open:
            self.commit_run(RunResult({}, {}, incomplete="closed before the run ended"))

    @abstractmethod
    def _create(self, wanted: int) -> tuple[int, Path]:
        """Create the folder of a run, -1 being the next free one; return its number and itself."""

    @abstractmethod
    def _begin(self, folder: Path, run: RunInfo, budget: Budget) -> OpenRun:
        """Begin a run in its folder, which is empty."""

    def _bytes_before(self) -> int:
        """Return what the dump takes before the first run of this sink."""
        return bytes_in(self.path)

    def _check_room(self, nbytes: int) -> None:
        """See that so many bytes fit into the dump before its first run.

        Raises:
            DumpWriteError: they do not.
        """
        if self._max_bytes is not None:
            Budget(self._max_bytes, self._bytes_before()).claim(nbytes)

    def _budget(self, run: RunInfo) -> Budget:
        """Return what the dump may still take, less what the end of the run will need."""
        if self._max_bytes is None:
            return Budget()
        if self._taken is None:
            self._taken = self._bytes_before()
        budget = Budget(self._max_bytes, self._taken)
        # Twice, and in JSON with a line for each number: at the end there are two such files.
        budget.claim(COMMIT_BYTES + 4 * len(json.dumps(dict(run.prompt), default=str)))
        return budget

    def _open_run(self) -> OpenRun:
        if self._open is None:
            msg = f"No run of {self.path} is open."
            raise CaptureError(msg)
        return self._open


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
