"""What the commands say, and how: answers on stdout, progress and warnings on stderr."""

import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hf_dumper.cli.failures import one_line
from hf_dumper.errors import DumpWarning
from hf_dumper.launch import is_main_process
from hf_dumper.report.numbers import strict

SOON = 1.0
"""Seconds that work may take before it shows its progress."""


def stdout() -> Console:
    """Return where answers go; nothing in them is markup."""
    return Console(markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value as JSON; numbers that JSON lacks become the words "nan", "inf" and "-inf"."""
    print(json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False, default=str))


class _TimeLeft(TimeRemainingColumn):
    """The time left, where the total is known."""

    def render(self, task: Task) -> Text:
        found = super().render(task)
        return found.append(" left") if found.plain else found


class Work:
    """Progress of one piece of work: a bar on stderr once it takes long, nothing in a pipe."""

    def __init__(self, title: str, unit: str = "") -> None:
        """Show nothing yet; `unit` is what is counted, such as "rows"."""
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30)
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            speed_estimate_period=600,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # or answers that are piped elsewhere would end up on stderr
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(title, total=None, count="")
        self._unit = f" {unit}" if unit else ""
        self._lock = threading.Lock()
        self._shown = False
        self._ended = threading.Event()
        self._timer = threading.Timer(SOON, self._show)
        self._timer.daemon = True

    def update(self, done: float, total: int | None) -> None:
        """Move the bar, also by parts of what is counted; a total that nobody knows is None."""
        count = f"{int(done)}{'' if total is None else f'/{total}'}{self._unit}"
        self._bar.update(self._task, completed=done, total=total, count=count)

    def follow(self, progress: Callable[[], tuple[float, int | None]]) -> None:
        """Move the bar once a second by what is asked: other processes are at work, too."""
        if self._is_seen:
            threading.Thread(target=self._follow, args=(progress,), daemon=True).start()

    def hide(self) -> None:
        """Show nothing after all: something else has bars of its own."""
        self._timer.cancel()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something else is printed."""
        with self._lock:
            if self._shown:
                self._bar.stop()
            yield
            if self._shown:
                self._bar.start()

    def __enter__(self) -> "Work":
        """Start the clock."""
        if self._is_seen:
            self._timer.start()
        return self

    @property
    def _is_seen(self) -> bool:
        return sys.stderr.isatty() and is_main_process()

    def __exit__(self, *_error: object) -> None:
        """Take the bar away."""
        self._timer.cancel()
        self._ended.set()
        with self._lock:
            if self._shown:
                self._bar.stop()
            self._shown = False

    def _follow(self, progress: Callable[[], tuple[float, int | None]]) -> None:
        while not self._ended.wait(SOON):
            self.update(*progress())

    def _show(self) -> None:
        with self._lock:
            if not self._timer.finished.is_set():
                self._shown = True
                self._bar.start()


@contextmanager
def calm(*, bars: bool = False, kept: list[str] | None = None) -> Iterator[None]:
    """Keep the libraries quiet and show our own warnings as a line, while the block runs.

    `bars` lets the progress bars of downloads be seen. `kept` takes the warnings instead.
    """
    from huggingface_hub import utils
    from transformers.utils import logging

    hub: Any = utils
    levels = [(m, m.get_verbosity()) for m in (logging, hub.logging)]
    had_bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    for module, _ in levels:
        module.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
        hub.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", DumpWarning)
            warnings.showwarning = _say if kept is None else partial(_keep, kept)
            yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)
        if had_bars[0]:
            logging.enable_progress_bar()
        if had_bars[1]:
            hub.enable_progress_bars()


def warn(text: str) -> None:
    """Print a warning as a line."""
    print(f"warning: {one_line(text)}", file=sys.stderr)


def _keep(kept: list[str], message: Warning | str, *_where: object, **_more: object) -> None:
    kept.append(one_line(str(message)))


def _say(message: Warning | str, *_where: object, **_more: object) -> None:
    warn(str(message))
