"""Which devices a model is on, also when its weights lie elsewhere between two forwards."""

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from hf_dumper.capture.targets import execution_device, select_modules
from hf_dumper.config import DumpConfig
from hf_dumper.errors import SelectionError


class Hook:
    """What accelerate leaves on a module, as far as it is asked."""

    def __init__(self, device):
        self.execution_device = device


class Hooks:
    """Several of them in one."""

    def __init__(self, *hooks):
        self.hooks = hooks


def offloaded(device):
    """Return a model whose weights are on the host and which computes on a device."""
    model = cpu_offload(nn.Sequential(nn.Linear(2, 2)), execution_device="cpu")
    for module in model.modules():
        module._hf_hook = Hooks(Hook(None), Hook(device))
    return model


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda", 1), 1])
def test_a_model_whose_weights_are_offloaded_is_where_it_computes(device):
    found = select_modules(offloaded(device), DumpConfig(device_id=1))
    assert [name for name, _ in found] == ["root", "0"]


def test_another_device_is_refused_and_named():
    with pytest.raises(SelectionError, match="device_id=0 selects nothing: the model is on cuda:1"):
        select_modules(offloaded("cuda:1"), DumpConfig(device_id=0))


def test_a_model_without_parameters_is_on_no_device():
    with pytest.raises(SelectionError, match="the model is on no device"):
        select_modules(nn.Identity(), DumpConfig(device_id=0))


def test_a_module_without_hook_has_no_device_to_compute_on():
    assert execution_device(nn.Identity()) is None
