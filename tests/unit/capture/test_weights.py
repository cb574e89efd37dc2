"""Which weights a model has: names, ties, selections, and values that lie elsewhere."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn

from hf_dumper.capture.weights import collect_weights, main_device
from hf_dumper.errors import SelectionError


class Tied(nn.Module):
    """Two layers that share a weight, a buffer that is saved and one that is not."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.last(self.block(self.first(x))) * self.scale


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied().eval()


def values(weights):
    return {name: w.load() for w in weights for name in w.names}


def state(model):
    everything = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: value.detach().clone() for name, value in everything}


def equal(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype is value.dtype
        assert torch.equal(got[name], value), name


def test_every_parameter_and_buffer_is_there(model):
    equal(values(collect_weights(model)), state(model))


def test_parameters_and_buffers_are_told_apart(model):
    kinds = {name: w.kind for w in collect_weights(model) for name in w.names}
    assert kinds["first.weight"] == "weight"
    assert kinds["scale"] == kinds["block.1.running_mean"] == "buffer"


def test_a_tied_weight_comes_once_with_all_its_names(model):
    names = [w.names for w in collect_weights(model) if "first.weight" in w.names]
    assert names == [("first.weight", "last.weight")]


def test_equal_values_alone_tie_nothing(model):
    model.last.weight = nn.Parameter(model.first.weight.detach().clone())
    assert all(len(w.names) == 1 for w in collect_weights(model))


def test_a_view_of_a_weight_is_no_name_of_it(model):
    model.block[0].weight = nn.Parameter(model.first.weight.detach().t())
    assert ("first.weight", "last.weight") in [w.names for w in collect_weights(model)]
    equal(values(collect_weights(model)), state(model))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("first", {"first.weight", "last.weight"}),
        ("root.block.0", {"block.0.weight", "block.0.bias"}),
        ("block.0*", {"block.0.weight", "block.0.bias"}),
    ],
)
def test_a_selection_takes_the_weights_of_its_modules(model, pattern, names):
    assert values(collect_weights(model, pattern)).keys() == names


def test_a_module_has_the_weights_of_what_is_inside_it(model):
    got = values(collect_weights(model, "block"))
    assert {"block.0.weight", "block.1.running_var"} <= got.keys()
    assert not any(name.startswith("first") for name in got)


@pytest.mark.parametrize("pattern", ["root", "*"])
def test_the_root_has_them_all(model, pattern):
    assert values(collect_weights(model, pattern)).keys() == state(model).keys()


def test_a_selection_of_nothing_is_an_error(model):
    with pytest.raises(SelectionError, match="'first'"):
        collect_weights(model, "frist")


@pytest.mark.parametrize("buffers", [False, True])
def test_weights_in_the_memory_of_the_host_have_their_values(model, buffers):
    want = state(model)
    cpu_offload(model, execution_device="cpu", offload_buffers=buffers)
    assert model.first.weight.is_meta
    weights = collect_weights(model)
    equal(values(weights), want)
    assert ("first.weight", "last.weight") in [w.names for w in weights]


def test_weights_on_a_disk_have_their_values(model, tmp_path):
    want = state(model)
    model.all_tied_weights_keys = {"last.weight": "first.weight"}
    disk_offload(model, tmp_path, execution_device="cpu")
    assert model.first.weight.is_meta
    weights = collect_weights(model)
    equal(values(weights), want)
    assert ("first.weight", "last.weight") in [w.names for w in weights]


def test_a_tie_on_a_disk_that_the_model_does_not_know_is_dumped_twice(model, tmp_path):
    want = state(model)
    disk_offload(model, tmp_path, execution_device="cpu")
    weights = collect_weights(model)
    assert all(len(w.names) == 1 for w in weights)
    equal(values(weights), want)


def test_an_offloaded_model_is_as_it_was_afterwards(model, tmp_path):
    x = torch.randn(2, 3)
    want = model(x)
    disk_offload(model, tmp_path, execution_device="cpu")
    values(collect_weights(model))
    assert model.first.weight.is_meta
    assert torch.equal(model(x), want)


def test_weights_without_values_say_why():
    weights = collect_weights(nn.Linear(2, 2, device="meta"))
    assert [w.reason for w in weights] == ["meta tensor, it has no values"] * 2


def test_what_cannot_be_stored_says_why(model):
    model.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))
    (wide,) = [w for w in collect_weights(model) if w.names == ("wide",)]
    assert wide.reason == "dtype complex128 cannot be stored"


def test_values_are_those_of_views_in_order(model):
    model.block[0].weight = nn.Parameter(torch.arange(9.0).reshape(3, 3).t())
    got = values(collect_weights(model))["block.0.weight"]
    assert got.is_contiguous()
    assert torch.equal(got, model.block[0].weight)


def test_the_main_device_is_that_of_the_first_parameter(model):
    assert main_device(model) == "cpu"
    assert main_device(nn.Linear(2, 2, device="meta")) == "cpu"
    assert main_device(nn.Identity()) == "cpu"


def test_the_main_device_of_an_offloaded_model_is_where_it_computes(model):
    cpu_offload(model, execution_device="cpu")
    hook = model.first._hf_hook  # one of cuda would ask for the device
    for one in getattr(hook, "hooks", (hook,)):
        one.execution_device = torch.device("cuda", 1)
    assert main_device(model) == "cuda1"
