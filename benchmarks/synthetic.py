"""Dumps of any number of records in seconds: a made-up model's forwards, the real writer."""

from pathlib import Path

import torch
import xxhash

from hf_dumper.core.arena import Chunk
from hf_dumper.core.types import Batch, Description, Phase, Records, RunInfo, RunResult, Tick
from hf_dumper.store import DirectorySink

LAYERS, WIDTH, NBYTES = 24, 64, 128
LAYER = (
    ("", "Qwen2DecoderLayer", "input.0", "hidden_states", False),
    ("", "Qwen2DecoderLayer", "input.position_embeddings.0", "position_embeddings.0", False),
    ("", "Qwen2DecoderLayer", "input.position_embeddings.1", "position_embeddings.1", False),
    ("", "Qwen2DecoderLayer", "input.position_ids", "position_ids", False),
    (".input_layernorm", "Qwen2RMSNorm", "input.0", "hidden_states", False),
    (".input_layernorm", "Qwen2RMSNorm", "output", "", True),
    (".self_attn", "Qwen2Attention", "input.hidden_states", "hidden_states", False),
    (".self_attn", "Qwen2Attention", "input.position_ids", "position_ids", False),
    (".self_attn", "Qwen2Attention", "input.position_embeddings.0", "position_embeddings.0", False),
    (".self_attn", "Qwen2Attention", "input.position_embeddings.1", "position_embeddings.1", False),
    (".self_attn.q_proj", "Linear", "input.0", "input", False),
    (".self_attn.q_proj", "Linear", "output", "", True),
    (".self_attn.k_proj", "Linear", "input.0", "input", False),
    (".self_attn.k_proj", "Linear", "output", "", True),
    (".self_attn.v_proj", "Linear", "input.0", "input", False),
    (".self_attn.v_proj", "Linear", "output", "", True),
    (".self_attn.o_proj", "Linear", "input.0", "input", True),
    (".self_attn.o_proj", "Linear", "output", "", True),
    (".self_attn", "Qwen2Attention", "output.0", "", False),
    (".post_attention_layernorm", "Qwen2RMSNorm", "input.0", "hidden_states", True),
    (".post_attention_layernorm", "Qwen2RMSNorm", "output", "", True),
    (".mlp", "Qwen2MLP", "input.0", "x", False),
    (".mlp.gate_proj", "Linear", "input.0", "input", False),
    (".mlp.gate_proj", "Linear", "output", "", True),
    (".mlp.act_fn", "SiLUActivation", "input.0", "input", False),
    (".mlp.act_fn", "SiLUActivation", "output", "", True),
    (".mlp.up_proj", "Linear", "input.0", "input", False),
    (".mlp.up_proj", "Linear", "output", "", True),
    (".mlp.down_proj", "Linear", "input.0", "input", True),
    (".mlp.down_proj", "Linear", "output", "", True),
    (".mlp", "Qwen2MLP", "output", "", False),
    ("", "Qwen2DecoderLayer", "output", "", True),
)
"""Module, class, slot, parameter, and whether the tensor has bytes of its own: a layer of Qwen2."""


def build(path: Path, records: int, *, statistics: bool) -> None:
    """Write a dump of one run of so many records, or a few more: its last forward is whole."""
    forward = MadeUpForward()
    sink = DirectorySink(path, {"identity": {"model": "made up"}}, statistics=statistics)
    sink.open_run(RunInfo(-1, "generate", expected_records=records))
    for number in range(-(-records // len(forward.what))):
        sink.write(forward.batch(number))
    sink.commit_run(RunResult({}, {}))
    sink.close()


class MadeUpForward:
    """The records of one forward, with new random values each time."""

    def __init__(self) -> None:
        """Describe the records once, as the capture does."""
        rows = [
            (f"model.layers.{layer}{suffix}", *rest)
            for layer in range(LAYERS)
            for suffix, *rest in LAYER
        ]
        rows.insert(0, ("model.embed_tokens", "Embedding", "output", "", True))
        self.what = [
            Description(
                *(module, kind, slot, param, "", "row,pos,-"),
                *("bfloat16", (1, 1, WIDTH), "cpu", NBYTES),
            )
            for module, kind, slot, param, _ in rows
        ]
        owns = [row[-1] for row in rows]
        places = [i for i, own in enumerate(owns) if own]
        self._offset: list[int | None] = [None] * len(rows)
        for n, place in enumerate(places):
            self._offset[place] = n * NBYTES
        owners = [max(place for place in places if place <= i) for i in range(len(rows))]
        self._alias_of = [None if own else owner for own, owner in zip(owns, owners, strict=True)]
        modules = list(dict.fromkeys(row[0] for row in rows))
        self._call_index = [modules.index(row[0]) for row in rows]
        self._calls = len(modules)
        self._owners = [owners.index(owner) for owner in owners]
        self._chunk = Chunk(len(places) * NBYTES)

    def batch(self, number: int) -> Batch:
        """Return a forward's only batch; the next one's values take its memory."""
        values = torch.frombuffer(self._chunk.memory, dtype=torch.bfloat16)
        values.copy_(torch.randn(values.numel()))
        hashes = {
            i: xxhash.xxh3_64_intdigest(memoryview(self._chunk.memory)[offset : offset + NBYTES])
            for i, offset in enumerate(self._offset)
            if offset is not None
        }
        n = len(self.what)
        records = Records(
            what=self.what,
            call=[0] * n,
            call_index=self._call_index,
            hash=[hashes[owner] for owner in self._owners],
            offset=self._offset,
            alias_of=self._alias_of,
            chunk=self._chunk,
        )
        first = 2 * self._calls * number
        calls = [(first + 2 * i, first + 2 * i + 1) for i in range(self._calls)]
        phase = Phase.DECODE if number else Phase.PREFILL
        tick = Tick(0, number, phase, number, rows=1, cols=1)
        return Batch(tick, lambda: records, n, calls)
