"""The seams between layers: what a sink and a reader must do, and no more."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import pyarrow as pa
import torch

from hf_dumper.core.types import Batch, RunInfo, RunResult, TensorKey
from hf_dumper.core.verdicts import Comparison


class Sink(Protocol):
    """Where records go.

    `write` takes ownership of the batch and may be called from one thread only. A run that was
    opened is always committed, also after an error; its result then says why it is not whole.
    """

    def open_run(self, run: RunInfo) -> None:
        """Begin a run."""

    def write(self, batch: Batch) -> None:
        """Take a batch; batches of one forward follow each other, the last has `calls`."""

    def commit_run(self, result: RunResult) -> None:
        """End the run; when this returns, the run is where it belongs, whole or marked."""

    def close(self) -> None:
        """End an open run as incomplete and free what is held; may be called twice."""


@runtime_checkable
class DumpReader(Protocol):
    """One dump of any engine, opened: an index of keys and lazily loaded tensors."""

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Tell from file names and headers whether `path` is a dump of this reader's kind."""

    @property
    def path(self) -> Path:
        """The folder of the dump."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Identity of what was dumped."""

    def runs(self) -> Sequence[int]:
        """Numbers of the runs, ascending."""

    def keys(self, **filters: Any) -> Iterator[TensorKey]:
        """Keys of the tensors whose index columns equal the filters."""

    def load(
        self,
        module: str,
        slot: str = "output",
        token: int = 0,
        *,
        run: int | None = None,
        call: int = 0,
        forward: int | None = None,
        row: int | None = None,
    ) -> torch.Tensor:
        """Return one tensor; "" and "root" both name the outermost module."""

    def load_key(self, key: TensorKey) -> torch.Tensor:
        """Return the one tensor of a key, also of another rank or inside a function."""

    def run_info(self, run: int | None = None) -> Mapping[str, Any]:
        """Return what went into a run, under which regime, and what came out."""

    def index(self, run: int | None = None) -> pa.Table:
        """Return every column of a run's index, one row per record."""

    def positions(self, run: int | None = None) -> pa.Table:
        """Return forward, row, column and position of every token of a run."""

    def statistics(self, run: int | None = None) -> pa.Table:
        """Return the index with the statistics of every record that has values."""

    def tree(self) -> Mapping[str, Any]:
        """Return the modules as nested {"name", "type", "children"}."""

    def trace(self, run: int | None = None) -> pa.Table:
        """Return what was chosen at each generated token."""

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Return the dumped parameters and buffers."""

    def close(self) -> None:
        """Drop the memory maps."""

    def __enter__(self) -> Self:
        """Return the reader itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the reader."""


class Reporter(Protocol):
    """Writes a comparison in one format."""

    def write(self, comparison: Comparison, path: Path) -> None:
        """Write the comparison into a file, over one that is there."""
