"""Keeps what a snapshot sends, for the tests of capture."""

from hf_dumper.capture.snapshot import Snapshot
from hf_dumper.core.arena import Arena
from hf_dumper.core.types import Phase, Tick

SOURCE, CALL = ("m", "M"), (0, 0)
TICK = Tick(0, 0, Phase.FORWARD, 0, 2, 3)


class Collector:
    """Keeps what a snapshot sends; the bytes are copied out before a chunk is given back."""

    def __init__(self, arena=None):
        self.arena = arena or Arena()
        self.batches = []
        self.records = []
        self.bytes = []
        self.snapshot = Snapshot(self.arena, self.take)
        self.snapshot.begin(TICK)

    def take(self, batch):
        self.batches.append(batch)
        for record in batch.resolve():
            self.records.append(record)
            self.bytes.append(None if record.span is None else bytes(record.span.view))
        for chunk in batch.spent:
            self.arena.release(chunk)

    def add(self, *tensors):
        for tensor in tensors:
            self.snapshot.add(SOURCE, "output", "", CALL, tensor)
        return self

    def done(self):
        self.snapshot.end()
        return self

    def value(self, i):
        """Return the bytes of a record, through its alias if it is one."""
        owner = self.records[i].alias_of
        return self.bytes[i if owner is None else owner]

    @property
    def statuses(self):
        return [record.status for record in self.records]
