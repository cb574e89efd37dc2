"""Dumps on a hub, read without being downloaded: tables and single tensors as they are needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch

from hf_dumper.errors import DumpFormatError, DumpNotFoundError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.folder import HubFolder
from hf_dumper.hub.names import parse_repo
from hf_dumper.store import layout
from hf_dumper.store.lookup import Row
from hf_dumper.store.manifest import is_dump
from hf_dumper.store.mapping import PLAIN_NAME, ShardMaps
from hf_dumper.store.reader import NativeReader
from hf_dumper.store.run_reader import RunReader
from hf_dumper.store.trace import PREDICTIONS, TRACE
from hf_dumper.store.weights import INDEX, WEIGHTS, Weights

SMALL: Final = 4 << 20
"""Bytes up to which a shard is fetched whole: a request costs as much time."""

PIECES: Final = 16
"""Pieces of a shard after which the rest is fetched, too: somebody reads all of it."""


class HubReader(NativeReader):
    """A dump in a repository of a hub.

    Opening fetches the manifest. Facts and tables of a run are fetched when they are asked for, a
    tensor as its range of bytes, unless its shard is small or has been asked for often.
    """

    def __init__(self, url: str, hub: Hub | None = None) -> None:
        """Open the dump that `url` names: `hf://datasets/user/name[@revision][/folder]`.

        Raises:
            HubError: the hub does not give it, in one line.
            DumpNotFoundError: the repository holds no dump there.
            DumpFormatError: the manifest is damaged or of an unknown version.
        """
        repo = parse_repo(url, "dataset")
        self._source = HubFolder(hub or Hub(), repo)
        self._source.fetch(layout.MANIFEST)
        if not is_dump(self._source.path):
            raise DumpNotFoundError(_why_none(self._source))
        super().__init__(self._source.path)
        self._maps = _HubMaps(self._source)

    @property
    def url(self) -> str:
        """The name of the dump on the hub."""
        return str(self._source.repo)

    @property
    def path(self) -> Path:
        """The folder that what is fetched lies in; it is not the whole dump."""
        self._source.fetch(*(n for n in self._source.names() if n.startswith("tokenizer/")))
        return super().path

    @property
    def received(self) -> int:
        """Bytes that came over the network."""
        return self._source.received

    def tree(self) -> dict[str, Any]:
        """Return the tree of the model's modules."""
        self._source.fetch(layout.MODEL_TREE)
        return super().tree()

    def weights(self) -> Weights:
        """Return the dumped parameters and buffers by name, each fetched when it is asked for."""
        self._source.fetch(f"{WEIGHTS}/{INDEX}")
        return super().weights()

    def facts_folder(self, run: int) -> Path:
        """Return the folder with what is known of the whole run, fetched."""
        folder = super().facts_folder(run)
        start = f"{folder.relative_to(self._source.path).as_posix()}/"
        names = (n for n in self._source.names() if n.startswith(start))
        self._source.fetch(*(n for n in names if "/" not in n.removeprefix(start)))
        return folder

    def __repr__(self) -> str:
        """Return one line that says what is in the dump."""
        return super().__repr__().replace(repr(str(self._path)), repr(self.url), 1)

    def _open(self, run: int) -> RunReader:
        return _HubRun(self._source, run)


class _HubRun(RunReader):
    """One run of a dump on a hub."""

    def __init__(self, source: HubFolder, run: int) -> None:
        super().__init__(source.path, run)
        self._source = source

    def info(self) -> dict[str, Any]:
        self._fetch(layout.RUN, layout.RUN_PARTIAL)
        return super().info()

    def trace(self) -> pa.Table:
        self._fetch(TRACE)
        return super().trace()

    def predictions(self) -> pa.Table | None:
        self._fetch(PREDICTIONS)
        return super().predictions()

    def _table(
        self,
        name: str,
        schema: pa.Schema,
        columns: Sequence[str] | None = None,
        encoded: Sequence[str] = (),
    ) -> pa.Table:
        kinds = ("parquet", "partial")
        self._fetch(*(f"rank-{rank}/{name}.{kind}" for rank in self.ranks() for kind in kinds))
        return super()._table(name, schema, columns, encoded)

    def _fetch(self, *names: str) -> None:
        start = self.path.relative_to(self._source.path).as_posix()
        self._source.fetch(*(f"{start}/{name}" for name in names))


class _HubMaps(ShardMaps):
    """Shards on a hub: a piece of one is mapped like a whole one."""

    def __init__(self, source: HubFolder) -> None:
        super().__init__()
        self._source = source

    def tensor(self, folder: Path, row: Row) -> torch.Tensor:
        start = folder.relative_to(self._source.path).as_posix()
        names = (str(row.shard), layout.partial_name(str(row.shard)))
        name = next((f"{start}/{n}" for n in names if self._has(f"{start}/{n}")), None)
        known = None not in (row.offset, row.nbytes) and row.nbytes != 0
        if name is None or not known or not PLAIN_NAME.fullmatch(str(row.shard)):
            return super().tensor(folder, row)
        place = None if self._is_worth_all(name) else self._piece(name, row)
        if place is None:
            self._source.fetch(name)
            self._source.drop_pieces(name)
            return super().tensor(folder, row)
        return super().tensor(place.parent, row._replace(shard=place.name, offset=0))

    def _piece(self, name: str, row: Row) -> Path | None:
        size = self._source.size(name) or 0
        if row.offset < 0 or row.nbytes < 0 or row.offset + row.nbytes > size:
            msg = f"{self._source.repo}: {name} is damaged: it ends at byte {size}."
            raise DumpFormatError(msg)
        return self._source.piece(name, row.offset, row.nbytes)

    def _has(self, name: str) -> bool:
        return self._source.size(name) is not None

    def _is_worth_all(self, name: str) -> bool:
        small = (self._source.size(name) or 0) <= SMALL
        return small or self._source.is_here(name) or self._source.pieces_of(name) >= PIECES


def _why_none(source: HubFolder) -> str:
    """Say what is there instead."""
    names = list(source.names())
    found = [n.removesuffix(layout.MANIFEST) for n in names if n.endswith(f"/{layout.MANIFEST}")]
    if any(name.startswith("msit_dump_") for name in names):
        what = "a dump in msit's layout, which is read from a folder only: hf-dumper download"
        return f"{source.repo} holds {what} {source.repo} --local-dir FOLDER fetches it."
    where = (
        f" There is one in {', '.join(repr(f.rstrip('/')) for f in found[:5])}." if found else ""
    )
    return f"{source.repo} holds no dump in our own layout ({layout.MANIFEST}).{where}"
