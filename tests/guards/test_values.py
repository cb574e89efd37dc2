"""A value on disk is what it was when the hook saw it, whatever happens to its memory later."""

import threading

import pytest
import torch
from torch import nn

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.store import BackgroundSink, DirectorySink
from tests.guards.counting import LARGE

pytestmark = pytest.mark.usefixtures("kind_of_hooks")

SIZES = [4, LARGE // 4 - 1, LARGE // 4, 1 << 18]


def through_data(x, value):
    x.data.fill_(value)


def in_place(x, value):
    with torch.no_grad():
        x.fill_(value)


def through_numpy(x, value):
    x.detach().numpy()[...] = value


def through_a_view(x, value):
    x.detach().view(-1)[:].copy_(torch.full((x.numel(),), value))


def by_out(x, value):
    with torch.no_grad():
        torch.add(torch.full_like(x, value), 0, out=x)


WRITES = [through_data, in_place, through_numpy, through_a_view, by_out]
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


class Sees(nn.Module):
    """Returns what it is given; the hooks see it once as input and once as output."""

    def forward(self, x):
        return x


class Rewrites(nn.Module):
    """Shows one memory with one value after the other to its child."""

    def __init__(self, write, size, values, where):
        super().__init__()
        self.child = Sees()
        self.write, self.size, self.values, self.where = write, size, values, where

    def forward(self, x):
        y = torch.empty(self.size)
        for value in self.values:
            self.write(y, value)
            self.where(self.child, y)
        self.write(y, -1.0)
        return x


class Writer(nn.Module):
    """Writes into its input between its own two hooks."""

    def __init__(self, write):
        super().__init__()
        self.write = write

    def forward(self, x):
        self.write(x, float(x[0]) + 0.5)
        return x


@pytest.fixture
def late_writer(monkeypatch):
    """Keep the writer from its work until the forward is over and its memory written anew."""
    gate = threading.Event()
    write, flush = DirectorySink.write, BackgroundSink.flush

    def late(sink, batch):
        gate.wait()
        write(sink, batch)

    def open_and_flush(sink, before=None):
        gate.set()
        flush(sink, before)
        gate.clear()

    monkeypatch.setattr(DirectorySink, "write", late)
    monkeypatch.setattr(BackgroundSink, "flush", open_and_flush)


def run(model, path, mode, **options):
    with register_hook(model, DumpConfig(path, **options)), mode():
        model(torch.ones(1))
    return open_dump(path)


VALUES = (1.0, 2.0, 1.0, 1.0, 3.0, 2.0)
"""New ones, the same again, and one that came back."""


@pytest.mark.usefixtures("late_writer")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES)
def test_memory_that_is_written_between_two_hooks_is_recorded_each_time(
    tmp_path, write, mode, size
):
    model = Rewrites(write, size, VALUES, lambda child, y: child(y))
    with run(model, tmp_path, mode) as reader:
        for call, value in enumerate(VALUES):
            for slot in ("input.0", "output"):
                got = reader.load("child", slot, call=call)
                assert torch.equal(got, torch.full((size,), value)), (slot, call)


@pytest.mark.usefixtures("late_writer")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", WRITES)
def test_a_module_that_writes_into_its_input_has_two_values(tmp_path, write, mode, size):
    model = Rewrites(in_place, size, VALUES, lambda child, y: child(y))
    model.child = Writer(write)
    with run(model, tmp_path, mode) as reader:
        for call, value in enumerate(VALUES):
            for slot, want in (("input.0", value), ("output", value + 0.5)):
                got = reader.load("child", slot, call=call)
                assert torch.equal(got, torch.full((size,), want)), (slot, call)


@pytest.mark.usefixtures("late_writer")
@pytest.mark.parametrize("size", SIZES)
def test_statistics_are_those_of_the_values_at_capture(tmp_path, size):
    model = Rewrites(through_data, size, VALUES, lambda child, y: child(y))
    with run(model, tmp_path, torch.no_grad, dump_statistics_mode=1) as reader:
        rows = reader.index(0).to_pylist()
    means = {(r["slot"], r["call"]): r["mean"] for r in rows if r["module"] == "child"}
    assert means == {
        (slot, call): value for call, value in enumerate(VALUES) for slot in ("input.0", "output")
    }


class Recycles(nn.Module):
    """Frees each tensor before it makes the next, in the very same memory."""

    def __init__(self, size, values):
        super().__init__()
        self.child = Sees()
        self.size, self.values = size, values
        self.memory = bytearray(4 * size)
        self.addresses = set()

    def forward(self, x):
        for value in self.values:
            y = torch.frombuffer(self.memory, dtype=torch.float32)
            y.fill_(value)
            self.addresses.add(y.data_ptr())
            self.child(y)
            del y
        self.memory[:] = bytes(len(self.memory))
        return x


@pytest.mark.usefixtures("late_writer")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_memory_that_is_used_again_for_another_tensor_is_another_value(tmp_path, mode, size):
    model = Recycles(size, VALUES)
    with run(model, tmp_path, mode) as reader:
        assert len(model.addresses) == 1
        for call, value in enumerate(VALUES):
            assert torch.equal(reader.load("child", call=call), torch.full((size,), value)), call


@pytest.mark.usefixtures("late_writer")
@pytest.mark.parametrize("size", SIZES)
def test_the_allocator_may_use_the_memory_of_a_freed_activation(tmp_path, size):
    class Frees(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = Sees()

        def forward(self, x):
            for i in range(20):
                self.child(torch.full((size,), float(i)))  # nothing else holds it
            return x

    with run(Frees(), tmp_path, torch.inference_mode) as reader:
        for i in range(20):
            assert torch.equal(reader.load("child", call=i), torch.full((size,), float(i)))
