"""What a command does as one process of an `accelerate launch`, and as the only one."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from hf_dumper.cli.failures import explain
from hf_dumper.cli.options import ModelOptions
from hf_dumper.cli.terminal import Work, warn
from hf_dumper.errors import ConfigError, EmptyDumpError
from hf_dumper.launch import Launch

if TYPE_CHECKING:
    from hf_dumper.runner import PromptResult, RowFailure, RowRunner

_OFTEN: Final = 0.5
"""Seconds between two reports of how far a process is."""


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What became of the rows of a data set, besides those that were dumped."""

    skipped: int
    replaced: int
    failures: "list[RowFailure]"

    @classmethod
    def of(cls, rows: "RowRunner | RowFacts") -> "RowFacts":
        """Return the facts alone, which can be told to another process."""
        return cls(rows.skipped, rows.replaced, list(rows.failures))

    def __add__(self, other: "RowFacts") -> "RowFacts":
        """Return the facts of two processes together."""
        failures = sorted([*self.failures, *other.failures], key=lambda failure: failure.row)
        return RowFacts(self.skipped + other.skipped, self.replaced + other.replaced, failures)


@dataclass(frozen=True, slots=True)
class Part:
    """What became of the rows of one process, or of all.

    `whole` is False when something of them is missing; `failure` says what ended the process
    early, and is None otherwise; `rows` is None where there is no data set.
    """

    results: "list[PromptResult]"
    runs: list[dict[str, Any]]
    whole: bool
    rows: "RowFacts | None" = None
    failure: str | None = None
    warnings: list[str] = field(default_factory=list)


class Share:
    """The part that this process has in a launch.

    Attributes:
        launch: The launch.
        warnings: Takes the warnings of a process that does not print, None in one that does.
    """

    def __init__(self, launch: Launch) -> None:
        """Begin with nothing told, but a word where accelerate did not do as it was told."""
        if hint := _lone_launch():
            warn(hint)
        self.launch = launch
        self.warnings: list[str] | None = None if launch.is_main else []
        self._failure: str | None = None
        self._reported = 0.0
        self._progress: tuple[float, int | None] | None = None

    @contextmanager
    def kept(self, results: "list[PromptResult]") -> Iterator[None]:
        """Keep an error for the end, if there are other processes: they have rows of their own.

        A process without rows has nothing to dump, which is no error.
        """
        try:
            yield
        except Exception as error:
            if self.launch.size == 1:
                raise
            if results or not isinstance(error, EmptyDumpError):
                self._failure = explain(error)

    def shown(self, work: Work) -> "Callable[[float, int | None], None]":
        """Return what takes this process's progress; the bar shows that of all."""
        if self.launch.size == 1:
            return work.update
        work.follow(self.launch.reported)
        return self._report

    def _report(self, done: float, total: int | None) -> None:
        """Tell the main process how far this one is, now and then."""
        self._progress = done, total
        if monotonic() - self._reported > _OFTEN:
            self._reported = monotonic()
            self.launch.report(done, total)

    def meet(self, part: Part, unit: str = "") -> Part:
        """Return what became of the rows of all processes; the main one tells what failed.

        `unit` is what is counted while the others are waited for.
        """
        part = replace(part, failure=self._failure, warnings=self.warnings or [])
        if self._progress is not None:
            self.launch.report(*self._progress)
        with Work("Waiting for the other processes", unit) as work:
            work.follow(self.launch.reported)
            parts = self.launch.exchange(part)
        if self.launch.is_main:
            _tell(parts)
        return _joined(parts)


def on_device(options: ModelOptions, launch: Launch) -> ModelOptions:
    """Return how the model is loaded onto the device of this process.

    Raises:
        ConfigError: the options name devices themselves.
    """
    if launch.device is None:
        return options
    if options.device_map is not None:
        msg = "--device-map: accelerate gives each process its device; leave it out."
        raise ConfigError(msg)
    return replace(options, device_map=launch.device)


def _lone_launch() -> str | None:
    """Return a word about a launch of several processes of which accelerate started only one."""
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        return (
            "accelerate started one process only, as it does with --cpu. Write --multi_gpu instead "
            "of --cpu: without an accelerator those processes use the CPU."
        )
    return None


def _joined(parts: list[Part]) -> Part:
    whole = all(part.whole and part.failure is None for part in parts)
    results = [result for part in parts for result in part.results]
    runs = [run for part in parts for run in part.runs]
    failures = "; ".join(part.failure for part in parts if part.failure is not None)
    rows = [part.rows for part in parts if part.rows is not None]
    facts = sum(rows[1:], rows[0]) if rows else None
    return Part(results, sorted(runs, key=lambda run: run["run"]), whole, facts, failures or None)


def _tell(parts: list[Part]) -> None:
    for rank, part in enumerate(parts):
        for warning in part.warnings:
            warn(f"process {rank}: {warning}")
        if part.failure is not None:
            print(f"hf-dumper: process {rank} stopped: {part.failure}", file=sys.stderr)
