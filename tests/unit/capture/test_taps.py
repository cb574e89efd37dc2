"""Hooks of a module: names, parameters, call numbers and order, on modules made for it."""

import copy
from contextlib import ExitStack, suppress

import pytest
import torch
from torch import nn

from hf_dumper.capture.snapshot import Snapshot
from hf_dumper.capture.taps import new_intake, tap_modules
from hf_dumper.core.arena import Arena
from hf_dumper.core.types import Phase, Tick

X = torch.arange(4.0)

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


class Recorder:
    """Taps a module tree and keeps records and calls of each forward."""

    def __init__(self, root):
        self.errors, self.records, self.calls = [], [], []
        self.intake = new_intake()
        self.intake.fail = self.errors.append
        self.intake.inputs = self.intake.outputs = True
        self.snapshot = Snapshot(Arena(), self.take, self.intake)
        self.stack = ExitStack()
        tap_modules(root.named_modules(), self.intake, self.stack)

    def take(self, batch):
        self.records += batch.resolve()
        self.calls += batch.calls or []

    def run(self, module, *args, **kwargs):
        self.intake.stamp += 1
        self.snapshot.begin(Tick(0, 0, Phase.FORWARD, 0, 1, 4))
        self.intake.recording = True
        result = module(*args, **kwargs)
        self.intake.recording = False
        self.snapshot.close()
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
    assert bytes(before.span.view) == X.numpy().tobytes()
    assert bytes(after.span.view) == (X + 1).numpy().tobytes()


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
