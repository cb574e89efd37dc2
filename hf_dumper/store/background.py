"""A sink that lets the model run on while another one writes."""

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Final

from hf_dumper.core.arena import Arena
from hf_dumper.core.protocols import Sink
from hf_dumper.core.types import Batch, RunInfo, RunResult
from hf_dumper.errors import CaptureError, DumpWriteError

PATIENCE: Final = 0.05
"""Seconds that a batch may wait for a good moment to be written."""


class Mailbox:
    """Batches on their way to the thread that writes them; None is the end.

    To put one in wakes nobody, as that alone would cost the model seventy microseconds a token.
    """

    def __init__(self) -> None:
        """Be empty."""
        self._items: deque[Batch | None] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_good = False

    def put(self, item: Batch | None) -> None:
        """Leave a batch."""
        self._items.append(item)

    def ring(self) -> None:
        """Say that the moment is good for what is in the box."""
        with suppress(RuntimeError):  # somebody rang already
            self._bell.release()

    def get(self) -> Batch | None:
        """Wait for a good moment, but not for long, and then take batches until there are none."""
        self._is_good = self._is_good and bool(self._items)
        while not self._is_good:
            self._bell.acquire(timeout=PATIENCE)
            self._is_good = bool(self._items)
        return self._items.popleft()

    def empty(self) -> list[Batch]:
        """Take all that there are at once."""
        found = []
        with suppress(IndexError):
            while True:
                found.append(self._items.popleft())
        return [batch for batch in found if batch is not None]


