"""Each tensor is copied once at most, into memory that is bounded and used again."""

import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hf_dumper
from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.core.arena import CHUNK_BYTES
from hf_dumper.core.types import ALIASED, STORED
from hf_dumper.store import BackgroundSink, DirectorySink
from hf_dumper.store.direct import BUFFER_BYTES
from tests.guards.counting import LARGE, MODES, Mappings, SpyArena, dump, generate

MIB = 1 << 20

hooks_of_both_kinds = pytest.mark.usefixtures("kind_of_hooks")


def sizes(path):
    """Return the bytes of the records by status, and of the aliases that may be copied."""
    with open_dump(path) as reader:
        rows = reader.index(0).select(["status", "nbytes"]).to_pylist()
    found = Counter()
    for row in rows:
        found[row["status"]] += row["nbytes"]
        if row["status"] == ALIASED and row["nbytes"] < LARGE:
            found["small aliases"] += row["nbytes"]
    return found


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("columns", [7, 300])
def test_a_tensor_is_copied_once_and_a_large_alias_not_at_all(
    tiny_llama, tmp_path, monkeypatch, mode, columns
):
    arena = SpyArena().use(monkeypatch)
    model = tiny_llama(max_position_embeddings=512)
    dump(model, tmp_path, lambda model: generate(model, 3, columns), **MODES[mode])
    found, copied = sizes(tmp_path), sum(arena.marks)
    assert copied <= found[STORED] + found["small aliases"]
    assert copied > found[STORED] - len(arena.marks)  # the last byte may look like none
    if columns > 7 and mode != "last logits":
        assert found[ALIASED] - found["small aliases"] > 10 * LARGE  # there were large ones
    assert arena.bytes_in_flight == 0


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
def test_a_long_generation_maps_no_more_memory_than_a_short_one(
    tiny_llama, tmp_path, monkeypatch, mode
):
    model, mapped = tiny_llama(), Mappings(monkeypatch)
    with register_hook(model, DumpConfig(tmp_path, "all", **MODES[mode])):
        generate(model, 40)
        # One chunk that the forward fills, one that the writer reads; a buffer of the file.
        assert sum(mapped.sizes) <= 2 * CHUNK_BYTES + 2 * BUFFER_BYTES
        generate(model, 40)
        assert sum(mapped.sizes) <= 2 * CHUNK_BYTES + 4 * BUFFER_BYTES


class SlowSink:
    """A directory sink that writes only while nothing else can go on.

    That is when the arena is full, and when a forward waits for its batches.
    """

    def __init__(self, monkeypatch, arena):
        self.gate = threading.Event()
        self.waited = 0
        write, flush = DirectorySink.write, BackgroundSink.flush

        def wait_and_write(sink, batch):
            self.gate.wait()
            write(sink, batch)

        def open_and_flush(sink, before=None):
            self.gate.set()
            flush(sink, before)
            self.gate.clear()

        monkeypatch.setattr(DirectorySink, "write", wait_and_write)
        monkeypatch.setattr(BackgroundSink, "flush", open_and_flush)
        arena.when_full, arena.when_taken = self.go_on, self.gate.clear

    def go_on(self):
        self.waited += 1
        self.gate.set()


