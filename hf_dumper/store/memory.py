"""A sink that keeps everything in memory, for tests and small experiments."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hf_dumper.core.types import Batch, Record, RunInfo, RunResult, Tick
from hf_dumper.errors import CaptureError, KeyNotFoundError
from hf_dumper.store.dtypes import tensor_at, torch_dtype


class KeptRecord(NamedTuple):
    """A record whose bytes are a copy; `data` is None when it was skipped, an owner's if aliased.

    `seq_in` and `seq_out` are None for a tensor outside any module call; `seq_out` is None, too,
    when the call did not return.
    """

    tick: Tick
    record: Record
    data: bytes | None
    seq_in: int | None
    seq_out: int | None


class MemorySink:
    """Keeps the records of all forwards that ended, over all runs, in order of capture.

    `runs` and `results` grow by one per run; `run` is the number of the last one.
    """

    def __init__(self) -> None:
        """Create an empty sink."""
        self.records: list[KeptRecord] = []
        self.runs: list[RunInfo] = []
        self.results: list[RunResult] = []
        self.run = -1
        self._pending: list[tuple[Record, bytes | None]] = []
        self._pending_forward = -1

    def open_run(self, run: RunInfo) -> None:
        """Begin a run under its number, or under the next one when that is -1."""
        if self._is_open:
            msg = f"Run {self.run} is still open."
            raise CaptureError(msg)
        self.run = run.run if run.run >= 0 else self.run + 1
        self.runs.append(run)

    def write(self, batch: Batch) -> None:
        """Copy the bytes of a batch."""
        if not self._is_open:
            msg = "No run is open."
            raise CaptureError(msg)
        if batch.tick.forward != self._pending_forward:
            self._pending.clear()
            self._pending_forward = batch.tick.forward
        for record in batch.resolve():
            data = None if record.span is None else bytes(record.span.view)
            if record.alias_of is not None:
                data = self._pending[record.alias_of][1]
            self._pending.append((record._replace(span=None), data))
        if batch.calls is not None:
            self._end_forward(batch.tick, batch.calls)

    def commit_run(self, result: RunResult) -> None:
        """End the run; a forward that did not end is dropped."""
        if not self._is_open:
            msg = "No run is open."
            raise CaptureError(msg)
        self._pending.clear()
        self.results.append(result)

    def close(self) -> None:
        """End an open run as incomplete; may be called twice."""
        if self._is_open:
            self.commit_run(RunResult({}, {}, incomplete="closed before the run ended"))

    def tensor(
        self, module: str, slot: str = "output", token: int = 0, *, call: int = 0, op: str = ""
    ) -> torch.Tensor:
        """Return a copy of the last tensor of that key.

        Raises:
            KeyNotFoundError: there is none that has bytes.
        """
        for tick, record, data, _, _ in reversed(self.records):
            key = (record.what.module, record.what.slot, tick.token, record.call, record.what.op)
            dtype = torch_dtype(record.what.dtype)
            if key == (module, slot, token, call, op) and data is not None and dtype is not None:
                return tensor_at(bytearray(data), 0, dtype, record.what.shape)
        msg = f"No tensor {module!r} {slot!r} of token {token}, call {call}, op {op!r}."
        raise KeyNotFoundError(msg)

    @property
    def _is_open(self) -> bool:
        return len(self.results) < len(self.runs)

    def _end_forward(self, tick: Tick, calls: Sequence[Sequence[int]]) -> None:
        order = [(start, None if end < 0 else end) for start, end in calls]
        for record, data in self._pending:
            seq_in, seq_out = (None, None) if record.call_index < 0 else order[record.call_index]
            self.records.append(KeptRecord(tick, record, data, seq_in, seq_out))
        self._pending.clear()
        self._pending_forward = -1
