"""Copies of a guarded model: plain, while the original stays guarded."""

import copy
import pickle
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from hf_dumper.capture.guard import HookOwner, ModelGuard


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x)

    def generate(self):
        """Generate nothing."""
        return "result"


class Watcher(HookOwner):
    """Notes what it is told, and every forward of the inner module."""

    def __init__(self):
        self.notes = []

    @contextmanager
    def watch_generate(self, call):
        self.notes.append("in")
        yield self.notes.append
        self.notes.append("out")

    def hook(self, *_):
        self.notes.append("forward")


@pytest.fixture
def model():
    return Model()


def join(model):
    guard, watcher = ModelGuard.of(model), Watcher()
    guard.join(watcher)
    model.inner.register_forward_hook(watcher.hook)
    return guard, watcher


def leaves_nothing(model, before):
    return set(model.__dict__) == before


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "old pickle": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_plain(model, how):
    before = set(model.__dict__)
    join(model)
    twin = COPIES[how](model)
    assert type(twin) is Model
    assert leaves_nothing(twin, before)
    assert not twin.inner._forward_hooks


@pytest.mark.parametrize("how", COPIES)
def test_the_original_is_still_watched_after_a_copy(model, how):
    _, watcher = join(model)
    COPIES[how](model)
    model.generate()
    model(torch.ones(1, 2))
    assert watcher.notes == ["in", "result", "out", "forward"]


def test_a_deep_copy_that_fails_leaves_the_original_watched(model):
    model.lock = threading.Lock()
    _, watcher = join(model)
    with pytest.raises(TypeError):
        copy.deepcopy(model)
    model(torch.ones(1, 2))
    assert watcher.notes == ["forward"]
    assert "generate" in model.__dict__


def test_a_pickled_model_shares_no_memory_twice(model):
    model.tied = model.inner
    join(model)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.tied is twin.inner
    assert torch.equal(twin.inner.weight, model.inner.weight)


def test_a_shallow_copy_shares_the_parameters(model):
    join(model)
    assert copy.copy(model).inner.weight is model.inner.weight


def test_a_deep_copy_has_parameters_of_its_own(model):
    join(model)
    assert copy.deepcopy(model).inner.weight is not model.inner.weight


def test_a_memo_is_honoured(model):
    join(model)
    twin = copy.deepcopy([model, model])
    assert twin[0] is twin[1]


def test_gradients_of_the_original_stay_where_they_are(model):
    model(torch.ones(1, 2)).sum().backward()
    join(model)
    pickle.dumps(model)
    assert model.inner.weight.grad is not None