def expected(model, run):
    """Return the outputs of every module of a forward, cloned."""
    seen, handles = {}, []
    for name, module in model.named_modules():

        def keep(_module, _args, output, name=name):
            if isinstance(output, torch.Tensor):
                seen[name] = output.detach().clone()

        handles.append(module.register_forward_hook(keep))
    run(model)
    for handle in handles:
        handle.remove()
    return seen


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", ["tensors", "statistics", "both"])
def test_a_writer_that_is_slow_holds_up_the_model_at_the_bound(
    tiny_llama, tmp_path, monkeypatch, mode
):
    arena = SpyArena(chunk_bytes=MIB // 8, max_bytes=MIB // 2).use(monkeypatch)
    sink = SlowSink(monkeypatch, arena)
    model = tiny_llama(max_position_embeddings=512, num_hidden_layers=6)
    run = lambda model: model(torch.arange(300)[None] % 100)  # noqa: E731
    want = expected(model, run)
    dump(model, tmp_path, run, **MODES[mode])
    found = sizes(tmp_path)
    assert found[STORED] > 4 * arena.max_bytes
    assert sink.waited >= 3  # whatever the writer did meanwhile, which is all that waited at most
    assert arena.max_bytes - arena.chunk_bytes < arena.peak <= arena.max_bytes
    if mode != "statistics":
        with open_dump(tmp_path) as reader:
            for name, tensor in want.items():
                assert torch.equal(reader.load(name), tensor), name


class Wide(nn.Module):
    """Returns tensors of the sizes it is told, each of which goes through a child."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.children_ = nn.ModuleList(nn.Hardswish() for _ in sizes)

    def forward(self, x):
        for i, (size, child) in enumerate(zip(self.sizes, self.children_, strict=True), 1):
            child(torch.full((size // 4,), float(i)))
        return x


@hooks_of_both_kinds
def test_a_tensor_above_the_bound_is_in_flight_alone(tmp_path, monkeypatch):
    arena = SpyArena(chunk_bytes=MIB // 8, max_bytes=MIB // 2).use(monkeypatch)
    SlowSink(monkeypatch, arena)
    largest = 2 * MIB
    model = Wide([MIB // 16] * 20 + [largest] + [MIB // 16] * 20)
    dump(model, tmp_path, lambda model: model(torch.ones(1)))
    assert arena.peak == largest


LAYOUTS = {
    "small, then large": [MIB // 16] * 40 + [MIB // 4] * 20,
    "large, then small": [MIB // 4] * 20 + [MIB // 16] * 40,
    "in turn": [MIB // 16, MIB // 4] * 20,
    "growing": [n * MIB // 16 for n in range(1, 8)],
    "one above the bound": [MIB // 16] * 20 + [2 * MIB, 2 * MIB] + [MIB // 16] * 20,
}


@hooks_of_both_kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_mapped_stays_below_the_bound_and_one_tensor(tmp_path, monkeypatch, layout):
    mapped = Mappings(monkeypatch)
    arena = SpyArena(chunk_bytes=MIB // 8, max_bytes=MIB // 2).use(monkeypatch)
    SlowSink(monkeypatch, arena)
    model = Wide(LAYOUTS[layout])
    with register_hook(model, DumpConfig(tmp_path)):
        for _ in range(2):
            model(torch.ones(1))
    assert mapped.peak <= arena.max_bytes + max(LAYOUTS[layout]) + BUFFER_BYTES


class Watched(nn.Module):
    """Returns memory of which a weak reference tells whether anything holds it."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.memory = lambda: None

    def forward(self, x):
        values = np.full(self.size, float(x), np.float32)
        self.memory = weakref.ref(values)
        return torch.from_numpy(values)


class Frees(nn.Module):
    """Drops the output of its child, and looks whether its memory went."""

    def __init__(self, size, fails=False):
        super().__init__()
        self.child = Watched(size)
        self.after = nn.Identity()
        self.fails = fails
        self.kept = []

    def forward(self, x):
        value = self.child(x)
        self.after([value, {"deep": value}])
        del value
        self.kept.append(self.child.memory() is not None)
        if self.fails:
            raise ValueError
        return x


@hooks_of_both_kinds
@pytest.mark.parametrize("size", [10, LARGE, 2 * MIB])
@pytest.mark.parametrize("fails", [False, True])
def test_no_live_tensor_is_kept(tmp_path, size, fails):
    model = Frees(size, fails)
    with register_hook(model, DumpConfig(tmp_path)):
        for _ in range(3):
            with suppress(ValueError):
                model(torch.ones(()))
    assert model.kept == [False] * 3


class Spread(nn.Module):
    """A head whose result is memory that is watched."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.memory = []

    def forward(self, x):
        values = self.head(x).detach().numpy().copy()
        self.memory.append(weakref.ref(values))
        return torch.from_numpy(values)


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
def test_no_logits_outlive_their_generation(tiny_llama, tmp_path, mode):
    model = tiny_llama()
    model.lm_head = head = Spread(model.lm_head)
    with register_hook(model, DumpConfig(tmp_path, "all", **MODES[mode])):
        generate(model, 4)
        assert [memory() for memory in head.memory] == [None] * 4
        model(torch.arange(5, 12)[None])
        assert head.memory[-1]() is None


CHILD = """
import resource, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.core.arena import Arena
import hf_dumper.session.model_dump as place

place.Arena = lambda: Arena(chunk_bytes=4 << 20, max_bytes=16 << 20)
torch.set_num_threads(1)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=512, num_hidden_layers=8,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048)).eval()
ids = torch.arange(1024)[None] % 64

def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

def run():
    model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)

with register_hook(model, DumpConfig(sys.argv[1] + "/first", "all", layer_name="lm_head")):
    run()  # whatever is imported and made once
run()
before = peak()
with register_hook(model, DumpConfig(sys.argv[1] + "/second", "all")):
    run()
extra = peak() - before
with open_dump(sys.argv[1] + "/second") as reader:
    print(extra, reader.run_info(0)["bytes"])
"""


def test_a_long_prompt_takes_no_more_memory_than_the_bound(tmp_path):
    pytest.importorskip("resource")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(hf_dumper.__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr
    extra, written = map(int, child.stdout.split())
    largest, margin = 2 * MIB, 30 * MIB  # the tables, the allocator, threads
    assert written > 100 * MIB
    assert extra < 16 * MIB + largest + margin
