"""The dump of one model on disk: what it is a dump of, and the runs that go into it."""

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_dumper.capture.facts import Tokenizer
from hf_dumper.capture.manifest import describe_model, fingerprint, module_tree
from hf_dumper.capture.weights import collect_weights, main_device
from hf_dumper.config import BOTH, MSIT, STATISTICS, TENSORS, DumpConfig
from hf_dumper.core.arena import Arena
from hf_dumper.core.types import Batch, RunInfo, RunResult
from hf_dumper.errors import CaptureError, ConfigError, DumpWarning
from hf_dumper.launch import Launch
from hf_dumper.session.notices import warn_caller
from hf_dumper.store import BackgroundSink, DirectorySink, MsitSink
from hf_dumper.store.directory import open_folder

if TYPE_CHECKING:
    from hf_dumper.store.lock import DumpLock


class ModelDump:
    """Creates the folder, keeps its manifest true to the model, and takes the runs.

    In a launch of several processes the main one does so, and the others join it.

    Attributes:
        path: Folder of the dump.
        arena: Where the bytes of its batches live until they are written.

    Raises:
        DumpIdentityError: the folder holds a dump of something else.
        DumpFormatError: the folder is not empty and is no dump.
        DumpWriteError: the folder cannot be written, or another process is writing it.
        LaunchError: another process of the launch failed to join the dump.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: DumpConfig,
        tokenizer: Tokenizer | None,
        launch: Launch,
    ) -> None:
        """Create the folder with its manifest, or join the main process in doing so."""
        self._lock: DumpLock | None = None
        self.arena = Arena()
        self._model = model
        self._config = config
        self._tokenizer = tokenizer
        self._launch = launch
        self._runs = 0
        try:
            with launch.together():
                self.path = Path(launch.of_main(self._folder))
                mark = launch.of_main(self._begin)
                if not launch.is_main:
                    self._join(mark)
                self._directory.share_bound(launch.size)
            if not config.dump_last_logits:
                self.arena.prepare()
        except BaseException:
            self._lock = None  # a traceback keeps us alive, and must not keep the dump locked
            raise

    def open_run(self, run: RunInfo) -> int:
        """Open a run and return its number.

        Raises:
            DumpIdentityError: the parameters changed, and the dump holds runs of them as they were.
            DumpWriteError: the folder cannot be written.
        """
        if fingerprint(self._model) != self._fingerprint:
            self._prepare_again()
        self._sink.open_run(run)
        self._runs += 1
        return self._directory.run

    def write(self, batch: Batch) -> None:
        """Take a batch of the open run."""
        self._sink.write(batch)

    def hurry(self) -> None:
        """Write what was taken now: the moment is good."""
        self._sink.hurry()

    def flush(self, before: int | None = None) -> None:
        """Wait until every batch is written, or every one of the forwards before `before`."""
        self._sink.flush(before)

    def commit_run(self, result: RunResult) -> None:
        """End the run; it is on disk when this returns.

        Raises:
            DumpWriteError: it could not be written whole.
        """
        self._sink.commit_run(result)

    @property
    def failure(self) -> BaseException | None:
        """Why nothing more of the open run is written, None while all is well."""
        return self._sink.failure

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a fact to the manifest, outside of its identity; the main process's is the one."""
        if self._keeps:
            self._directory.note(name, value)

    def close(self) -> None:
        """End an open run as incomplete, and let other processes write the dump."""
        try:
            self._sink.close()
        finally:
            self._lock = None

    @property
    def _has_own_folders(self) -> bool:
        # A run in msit's layout has a folder of its own, which nobody else writes.
        return self._config.layout == MSIT

    @property
    def _keeps(self) -> bool:
        return self._launch.is_main or self._has_own_folders

    def _folder(self) -> str:
        return str(self._config.dump_path or fresh_folder("hf_dump"))

    def _begin(self) -> str | None:
        """Take the dump; return what other processes of the launch join it with."""
        if self._launch.size > 1 and self._config.device_id is not None:
            msg = "device_id: each process of a launch has a device of its own; leave it out."
            raise ConfigError(msg)
        if not self._has_own_folders:
            self._lock = open_folder(self.path)
        self._prepare(overwrite=self._config.overwrite)
        return self._lock.share() if self._lock and self._launch.size > 1 else None

    def _join(self, mark: str | None) -> None:
        if mark is not None:
            self._lock = open_folder(self.path, mark)
        self._prepare(overwrite=False)

    def _prepare_again(self) -> None:
        if self._launch.size > 1:
            msg = "The parameters changed, which a launch of several processes cannot follow."
            raise CaptureError(msg)
        self._prepare(overwrite=not self._runs and self._is_new)

    def _prepare(self, *, overwrite: bool) -> None:
        is_new = overwrite or not (self.path / "manifest.json").exists()
        mode = self._config.dump_statistics_mode
        now = fingerprint(self._model)
        self._directory = self._make(overwrite)(
            self.path,
            describe_model(self._model, self._config.to_dict()),
            tree=module_tree(self._model),
            tensors=mode in (TENSORS, BOTH),
            statistics=mode in (STATISTICS, BOTH),
            analyze=self._config.analyze,
        )
        self._sink = BackgroundSink(self._directory, self.arena)
        self._is_new, self._fingerprint = is_new, now
        if self._tokenizer is not None and self._keeps:
            tokenizer = self._tokenizer
            self._directory.keep("tokenizer", lambda to: tokenizer.save_pretrained(str(to)))
        if self._config.dump_weight:
            self._keep_weights()

    def _make(self, overwrite: bool) -> Callable[..., DirectorySink | MsitSink]:
        terms: dict[str, Any] = {
            "max_bytes": self._config.max_bytes,
            "durable": self._config.durable,
            "rank": self._launch.rank,
        }
        if self._config.layout == MSIT:
            return partial(MsitSink, device=main_device(self._model), **terms)
        return partial(DirectorySink, overwrite=overwrite, **terms)

    def _keep_weights(self) -> None:
        weights = collect_weights(self._model, self._config.layer_name)
        self._directory.keep_weights(weights)
        for weight in weights:
            if weight.reason:
                msg = f"Weight {weight.names[0]!r} is not dumped: {weight.reason}."
                warn_caller(msg, DumpWarning)


def fresh_folder(stem: str) -> Path:
    """Return a folder name in the working directory that is not taken: `<stem>_<date>_<time>`."""
    name = f"{stem}_{datetime.now():%Y%m%d_%H%M%S}"
    numbered = (Path(f"{name}_{i}") if i else Path(name) for i in itertools.count())
    return next(path for path in numbered if not path.exists())
