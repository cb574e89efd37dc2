"""One run being read: committed, still open, or cut off by a kill."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_dumper.core.verified import Verified
from hf_dumper.errors import DumpNotFoundError
from hf_dumper.store import layout
from hf_dumper.store.assemble import Extent, extents
from hf_dumper.store.files import read_json
from hf_dumper.store.lookup import COLUMNS, TEXTS, Lookup
from hf_dumper.store.tables import encode, read_parquet, read_stream
from hf_dumper.store.trace import read_predictions, read_trace
from hf_dumper.store.verified import verified_run


class RunReader:
    """The files of one run; `lookup` and `extents` are read once, as they are at that moment.

    Attributes:
        path: The folder with `run.json`.
    """

    def __init__(self, dump: Path, run: int, folder: Path | None = None) -> None:
        """Read nothing yet; `folder` is the run's, where it is not that of the native layout."""
        self.run = run
        self._dump = dump
        self.path = folder or layout.run_folder(dump, run)
        self._folders: dict[int, Path] = {}

    def info(self) -> dict[str, Any]:
        """Return `run.json`, or what is known of a run that has none."""
        for name in (layout.RUN, layout.RUN_PARTIAL, layout.RUN):
            try:
                return read_json(self.path / name)
            except DumpNotFoundError:
                continue  # a commit may come between two looks, hence the second one
        return {"run": self.run, "complete": False, "incomplete": "stopped before it began"}

    def ranks(self) -> list[int]:
        """Return the numbers of the processes that wrote the run."""
        names = (path.name.removeprefix("rank-") for path in self.path.glob("rank-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def folder(self, rank: int) -> Path:
        """Return the folder of a process."""
        if rank not in self._folders:
            self._folders[rank] = self.path / f"rank-{rank}"
        return self._folders[rank]

    def index(self, columns: Sequence[str] | None = None, encoded: Sequence[str] = ()) -> pa.Table:
        """Read the named columns, or all, of the index; those `encoded` come as dictionaries."""
        return self._table(layout.INDEX, layout.INDEX_SCHEMA, columns, encoded)

    def positions(self) -> pa.Table:
        """Read the positions of the tokens of each forward."""
        return self._table(layout.POSITIONS, layout.POSITIONS_SCHEMA)

    def trace(self) -> pa.Table:
        """Read how each token was chosen.

        Raises:
            KeyNotFoundError: the run has no trace.
        """
        return read_trace(self.path, f"Run {self.run} of {self._dump}")

    def predictions(self) -> pa.Table | None:
        """Read what the model predicts inside the prompt, None where nobody asked for it."""
        return read_predictions(self.path)

    @cached_property
    def lookup(self) -> Lookup:
        """The index, arranged for questions."""
        return Lookup(self.index(COLUMNS, TEXTS), f"run {self.run} of {self._dump}")

    @cached_property
    def extents(self) -> dict[int, Extent]:
        """Size of the input of each forward."""
        return dict(extents(self.positions()))

    @cached_property
    def verified(self) -> tuple[Verified, ...] | None:
        """The verifying forwards of speculative decoding, None without it."""
        return verified_run(self.info(), partial(self.index, ("forward", "token")), self.positions)

    def _table(
        self,
        name: str,
        schema: pa.Schema,
        columns: Sequence[str] | None = None,
        encoded: Sequence[str] = (),
    ) -> pa.Table:
        columns = schema.names if columns is None else columns
        tables = [
            table
            for rank in self.ranks()
            if (table := _read(self.folder(rank) / name, schema, columns, encoded)) is not None
        ]
        if tables:
            return pa.concat_tables(tables)
        return encode(schema.empty_table().select(list(columns)), encoded)


def _read(
    path: Path, schema: pa.Schema, columns: Sequence[str], encoded: Sequence[str]
) -> pa.Table | None:
    for _ in range(2):  # twice, since the run may be committed between two looks
        done = path.with_suffix(".parquet")
        if done.exists():
            return read_parquet(done, schema, columns, encoded)
        with suppress(FileNotFoundError):
            table = read_stream(path.with_suffix(".partial"), schema)
            return encode(table.select(list(columns)), encoded)
    return None
