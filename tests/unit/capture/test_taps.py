"""Hooks of a module: names, parameters, call numbers and order, on modules made for it."""

import copy
import os
from contextlib import ExitStack, suppress

import pytest
import torch
from torch import nn

from hf_dumper.capture.hooks import Intake
from hf_dumper.capture.snapshot import Snapshot
from hf_dumper.capture.taps import announce_kernels, new_intake, tap_modules
from hf_dumper.core.arena import Arena
from hf_dumper.core.compiled import PURE_PYTHON
from hf_dumper.core.types import Phase, Tick

X = torch.arange(4.0)

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


class Recorder:
    """Taps a module tree and keeps records and calls of each forward."""

    def __init__(self, root, arena=None, device=None):
        self.root = root
        self.errors, self.records, self.calls, self.bytes = [], [], [], []
        self.arena = arena or Arena()
        self.intake = new_intake()
        self.intake.fail = self.errors.append
        self.intake.inputs = self.intake.outputs = True
        self.snapshot = Snapshot(self.arena, self.take, self.intake, device=device)
        self.stack = ExitStack()
        tap_modules(root.named_modules(), self.intake, self.stack)

    def take(self, batch):
        records = batch.resolve()
        self.records += records
        self.bytes += [None if r.span is None else bytes(r.span.view) for r in records]
        self.calls += batch.calls or []
        for chunk in batch.spent:
            self.arena.release(chunk)

    def run(self, module, *args, **kwargs):
        self.intake.stamp += 1
        self.snapshot.begin(Tick(0, 0, Phase.FORWARD, 0, 1, 4))
        self.intake.recording = True
        result = module(*args, **kwargs)
        self.intake.recording = False
        self.snapshot.end()
        return result

    def found(self):
        return [(r.what.module, r.what.slot, r.call) for r in self.records]


class Three(nn.Module):
    """Calls one child three times."""

    def __init__(self):
        super().__init__()
        self.child = nn.Identity()

    def forward(self, x):
        return self.child(self.child(self.child(x) + 1) + 1)


class Caught(nn.Module):
    """Catches the exception of its child and goes on with it."""

    def __init__(self):
        super().__init__()
        self.child = Picky()

    def forward(self, x):
        with suppress(ValueError):
            self.child(-x)
        return self.child(x)


class Picky(nn.Module):
    def forward(self, x):
        if x.sum() < 0:
            raise ValueError
        return x * 2


class Keywords(nn.Module):
    def forward(self, x, scale=None, *rest, **more):
        return {"x": x, "pair": (x, None)}


def test_the_calls_of_one_module_are_numbered():
    root = Three()
    recorder = Recorder(root)
    recorder.run(root, X)
    assert [k for k in recorder.found() if k[0] == "child"] == [
        ("child", slot, n) for n in range(3) for slot in ("input.0", "output")
    ]


def test_call_numbers_start_again_with_every_forward():
    root = Three()
    recorder = Recorder(root)
    recorder.run(root, X)
    recorder.records.clear()
    recorder.run(root, X)
    assert max(r.call for r in recorder.records) == 2


def test_children_complete_before_their_parents():
    root = Three()
    recorder = Recorder(root)
    recorder.run(root, X)
    outs = {(r.what.module, r.call): recorder.calls[r.call_index][1] for r in recorder.records}
    assert outs["child", 0] < outs["child", 1] < outs["child", 2] < outs["root", 0]


def test_a_call_that_raised_has_no_completion():
    root = Caught()
    recorder = Recorder(root)
    recorder.run(root, X)
    assert [out == -1 for _, out in recorder.calls] == [False, True, False]


def test_after_a_caught_exception_the_outputs_belong_to_the_right_call():
    root = Caught()
    recorder = Recorder(root)
    recorder.run(root, X)
    assert ("child", "output", 1) in recorder.found()
    assert ("child", "output", 0) not in recorder.found()


def test_inputs_have_their_parameters_names():
    root = Keywords()
    recorder = Recorder(root)
    recorder.run(root, X, X + 1, X + 2, extra={"a": [X + 3]})
    params = {
        r.what.slot: r.what.param for r in recorder.records if r.what.slot.startswith("input")
    }
    assert params == {
        "input.0": "x",
        "input.1": "scale",
        "input.2": "",
        "input.extra.a.0": "extra.a.0",
    }


def test_the_parameter_of_a_nested_positional_input_is_nested_too():
    root = Keywords()
    recorder = Recorder(root)
    recorder.run(root, (X, [X + 1]))
    assert [r.what.param for r in recorder.records if r.what.slot.startswith("input")] == [
        "x.0",
        "x.1.0",
    ]


def test_what_is_no_tensor_is_counted_by_its_type():
    root = Keywords()
    recorder = Recorder(root)
    recorder.run(root, X, "text")
    assert recorder.snapshot.skipped == {
        "not a tensor: str": 1,
        "not a tensor: NoneType": 1,
    }


@pytest.mark.parametrize(("inputs", "outputs"), [(True, False), (False, True)])
def test_one_part_may_be_left_out(inputs, outputs):
    root = Three()
    recorder = Recorder(root)
    recorder.intake.inputs, recorder.intake.outputs = inputs, outputs
    recorder.run(root, X)
    slots = {r.what.slot for r in recorder.records}
    assert slots == ({"input.0"} if inputs else {"output"})
    assert all(out >= 0 for _, out in recorder.calls)


