"""Instance attributes of a dumped model: they come with the first watcher and go with the last."""

import inspect
from contextlib import contextmanager

import pytest
from torch import nn

from hf_dumper.capture.guard import ModelGuard
from hf_dumper.errors import UnsupportedGenerationError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen = None

    def forward(self, x):
        return self.inner(x)

    def generate(self, inputs=None, logits_processor=None, **kwargs):
        """Generate nothing, and show what came."""
        self.seen = (inputs, logits_processor, kwargs)
        return "result"

    def generate_batch(self, inputs):
        """Generate several."""
        return inputs


class Watcher:
    """Notes what it is told."""

    def __init__(self, name="w", add=()):
        self.name, self.add, self.notes = name, add, []

    @contextmanager
    def watch_generate(self, call):
        for callback in self.add:
            call.add("logits_processor", callback)
        self.notes.append("in")
        try:
            yield lambda result: self.notes.append(result)
        finally:
            self.notes.append("out")


@pytest.fixture
def model():
    return Model()


def join(model, watcher=None):
    watcher = watcher or Watcher()
    guard = ModelGuard.of(model)
    guard.join(watcher)
    return guard, watcher


def leaves_nothing(model, before):
    return set(model.__dict__) == before


def test_the_last_to_leave_takes_everything_along(model):
    before = set(model.__dict__)
    guard, watcher = join(model)
    guard.leave(watcher)
    assert leaves_nothing(model, before)


def test_leaving_twice_is_harmless(model):
    before = set(model.__dict__)
    guard, watcher = join(model)
    guard.leave(watcher)
    guard.leave(watcher)
    assert leaves_nothing(model, before)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_watchers_may_leave_in_any_order(model, order):
    before = set(model.__dict__)
    pairs = [join(model), join(model)]
    guard, watcher = pairs[order[0]]
    guard.leave(watcher)
    model.generate()
    assert pairs[order[1]][1].notes == ["in", "result", "out"]
    assert watcher.notes == []
    pairs[order[1]][0].leave(pairs[order[1]][1])
    assert leaves_nothing(model, before)


def test_the_second_watcher_joins_the_guard_of_the_first(model):
    assert join(model)[0] is join(model)[0]


def test_a_generate_of_the_users_own_comes_back(model):
    mine = model.generate = lambda *_args, **_kwargs: "mine"
    guard, watcher = join(model)
    assert model.generate() == "mine"
    guard.leave(watcher)
    assert model.__dict__["generate"] is mine


def test_the_signature_of_generate_stays(model):
    before = inspect.signature(model.generate)
    join(model)
    assert inspect.signature(model.generate) == before


def test_a_watcher_sees_the_result(model):
    _, watcher = join(model)
    assert model.generate(1) == "result"
    assert watcher.notes == ["in", "result", "out"]


def test_an_exception_passes_unchanged_and_the_watcher_is_left(model):
    error = ZeroDivisionError("mine")

    def broken(*_args, **_kwargs):
        raise error

    model.generate = broken
    _, watcher = join(model)
    with pytest.raises(ZeroDivisionError) as caught:
        model.generate()
    assert caught.value is error
    assert watcher.notes == ["in", "out"]


def test_after_an_exception_generate_works_again(model):
    answers = iter([ZeroDivisionError("first")])

    def flaky(inputs=None):
        for error in answers:
            raise error
        return "second"

    model.generate = flaky
    join(model)
    with pytest.raises(ZeroDivisionError):
        model.generate()
    assert model.generate() == "second"


def test_positional_arguments_and_keywords_arrive_as_they_were(model):
    join(model)
    model.generate(1, [2], three=3)
    assert model.seen == (1, [2], {"three": 3})


def test_a_callback_is_added_to_the_list_of_the_user(model):
    mine, ours = object(), object()
    given = [mine]
    join(model, Watcher(add=[ours]))
    model.generate(logits_processor=given)
    assert model.seen[1] == [mine, ours]
    assert given == [mine]


def test_a_callback_that_was_passed_is_not_added_again(model):
    ours = object()
    join(model, Watcher(add=[ours]))
    model.generate(logits_processor=[ours])
    assert model.seen[1] == [ours]


class Equal:
    def __eq__(self, other):
        return True

    __hash__ = None


def test_callbacks_are_told_apart_by_identity(model):
    ours, twin = Equal(), Equal()
    join(model, Watcher(add=[ours]))
    model.generate(logits_processor=[twin])
    assert [entry is ours for entry in model.seen[1]] == [False, True]


def test_a_generate_inside_a_generate_is_refused(model):
    class Nested(Model):
        def generate(self, inputs=None, **kwargs):
            return self.generate() if inputs else "result"

    nested = Nested()
    join(nested)
    with pytest.raises(UnsupportedGenerationError, match="inside a generate"):
        nested.generate(1)
    assert nested.generate() == "result"


class Wrapped(Model):
    """Has the signature that wrappers and models from the hub often have."""

    def generate(self, *args, **generate_kwargs):
        return super().generate(*args, **generate_kwargs)


def test_keywords_reach_a_generate_that_names_them_otherwise():
    model = Wrapped()
    join(model)
    model.generate(inputs=1, three=3)
    assert model.seen == (1, None, {"three": 3})


def test_positional_arguments_reach_a_generate_that_names_none():
    model = Wrapped()
    join(model)
    model.generate(1, [2], three=3)
    assert model.seen == (1, [2], {"three": 3})


def test_a_callback_reaches_a_generate_that_names_no_argument():
    model, ours = Wrapped(), object()
    join(model, Watcher(add=[ours]))
    model.generate(1)
    assert model.seen == (1, [ours], {})


def test_generate_batch_is_refused(model):
    join(model)
    with pytest.raises(UnsupportedGenerationError, match="generate_batch"):
        model.generate_batch([1])


def test_a_model_without_generate_gets_none():
    plain = nn.Linear(2, 2)
    guard, watcher = join(plain)
    assert not hasattr(plain, "generate")
    guard.leave(watcher)
