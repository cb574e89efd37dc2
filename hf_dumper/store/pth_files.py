"""The tensors of a run in msit's layout: a .pth file each."""

import shutil
from pathlib import Path

from hf_dumper.core.arena import Span
from hf_dumper.core.types import Description, Records, Tick
from hf_dumper.errors import DumpWriteError
from hf_dumper.store.budget import Budget
from hf_dumper.store.dtypes import tensor_at, torch_dtype
from hf_dumper.store.durable import sync_all
from hf_dumper.store.layout import tensor_name
from hf_dumper.store.paths import Paths
from hf_dumper.store.pth import ROOM, write_pth
from hf_dumper.store.shards import Places, nowhere


class PthFiles:
    """The tensors of one run, a file each: what a RunWriter asks of shards.

    Aliases are written out, as their owner's file once more.
    """

    def __init__(
        self,
        top: Path,
        inside: str,
        paths: Paths,
        budget: Budget,
        *,
        tensors: bool = True,
        durable: bool = False,
    ) -> None:
        """Write to where `paths` says, below the folder `inside` of `top`, within the budget.

        Without `tensors` nothing is written. With `durable`, all that is in `top` is on the disk at
        the end.
        """
        self.bytes = 0
        self._tensors = tensors
        self._durable = durable
        self._budget = budget
        self._top = top
        self._inside = inside
        self._paths = paths
        self._written: list[str | None] = []
        self._folders: set[Path] = set()

    def begin(self, tick: Tick) -> None:
        """Take tensors of this forward from now on."""
        if self._paths.begin(tick):
            self._written.clear()
            self._folders.clear()

    def store(self, forward: int, records: Records) -> Places:
        """Write the tensors of records; return where they are."""
        places = nowhere(len(records))
        if not self._tensors:
            return places
        for i, (what, call, _, _, span, alias_of) in enumerate(records):
            name = None
            owner = None if alias_of is None else self._written[alias_of]
            if span is not None or owner is not None:
                file = self._paths.file(what.module, what.slot, what.op, call)
                name = f"{self._inside}/{file}"
                path = self._prepared(name)
                if span is not None:
                    self._write(path, what, span)
                else:
                    self._copy(self._top / str(owner), path)
                places.shard[i], places.offset[i] = name, 0
                places.tensor[i] = tensor_name(forward, what.module, what.slot, call, what.op)
            self._written.append(name)
        return places

    def _write(self, path: Path, what: Description, span: Span) -> None:
        dtype = torch_dtype(what.dtype)
        if dtype is None:
            msg = f"{path}: torch knows no type {what.dtype!r}."
            raise DumpWriteError(msg)
        most = what.nbytes + ROOM
        self._budget.claim(most)
        tensor = tensor_at(span.chunk.memory, span.offset, dtype, what.shape)
        self._budget.claim(write_pth(path, tensor) - most)
        self.bytes += what.nbytes

    def _copy(self, owner: Path, path: Path) -> None:
        if self._budget.is_bounded:
            self._budget.claim(owner.stat().st_size)
        shutil.copyfile(owner, path)

    def finish(self) -> None:
        """Wait for the disk, if that was asked for: every file is whole already."""
        if self._durable:
            sync_all(self._top)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _prepared(self, name: str) -> Path:
        path = self._top / name
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        return path
