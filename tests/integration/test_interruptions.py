"""Interruptions, other threads, odd modules: the model goes on, the dump says what it lacks."""

import threading

import pytest
import torch
from torch import nn

from hf_dumper import (
    CaptureError,
    DumpConfig,
    DumpIncompleteWarning,
    EmptyDumpError,
    ModelError,
    open_dump,
    register_hook,
)

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def generate(model):
    return model.generate(IDS, max_new_tokens=3)


def forward(model):
    with torch.no_grad():
        return model(IDS).logits


WAYS = {"generate": generate, "forward": forward}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_leaves_the_session_usable(model, tmp_path, way, kind):
    state = torch.get_rng_state()
    with register_hook(model, DumpConfig(tmp_path, seed=1)) as session:

        def hook(*_):
            raise kind

        handle = model.model.layers[1].register_forward_pre_hook(hook)
        with pytest.raises(kind):
            WAYS[way](model)
        handle.remove()
        WAYS[way](model)
        assert session.last_run == 1
    assert torch.equal(torch.get_rng_state(), state)
    with open_dump(tmp_path) as reader:
        assert [reader.run_info(run)["complete"] for run in (0, 1)] == [False, True]


@pytest.mark.parametrize("way", WAYS)
def test_closing_after_an_interruption_ends_everything(model, tmp_path, way):
    state, attributes = torch.get_rng_state(), set(model.__dict__)
    session = register_hook(model, DumpConfig(tmp_path, seed=1))

    def hook(*_):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        WAYS[way](model)
    handle.remove()
    session.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(model.__dict__) - attributes == {"dump"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_closing_in_the_middle_of_a_generation_does_not_harm_it(model, tmp_path):
    want = generate(model)
    attributes = set(model.__dict__)
    session = register_hook(model, DumpConfig(tmp_path))
    closer = model.lm_head.register_forward_hook(lambda *_: session.close())
    assert torch.equal(generate(model), want)
    closer.remove()
    assert set(model.__dict__) - attributes == {"dump"}
    assert session.closed
    with open_dump(tmp_path) as reader:
        assert "closed in the middle" in reader.run_info(0)["incomplete"]


class Weird(nn.Module):
    """Takes a cache that cannot be asked for its length without an argument."""

    def forward(self, x, past_key_values):
        return x + 1


class OddCache:
    def get_seq_length(self, layer):
        return layer


def test_what_we_cannot_read_of_the_inputs_does_not_reach_the_model(tmp_path):
    model = Weird()
    session = register_hook(model, DumpConfig(tmp_path))
    with pytest.warns(DumpIncompleteWarning):
        assert torch.equal(model(torch.ones(2), OddCache()), torch.full((2,), 2.0))
    model(torch.ones(2), None)
    session.close()


class Silent(nn.Module):
    def forward(self, x):
        """Return nothing."""


def test_a_module_that_returns_none_is_not_taken_for_one_that_raised(tmp_path):
    model = Silent()
    with register_hook(model, DumpConfig(tmp_path)):
        try:
            {}["missing"]
        except KeyError:
            model(torch.ones(2))
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]


def test_another_thread_during_a_run_is_refused_and_the_run_is_whole(model, tmp_path):
    raised = []

    def elsewhere():
        try:
            model(IDS)
        except CaptureError as error:
            raised.append(str(error))

    def hook(*_):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    want = generate(model)
    with register_hook(model, DumpConfig(tmp_path)):
        handle = model.model.layers[0].register_forward_pre_hook(hook)
        got = generate(model)
        handle.remove()
    assert "Another thread" in raised[0]
    assert torch.equal(want, got)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0,)
        assert reader.run_info(0)["complete"]


class Clashing(nn.Module):
    """Returns two tensors whose names come out the same."""

    def forward(self, x):
        return {1: x + 1, "1": x + 2, "a.b": x + 3, "a": {"b": x + 4}}


def test_two_tensors_of_one_name_do_not_cost_the_rest_of_the_run(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), Clashing())
    with register_hook(model, DumpConfig(tmp_path)):
        model(torch.ones(1, 2))
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]
        assert reader.load("0").shape == (1, 2)


class Rooted(nn.Module):
    """Has a child that is named like the outermost module of a dump."""

    def __init__(self):
        super().__init__()
        self.root = nn.Linear(2, 3)

    def forward(self, x):
        return self.root(x) + 1


def test_a_child_named_root_is_not_taken_for_the_outermost_module(tmp_path):
    with pytest.raises(ModelError, match="child named 'root'"):
        register_hook(Rooted(), DumpConfig(tmp_path))


def test_a_model_on_the_meta_device_runs_as_before(tmp_path):
    model = nn.Linear(2, 3, device="meta")
    session = register_hook(model, DumpConfig(tmp_path))
    assert model(torch.ones(1, 2, device="meta")).shape == (1, 3)
    assert session._observer.snapshot.skipped
    with pytest.raises(EmptyDumpError, match="meta"):
        session.close()


def test_meta_ids_do_not_reach_the_model_as_an_error_of_ours(tmp_path):
    model = nn.Embedding(8, 3, device="meta")
    session = register_hook(model, DumpConfig(tmp_path))
    assert model(torch.ones(1, 2, device="meta", dtype=torch.long)).shape == (1, 2, 3)
    with pytest.raises(EmptyDumpError):
        session.close()


def test_gradients_are_those_of_the_plain_model(model, tmp_path):
    def gradients():
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    want = gradients()
    with register_hook(model, DumpConfig(tmp_path)):
        got = gradients()
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_a_large_integer_does_not_cost_the_statistics_of_a_run(tmp_path):
    model = nn.Identity()
    with register_hook(model, DumpConfig(tmp_path, dump_statistics_mode=1)):
        model(torch.tensor([2**63 - 1, 0]))
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]


class BrokenTokenizer:
    def batch_decode(self, sequences):
        raise NotImplementedError

    def save_pretrained(self, save_directory):
        """Keep nothing."""


def test_a_tokenizer_that_cannot_decode_does_not_cost_the_result(model, tmp_path):
    want = generate(model)
    with register_hook(model, DumpConfig(tmp_path), tokenizer=BrokenTokenizer()):
        assert torch.equal(generate(model), want)