def test_an_input_changed_in_place_is_recorded_as_it_came_in():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.add_(1)

    root = InPlace()
    recorder = Recorder(root)
    recorder.run(root, X.clone())
    (before, after) = recorder.records
    assert (before.what.slot, after.what.slot) == ("input.0", "output")
    assert recorder.bytes == [X.numpy().tobytes(), (X + 1).numpy().tobytes()]


def test_an_error_of_ours_does_not_reach_the_model():
    root = Three()
    recorder = Recorder(root)
    recorder.intake.take = recorder.intake.describe = lambda *_: 1 / 0
    assert torch.equal(recorder.run(root, X), X + 2)
    assert isinstance(recorder.errors[0], ZeroDivisionError)


def test_nothing_is_recorded_when_recording_is_off():
    root = Three()
    recorder = Recorder(root)
    root(X)
    assert recorder.intake.calls == []


def test_the_hooks_go_with_the_stack():
    root = Three()
    Recorder(root).stack.close()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in root.modules())


def test_a_copied_submodule_records_nothing():
    root = Three()
    recorder = Recorder(root)
    twin = copy.deepcopy(root.child)
    recorder.run(twin, X)
    assert recorder.records == []


def test_the_order_of_calls_goes_on_over_the_forwards_of_a_run():
    root = Three()
    recorder = Recorder(root)
    recorder.run(root, X)
    recorder.run(root, X)
    starts = [seq_in for seq_in, _ in recorder.calls]
    assert starts == sorted(set(starts))


class Pass(nn.Module):
    """Takes anything and gives it back."""

    def forward(self, *args, **kwargs):
        return args, kwargs


def test_the_kind_that_was_asked_for_is_used(kind_of_hooks):
    assert (type(new_intake()) is Intake) == bool(os.environ.get(PURE_PYTHON))


VALUES = {
    "seven dimensions": torch.arange(4.0).view(1, 2, 1, 1, 2, 1, 1),
    "scalar": torch.tensor(2.0),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "one row of a transposed one": torch.arange(6.0).view(2, 3).t()[:, :1],
    "expanded": torch.ones(1).expand(4),
    "negative": torch._neg_view(torch.arange(3.0)),
    "complex": torch.ones(2, dtype=torch.complex64),
    "parameter": nn.Parameter(torch.ones(3)),
    "half": torch.ones(3, dtype=torch.float16),
    "larger than is copied in the hook": torch.randn(100_000),
    "behind an offset": torch.arange(9.0)[4:],
}


@pytest.mark.parametrize("name", VALUES)
def test_any_tensor_is_recorded_with_its_own_bytes(name):
    recorder = Recorder(Pass())
    recorder.run(recorder.root, VALUES[name])
    record = recorder.records[0]
    expected = VALUES[name].detach().resolve_neg().contiguous().view(-1).view(torch.uint8)
    assert recorder.bytes[0] == expected.numpy().tobytes()
    assert record.what.shape == tuple(VALUES[name].shape)


def test_a_slot_may_change_its_shape_and_type_at_every_call():
    recorder = Recorder(Pass())
    tensors = [torch.ones(n, dtype=d) for n in range(1, 7) for d in (torch.int8, torch.float32)]
    for tensor in tensors * 2:
        recorder.run(recorder.root, tensor)
    found = [(r.what.shape, r.what.dtype) for r in recorder.records if r.what.slot == "input.0"]
    assert found == [(tuple(t.shape), str(t.dtype)[6:]) for t in tensors] * 2


def test_keyword_arguments_may_change_their_order():
    recorder = Recorder(Pass())
    recorder.run(recorder.root, a=X, b=X + 1)
    recorder.run(recorder.root, b=X + 1, c=X + 2, a=X)
    slots = [r.what.slot for r in recorder.records if r.what.slot.startswith("input")]
    assert slots == [f"input.{name}" for name in "abbca"]


def test_nested_values_are_named_by_their_way_in():
    recorder = Recorder(Pass())
    recorder.run(recorder.root, [X, (X + 1, {"k": X + 2}), None])
    slots = [r.what.slot for r in recorder.records if r.what.slot.startswith("input")]
    assert slots == ["input.0.0", "input.0.1.0", "input.0.1.1.k"]
    assert recorder.snapshot.skipped["not a tensor: NoneType"] == 2


def test_deep_nesting_and_cycles_come_to_an_end():
    loop = [X]
    loop.append(loop)
    recorder = Recorder(Pass())
    recorder.run(recorder.root, loop)
    assert recorder.errors == []
    assert recorder.snapshot.skipped["not a tensor: list"] > 0


def test_one_device_only_leaves_the_others_out():
    recorder = Recorder(Pass(), device=0)
    recorder.run(recorder.root, X)
    assert recorder.records == []
    assert recorder.snapshot.skipped["on another device"] == 2


def test_a_full_chunk_is_exchanged_in_the_middle_of_a_forward():
    recorder = Recorder(Pass(), arena=Arena(4096, 16 * 4096))
    tensors = [torch.full((600,), float(i)) for i in range(12)]
    recorder.run(recorder.root, *tensors)
    assert recorder.bytes[:12] == [t.numpy().tobytes() for t in tensors]


def test_long_kernels_are_announced_by_the_largest_modules():
    model = nn.Sequential(nn.Embedding(9000, 64), nn.Linear(64, 64), nn.Linear(64, 9000))
    told, stack = [], ExitStack()
    announce_kernels(model, lambda: told.append(1), stack)
    model(torch.ones(1, dtype=torch.long))
    copy.deepcopy(model[2])(torch.ones(1, 64))
    assert told == [1]
    stack.close()
    assert not any(m._forward_pre_hooks for m in model.modules())
