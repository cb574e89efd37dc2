"""Small dumps made by hand: a few tensors with names, axes and positions, no model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.store import DirectorySink, NativeReader
from tests.batches import BatchMaker

IDENTITY = {"class": "Tiny", "dtype": "torch.float32", "attn_implementation": "eager"}


class DumpMaker:
    """Writes runs forward by forward; `reader` opens what was written."""

    def __init__(self, path: Path, **manifest: Any) -> None:
        self.path = path
        self._sink = DirectorySink(path, {"identity": IDENTITY, **manifest})
        self._maker = BatchMaker()

    def run(
        self, prompt: list[list[int]] | None, generated: Any = None, **facts: Any
    ) -> "DumpMaker":
        """Begin a run of these prompts, whose padding is 0."""
        self.end()
        mask = None if prompt is None else [[int(i != 0) for i in row] for row in prompt]
        given = {} if prompt is None else {"input_ids": prompt, "attention_mask": mask}
        kind = facts.pop("kind", "generate")
        self._sink.open_run(RunInfo(-1, kind, {}, given))
        self._result = {"generated_ids": generated, **facts}
        self._open = True
        self._forward = -1
        return self

    def forward(self, token: int, positions: list[list[int]] | None, **tensors: Any) -> "DumpMaker":
        """Add a forward; a tensor is `module__slot=(tensor, axes)`, without a slot an output."""
        self._forward += 1
        table = None if positions is None else np.array(positions, np.int32)
        rows, cols = (0, 0) if table is None else table.shape
        self._maker.begin(self._forward, token, rows=rows, cols=cols, find_positions=lambda: table)
        for number, (name, (tensor, axes, *fields)) in enumerate(tensors.items()):
            module, _, slot = name.partition("__")
            more = dict(*fields)
            if isinstance(tensor, str):
                self._maker.skip(module, tensor, slot or "output")
                continue
            self._maker.add(
                module, tensor, slot or "output", axes=axes, **{"call_index": number, **more}
            )
        self._sink.write(self._maker.end())
        return self

    def end(self) -> None:
        """Commit the open run."""
        if getattr(self, "_open", False):
            self._sink.commit_run(RunResult(self._result, {}))
            self._open = False

    def reader(self) -> NativeReader:
        """Commit and open."""
        self.end()
        self._sink.close()
        return NativeReader(self.path)


def ramp(*shape: int) -> torch.Tensor:
    """Return 1, 2, 3 ... in a shape: no two values are equal."""
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
