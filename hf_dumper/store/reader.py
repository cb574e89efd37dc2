"""The reader of the native layout."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import torch

from hf_dumper.core.types import ROOT, SKIPPED, Phase, TensorKey
from hf_dumper.core.verified import Verified, covering
from hf_dumper.errors import DumpNotFoundError, KeyNotFoundError
from hf_dumper.store import layout
from hf_dumper.store.assemble import Part, join, select_row
from hf_dumper.store.describe import fill_statistics
from hf_dumper.store.files import read_json
from hf_dumper.store.keys import check_filters, matching_keys
from hf_dumper.store.lookup import Row
from hf_dumper.store.manifest import is_dump, read_manifest
from hf_dumper.store.mapping import ShardMaps
from hf_dumper.store.run_reader import RunReader
from hf_dumper.store.show import as_html, as_text
from hf_dumper.store.verified import ending_at
from hf_dumper.store.weights import Weights, native_weights


class NativeReader:
    """A dump of our own, opened.

    Opening reads the manifest; an index is read when its run is first asked for. Tensors are served
    from memory maps: changing one does not change the file, but later loads see the change.
    """

    def __init__(self, path: Path) -> None:
        """Open the dump at `path`.

        Raises:
            DumpNotFoundError: the folder has no manifest.
            DumpFormatError: the manifest is damaged or of an unknown version.
        """
        self._path = Path(path)
        self._manifest = read_manifest(self._path)
        self._runs: dict[int, RunReader] = {}
        self._maps = ShardMaps()

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Tell whether `path` is a dump in the native layout."""
        return is_dump(path)

    @property
    def path(self) -> Path:
        """The folder of the dump."""
        return self._path

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Identity of what was dumped."""
        return self._manifest

    def runs(self) -> tuple[int, ...]:
        """Return the numbers of the runs, ascending; those cut off are among them."""
        folder = self._path / layout.RUNS
        if not folder.is_dir():
            return ()
        return tuple(sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()))

    def run_info(self, run: int | None = None) -> dict[str, Any]:
        """Return what is known of a run; `complete` tells whether all of it is there."""
        return self._run(run).info()

    def keys(self, **filters: Any) -> Iterator[TensorKey]:
        """Return the keys whose index columns equal the filters, over all runs unless `run` is one.

        Records without a tensor, which were skipped, are left out unless `status` is a filter.

        Raises:
            KeyNotFoundError: a filter is no column of the index, or cannot have that value.
        """
        check_filters(filters)
        if "module" in filters:
            filters["module"] = _module(filters["module"])
        runs = (filters["run"],) if "run" in filters else self.runs()
        readers = [self._run(run) for run in runs]
        return chain.from_iterable(matching_keys(reader, filters) for reader in readers)

    def index(self, run: int | None = None) -> pa.Table:
        """Return the index of a run, all columns."""
        return self._run(run).index()

    def positions(self, run: int | None = None) -> pa.Table:
        """Return forward, row, column and position of every token that entered the model."""
        return self._run(run).positions()

    def statistics(self, run: int | None = None) -> pa.Table:
        """Return the index with statistics; those not made at capture are made of the bytes."""
        reader = self._run(run)
        return fill_statistics(reader.index(), lambda row: self._values(reader, row))

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
        """Return one tensor of a token; "" and "root" both name the outermost module.

        A token whose prompt was fed in several forwards is joined along its position axis, unless
        `forward` picks one of them; those that guidance ran beside the sequence are left out. `row`
        picks one row of the batch and drops that axis.

        Under speculative decoding one forward decides several tokens: what it holds is cut, along
        its position axis, at the column that decided this one. With `forward` it comes whole.

        Raises:
            KeyNotFoundError: there is no such tensor, or its values were not kept.
        """
        reader = self._run(run)
        module = _module(module)
        decided = self._decided(reader, token, forward)
        wanted: dict[str, int] = {"token": token if decided is None else decided.token}
        if forward is not None:
            wanted["forward"] = forward
        rank = min(reader.ranks(), default=0)
        rows = reader.lookup.find(module, slot, op="", **wanted, call=call, rank=rank)
        if forward is None:  # guidance runs the model once more, without the prompt
            rows = [r for r in rows if r.phase != Phase.GUIDANCE] or rows
        what = f"{module!r} {slot!r} of token {token}"
        extents = reader.extents if len(rows) > 1 or row is not None else {}
        part = join(
            [
                Part(r.forward, r.axes, self._tensor(reader, r, what), extents.get(r.forward))
                for r in rows
            ],
            what,
        )
        if decided is not None and forward is None:
            part = ending_at(part, module, slot, decided.columns_after(token), what)
        return part.tensor if row is None else select_row(part, row, what)

    def load_key(self, key: TensorKey) -> torch.Tensor:
        """Return the one tensor of a key, also of another rank or inside a function.

        Raises:
            KeyNotFoundError: there is no such tensor, or its values were not kept.
        """
        reader = self._run(key.run)
        row = reader.lookup.find_key(key._replace(module=_module(key.module)))
        return self._tensor(reader, row, f"{key.module!r} {key.slot!r}")

    def tree(self) -> dict[str, Any]:
        """Return the tree of the model's modules.

        Raises:
            KeyNotFoundError: the dump has none.
        """
        try:
            return read_json(self._path / layout.MODEL_TREE)
        except DumpNotFoundError as error:
            msg = f"{self._path} holds no {layout.MODEL_TREE}."
            raise KeyNotFoundError(msg) from error

    def trace(self, run: int | None = None) -> pa.Table:
        """Return how each token was chosen: one row per generated token and row of the batch.

        `docs/format.md` describes the columns.

        Raises:
            KeyNotFoundError: the run has no trace: a bare forward, or one that was cut off.
        """
        return self._run(run).trace()

    def predictions(self, run: int | None = None) -> pa.Table | None:
        """Return what the model predicts inside the prompt of a run, None if nobody asked for it.

        `docs/format.md` describes the columns.
        """
        return self._run(run).predictions()

    def facts_folder(self, run: int) -> Path:
        """Return the folder with `run.json` of a run, and what else is known of the whole run."""
        return self._run(run).path

    def weights(self) -> Weights:
        """Return the dumped parameters and buffers by name, each read when it is asked for.

        Raises:
            KeyNotFoundError: the dump has none.
            DumpFormatError: their index is damaged.
        """
        return native_weights(self._path, self._maps)

    def close(self) -> None:
        """Drop the memory maps and what was read; tensors that were loaded stay valid."""
        self._maps.close()
        self._runs.clear()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the reader."""
        self.close()

    def __repr__(self) -> str:
        """Return one line that says what is in the dump."""
        return as_text(self._path, self._manifest, map(self._run, self.runs()))

    def _repr_html_(self) -> str:
        return as_html(self._path, self._manifest, map(self._run, self.runs()))

    def _run(self, run: int | None) -> RunReader:
        if run is None:
            run = self._only_run()
        if run not in self._runs:
            if run not in self.runs():
                msg = f"No run {run!r} in {self._path}. Runs: {_listed(self.runs())}."
                raise KeyNotFoundError(msg)
            self._runs[run] = self._open(run)
        return self._runs[run]

    def _decided(self, reader: RunReader, token: int, forward: int | None) -> Verified | None:
        """Return the verifying forward that decided a token, None without speculative decoding."""
        if reader.verified is None:
            return None
        found = covering(reader.verified, token)
        if found is None and forward is None and token in reader.lookup:
            msg = (
                f"Token {token} of run {reader.run} is of a forward that verified drafts, and as "
                "the run was cut off there, which of its columns decided it is not known. Pass "
                "forward=... for all of them."
            )
            raise KeyNotFoundError(msg)
        return found if found is None or forward in (None, found.forward) else None

    def _only_run(self) -> int:
        runs = self.runs()
        if len(runs) != 1:
            msg = f"{self._path} has {len(runs)} runs: {_listed(runs)}. Pass run=... to choose."
            raise KeyNotFoundError(msg)
        return runs[0]

    def _tensor(self, reader: RunReader, row: Row, what: str) -> torch.Tensor:
        if row.status == SKIPPED:
            msg = f"{what} was not captured: {row.reason or 'no reason is recorded'}."
            raise KeyNotFoundError(msg)
        if row.shard is None:
            msg = f"{what}: values were not stored, only statistics; see statistics()."
            raise KeyNotFoundError(msg)
        return self._values(reader, row)

    def _open(self, run: int) -> RunReader:
        return RunReader(self._path, run)

    def _values(self, reader: RunReader, row: Row) -> torch.Tensor:
        return self._maps.tensor(reader.folder(row.rank), row)


def _module(name: str) -> str:
    if name in ("", ROOT):
        return ROOT
    return name.removeprefix(f"{ROOT}.")


def _listed(runs: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, runs[:12])) or "none"
    return f"{shown}, ..." if len(runs) > 12 else shown
