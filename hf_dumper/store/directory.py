"""The sink that writes the native layout."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_dumper.core.types import RunInfo
from hf_dumper.core.weights import Weight
from hf_dumper.errors import DumpWriteError
from hf_dumper.store import layout
from hf_dumper.store.budget import Budget
from hf_dumper.store.lock import DumpLock, join_dump, lock_dump
from hf_dumper.store.manifest import add_note, prepare_dump, prepare_folder
from hf_dumper.store.run_sink import RunSink, writing
from hf_dumper.store.run_writer import RunWriter
from hf_dumper.store.shards import SHARD_BYTES, ShardSet
from hf_dumper.store.sheets import AnalysisSheet
from hf_dumper.store.weights import WEIGHTS, check_weights, write_weights


class DirectorySink(RunSink):
    """Writes runs into a dump folder, and creates it."""

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
        size at which the next shard begins. `max_bytes` and `durable` are those of a RunSink.

        Raises:
            DumpIdentityError: the folder holds a dump of something else.
            DumpFormatError: the folder is not empty and is no dump, or a damaged one.
            DumpWriteError: the folder cannot be written.
        """
        super().__init__(path, max_bytes=max_bytes, durable=durable)
        self._tensors = tensors
        self._statistics = statistics
        self._analyze = analyze
        self._rank = rank
        self._shard_bytes = shard_bytes
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
            DumpWriteError: they cannot be written, or do not fit within the bound.
        """
        with writing(self.path):
            folder = self.path / WEIGHTS
            if folder.exists():
                check_weights(folder, weights)
            else:
                self._check_room(sum(weight.nbytes for weight in weights if not weight.reason))
                write_weights(folder, weights)

    def _create(self, wanted: int) -> tuple[int, Path]:
        number = _claim(self.path, wanted, after=self.run)
        return number, layout.run_folder(self.path, number)

    def _begin(self, folder: Path, run: RunInfo, budget: Budget) -> RunWriter:
        place = layout.rank_folder(self.path, run.run, self._rank)
        place.mkdir()
        terms: dict[str, Any] = {"budget": budget, "durable": self._durable}
        shards = ShardSet(place, run.expected_records, self._shard_bytes, **terms)
        analysis = None
        if self._analyze:
            analysis = AnalysisSheet(folder, f"{place.name}/", budget)
            self._held.callback(analysis.close)
        return RunWriter(
            place,
            run,
            rank=self._rank,
            shards=shards if self._tensors else None,
            statistics=self._statistics or self._analyze,
            on_forward=analysis.add if analysis else None,
            **terms,
        )


def open_folder(path: Path, mark: str | None = None) -> DumpLock:
    """Create the folder of a dump if there is none, and take its lock; or join it by the mark.

    Raises:
        DumpFormatError: the folder is not empty and is no dump; nothing is changed in it.
        DumpWriteError: another process is writing the dump, or the folder cannot be written.
    """
    with writing(path):
        prepare_folder(path)
        return lock_dump(path) if mark is None else join_dump(path, mark)


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
