"""The runs of a session: opened, ended, and what went wrong with them told."""

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch

from hf_dumper.capture.eager import compiled_modules, refuse_compiled
from hf_dumper.capture.facts import input_facts
from hf_dumper.capture.observer import Observer
from hf_dumper.capture.seeding import determinism_facts, seeded
from hf_dumper.config import RAISE, DumpConfig
from hf_dumper.core.types import SKIPPED, RunInfo, RunResult
from hf_dumper.errors import CaptureError, DumpIncompleteWarning, DumpWriteError
from hf_dumper.session.model_dump import ModelDump
from hf_dumper.session.notices import warn_caller

_NEXT_FREE: Final[tuple[int, Mapping[str, Any]]] = (-1, {})
"""The number of a run that nobody numbered, and no facts about its source."""


class RunKeeper:
    """Opens and ends runs, one at a time, in the thread of the model.

    Attributes:
        numbers: Numbers of the runs, in order.
        stored: How many records they hold.
        is_lost: Whether the last run could not be opened, so that its callbacks have none.
    """

    def __init__(
        self, model: torch.nn.Module, config: DumpConfig, observer: Observer, dump: ModelDump
    ) -> None:
        """Open nothing yet."""
        self.numbers: list[int] = []
        self.stored = 0
        self.is_lost = False
        self._model = model
        self._config = config
        self._observer = observer
        self._dump = dump
        self._scope: ExitStack | None = None
        self._thread: int | None = None
        self._raised: Exception | None = None
        self._pid = os.getpid()
        self._next: tuple[int, Mapping[str, Any]] = _NEXT_FREE

    @property
    def last(self) -> int | None:
        """Number of the latest run, None before the first."""
        return self.numbers[-1] if self.numbers else None

    @property
    def is_open(self) -> bool:
        """Whether a run is in progress."""
        return self._scope is not None

    @property
    def is_here(self) -> bool:
        """Whether a run is in progress in this thread."""
        return self._thread == threading.get_ident()

    def number_next(self, run: int, source: Mapping[str, Any] | None) -> None:
        """Give the next run this number; `source` says where its prompts come from.

        Raises:
            CaptureError: the number is none, or a run is in progress.
        """
        if isinstance(run, bool) or not isinstance(run, int) or run < 0:
            msg = f"A run's number is an int from 0, not {run!r}."
            raise CaptureError(msg)
        if self.is_open:
            msg = "Number a run before it begins; one is in progress."
            raise CaptureError(msg)
        self._next = run, {} if source is None else {"source": dict(source)}

    def begin(self, kind: str, prompt: Mapping[str, Any], expected: int) -> bool:
        """Open a run; False when it cannot be written, which is a warning and no more.

        Raises:
            DumpWriteError: it cannot be written, with `on_error="raise"`.
        """
        if not self._config.allow_eager:
            refuse_compiled(self._model)
        self.is_lost, self._raised = False, None
        (number, source), self._next = self._next, _NEXT_FREE
        prompt = {**prompt, **source}
        scope = ExitStack()
        if self._config.seed is not None:
            scope.enter_context(seeded(self._config.seed))
        try:
            run = self._dump.open_run(RunInfo(number, kind, determinism_facts(), prompt, expected))
        except OSError as error:
            scope.close()
            self.is_lost = True
            if self._config.on_error == RAISE:
                msg = f"A run cannot be dumped: {error}"
                raise DumpWriteError(msg) from error
            self._warn_incomplete("A run is not dumped at all", error)
            return False
        except BaseException:  # a dump of something else, or Ctrl-C
            scope.close()
            raise
        self._scope, self._thread = scope, threading.get_ident()
        self.numbers.append(run)
        self._observer.open_run(run, self._dump)
        return True

    def end(self, facts: Mapping[str, Any], error: BaseException | None) -> None:
        """Write the run out; what went wrong is written into the run, and told.

        Raises:
            DumpWriteError: with `on_error="raise"`, the run could not be written whole.
            CaptureError: likewise, something could not be recorded.
        """
        scope, self._scope, self._thread = self._scope, None, None
        if scope is None:
            return
        if self._pid != os.getpid():  # a forked process has no part in the run
            scope.close()
            return
        observer = self._observer
        known = self._raised is not None and error is self._raised
        try:
            observer.close_run()
            self._dump.flush()  # what is an alias is found where batches are written
        except BaseException as interruption:  # Ctrl-C: the run is ended all the same
            error = interruption
            raise
        finally:
            scope.close()
            failure = self._commit(facts, observer.failure if known else error or observer.failure)
            if failure is not None and not known:
                self._tell(failure, error)

    def _commit(self, facts: Mapping[str, Any], cause: BaseException | None) -> Exception | None:
        """End the run in the dump; return what went wrong on our side."""
        observer, snapshot = self._observer, self._observer.snapshot
        trace = observer.take_trace()
        cause = cause or observer.failure
        inputs = observer.inputs
        described = {} if inputs is None else input_facts(self._model, inputs)
        counts = {**snapshot.counts, "skipped_by_reason": dict(snapshot.skipped), "discarded": 0}
        self.stored += snapshot.counts.total() - snapshot.counts[SKIPPED]
        reason = None if cause is None else f"{type(cause).__name__}: {cause}"
        facts = {**facts, "inputs": described}
        if self._config.allow_eager:
            facts["run_without_compilation"] = compiled_modules(self._model)
        result = RunResult(facts, counts, reason, observer.left_out, trace)
        try:
            self._dump.commit_run(result)
        except DumpWriteError as failure:
            return failure
        return observer.failure

    def _tell(self, failure: Exception, error: BaseException | None) -> None:
        """Warn of a dump that is not whole, or raise; an error that is under way comes first."""
        if error is None and self._config.on_error == RAISE:
            raise self._as_error(failure) from failure
        self._warn_incomplete(self._incomplete, failure)

    def stop_if_failed(self) -> None:
        """Record nothing more once the writer has failed.

        Raises:
            DumpWriteError: the writer failed, and `on_error="raise"` wants the generation to stop.
            CaptureError: likewise, something could not be recorded.
        """
        if self._dump.failure is not None:
            self._observer.stop()
        failure = self._dump.failure or self._observer.failure
        if failure is not None and self._config.on_error == RAISE:
            self._raised = self._as_error(failure)
            raise self._raised from failure

    def _as_error(self, failure: BaseException) -> DumpWriteError | CaptureError:
        ours = failure is self._observer.failure
        return (CaptureError if ours else DumpWriteError)(f"{self._incomplete}: {failure}")

    @property
    def _incomplete(self) -> str:
        return f"Run {self.last} in {self._dump.path} is incomplete"

    def _warn_incomplete(self, what: str, error: BaseException) -> None:
        warn_caller(f"{what}: {error}", DumpIncompleteWarning)