class BackgroundSink:
    """Writes batches to `inner` in one thread that lives from `open_run` to `commit_run`.

    Python runs in one thread at a time. A writer that works while the model's own Python does holds
    it up, and each hand-over costs more than what is handed over. So the thread waits until it is
    told, by `hurry`, that the model is in a long kernel; but not for long.

    The thread gives the chunks of a batch back to the arena when the batch is written. After an
    error of `inner` it goes on to do so with the batches it drops, and where the thread itself is
    dead the caller's does: a producer that waits for room never hangs, and the arena serves the
    next run as before. `commit_run` brings the error to the caller's thread; until then `failure`
    tells a session that capturing more is useless.
    """

    def __init__(self, inner: Sink, arena: Arena) -> None:
        """Wrap `inner`; `arena` is where the chunks of the batches come from."""
        self._inner = inner
        self._arena = arena
        self._box = Mailbox()
        self._thread: threading.Thread | None = None
        self._unwritten: deque[int] = deque()
        self._written = threading.Condition()
        self._is_dead = False
        self._is_abandoned = False
        self.failure: BaseException | None = None
        self.dropped = 0

    def open_run(self, run: RunInfo) -> None:
        """Open the run in the caller's thread, then start the writer.

        Raises:
            DumpWriteError: the run cannot be opened, or the system gives no thread; the run is
                there then, and marked as incomplete.
        """
        if self._is_abandoned:
            self.close()
        if self._thread:
            msg = "A run is open already; commit it first."
            raise CaptureError(msg)
        try:
            self._inner.open_run(run)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, when the run may be open already
                self._inner.close()
            raise
        self.failure, self.dropped, self._is_dead = None, 0, False
        self._arena.write_off()  # nobody writes: what is still out will not come back
        # A daemon, so that an interpreter which exits in the middle of a run does not wait for it.
        self._box = Mailbox()
        thread = threading.Thread(
            target=self._work, args=(self._box,), name="hf_dumper writer", daemon=True
        )
        try:
            thread.start()
        except BaseException as error:
            self._box.put(None)  # Ctrl-C may come when the thread has started
            self._mark(f"the writer cannot be started: {_text(error)}")
            if not isinstance(error, RuntimeError):
                raise
            msg = f"Cannot start the writer: {error}"
            raise DumpWriteError(msg) from error
        self._thread = thread

    def write(self, batch: Batch) -> None:
        """Queue a batch and return at once; an error of the inner sink surfaces at the commit."""
        if self._thread is None:
            msg = "No run is open."
            raise CaptureError(msg)
        self._unwritten.append(batch.tick.forward)
        self._box.put(batch)
        if self._is_dead:
            self._discard(self._box)

    def hurry(self) -> None:
        """Write what is queued now: the moment is good. It is none for what comes later."""
        if self._unwritten:
            self._box.ring()

    def flush(self, before: int | None = None) -> None:
        """Wait until every batch that was queued is written, or dropped after a failure.

        `before` leaves out the batches of that forward and of later ones.
        """
        if not self._is_written(before):
            self.hurry()
            with self._written:
                self._written.wait_for(lambda: self._is_written(before))

    def commit_run(self, result: RunResult) -> None:
        """Wait for the writer, then end the run.

        An interruption (Ctrl-C) does not wait for what is queued: it is dropped, the run is ended
        as incomplete, and the interruption goes on.

        Raises:
            DumpWriteError: a batch or the commit failed; the run is marked as incomplete then, if
                that is still possible. The message says all that the run lacks.
        """
        interruption = None
        try:
            self._join()
        except BaseException as error:
            interruption = self.failure = error
            self._is_abandoned = True  # should a second one come: the next run ends this one
            self._join()
            self._is_abandoned = False
        if self.failure is not None:
            counts = {**result.counts, "discarded": self.dropped}
            result = _with_reason(replace(result, counts=counts), self._reason(self.failure))
        try:
            self._inner.commit_run(result)
        except Exception as error:  # whatever a sink raises, the first failure is the one to tell
            result = _with_reason(result, _text(error))
            self.failure = self.failure or error
        except BaseException:
            self._inner.close()  # should it not have come to an end
            raise
        if interruption is not None:
            raise interruption
        if self.failure is not None:
            raise DumpWriteError(result.incomplete) from self.failure

    def close(self) -> None:
        """Stop the writer and close the inner sink, which ends an open run as incomplete."""
        self._join()
        self._is_abandoned = False
        self._inner.close()

    def _is_written(self, before: int | None) -> bool:
        try:
            oldest = self._unwritten[0]
        except IndexError:  # asked without a lock: the writer may take the last one meanwhile
            return True
        return before is not None and oldest >= before

    def _join(self) -> None:
        if self._thread:
            self._box.put(None)
            self._box.ring()
            self._thread.join()
            self._thread = None

    def _work(self, box: Mailbox) -> None:
        try:
            self._arena.prepare_next()
            self._drain(box)
        except BaseException as error:  # of the thread itself, such as SystemExit
            self.failure = self.failure or error
            self._is_dead = True  # before the box is emptied: what comes later, its sender drops
            self._discard(box)

    def _drain(self, box: Mailbox) -> None:
        while (batch := box.get()) is not None:
            try:
                if self.failure is None:
                    self._inner.write(batch)
                else:
                    self.dropped += batch.count
            except BaseException as error:  # kept for commit_run, which is in the caller's thread
                self.failure = self.failure or error
                self.dropped += batch.count
            finally:
                self._let_go(batch)

    def _discard(self, box: Mailbox) -> None:
        """Drop what is in the box."""
        for batch in box.empty():
            self.dropped += batch.count
            self._let_go(batch)

    def _let_go(self, batch: Batch) -> None:
        for chunk in batch.spent:
            self._arena.release(chunk)
        with self._written:
            self._unwritten.popleft()
            self._written.notify_all()

    def _mark(self, reason: str) -> None:
        """End a run that never began to be written."""
        with suppress(DumpWriteError):
            self._inner.commit_run(RunResult({}, {}, incomplete=reason))

    def _reason(self, failure: BaseException) -> str:
        text = _text(failure)
        return f"{text} ({self.dropped} records were dropped)" if self.dropped else text


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _with_reason(result: RunResult, reason: str) -> RunResult:
    return replace(result, incomplete="; ".join(filter(None, (result.incomplete, reason))))
