"""Makes the batches of synthetic forwards, as the capture side does."""

from typing import Any

import torch
import xxhash

from hf_dumper.core.arena import Arena, Chunk
from hf_dumper.core.types import Batch, Description, Phase, Records, Tick


def content(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class BatchMaker:
    """Collects the records of one forward at a time; `part` and `end` return them as batches."""

    def __init__(self, arena: Arena | None = None) -> None:
        self.arena = arena or Arena()
        self._chunk: Chunk | None = None
        self.begin()

    def begin(self, forward: int = 0, token: int = 0, **tick: Any) -> "BatchMaker":
        """Begin a forward; `tick` are further fields of its Tick."""
        phase = Phase.DECODE if token else Phase.PREFILL
        self.tick = Tick(0, forward, tick.pop("phase", phase), token, **tick)
        self._all: list[dict[str, Any]] = []
        self._sent = 0
        return self

    def add(self, module: str, tensor: torch.Tensor, slot: str = "output", **fields: Any) -> int:
        """Copy a tensor into the arena; return the number of its record."""
        data = content(tensor)
        fields = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": tuple(tensor.shape),
            "hash": xxhash.xxh3_64_intdigest(data),
            "nbytes": len(data),
            "offset": self._copy(data),
        } | fields
        return self._keep(module, slot, fields)

    def alias(self, module: str, owner: int, slot: str = "output", **fields: Any) -> int:
        """Add a record whose bytes are those of an earlier one."""
        same = self._all[owner]
        fields |= {name: getattr(same["what"], name) for name in ("dtype", "shape", "nbytes")}
        return self._keep(module, slot, fields | {"alias_of": owner, "hash": same["hash"]})

    def skip(self, module: str, reason: str, slot: str = "output") -> int:
        """Add a record without bytes."""
        return self._keep(module, slot, {"reason": reason})

    def part(self) -> Batch:
        """Return what was added since the last batch; the forward goes on."""
        return self._batch(None, ())

    def end(self, calls: list[tuple[int, int]] | None = None) -> Batch:
        """Return the last batch of the forward, with the current chunk to give back."""
        needed = 1 + max((record["call_index"] for record in self._all), default=-1)
        spent = (self._chunk,) if self._chunk else ()
        batch = self._batch(calls or [(2 * i, 2 * i + 1) for i in range(needed)], spent)
        self._chunk = None
        return batch

    def _batch(self, calls: list[tuple[int, int]] | None, spent: tuple[Chunk, ...]) -> Batch:
        new, self._sent = self._all[self._sent :], len(self._all)
        names = ("what", "call", "call_index", "hash", "offset", "alias_of")
        columns = [[record[name] for record in new] for name in names]
        records = Records(*columns, chunk=self._chunk)
        return Batch(self.tick, lambda: records, len(new), calls, spent)

    def _copy(self, data: bytes) -> int:
        if self._chunk is None:
            self._chunk = self.arena.take(max(len(data), 1 << 20))
            self._used = 0
        offset = self._used
        assert offset + len(data) <= self._chunk.size, "a batch has one chunk: send a part before"
        self._chunk.memory[offset : offset + len(data)] = data
        self._used += len(data)
        return offset

    def _keep(self, module: str, slot: str, fields: dict[str, Any]) -> int:
        described: dict[str, Any] = {
            "class_name": "Linear",
            "param": "",
            "op": "",
            "axes": "",
            "dtype": "float32",
            "shape": (),
            "device": "cpu",
            "nbytes": 0,
            "reason": "",
        }
        described |= {name: fields.pop(name) for name in described if name in fields}
        plain = {"call": 0, "call_index": 0, "hash": None, "offset": None, "alias_of": None}
        what = Description(module=module, slot=slot, **described)
        self._all.append({"what": what} | plain | fields)
        return len(self._all) - 1
