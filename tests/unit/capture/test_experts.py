"""Which modules are given tokens that are not in order."""

import torch
from torch import nn

from hf_dumper.capture.experts import routed_modules


class Stacked(nn.Module):
    """One matrix per expert, and an activation that sees tokens sorted by expert."""

    def __init__(self, count):
        super().__init__()
        self.num_experts = count
        self.up = nn.Parameter(torch.ones(4, 3, 2))
        self.act = nn.ReLU()


class Layer(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.gate = nn.Linear(2, 4)
        self.experts = experts


def test_what_is_inside_of_stacked_experts_is_routed():
    assert routed_modules(Layer(Stacked(4))) == {"experts.act"}


def test_a_parameter_of_three_axes_makes_no_experts():
    assert routed_modules(Layer(Stacked(5))) == frozenset()


def test_the_experts_of_a_list_are_routed_with_all_they_have():
    experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])
    assert routed_modules(Layer(experts)) == {"experts.0", "experts.0.0", "experts.1"}


def test_a_list_of_layers_holds_no_experts():
    assert routed_modules(nn.ModuleList([nn.Linear(2, 2)])) == frozenset()
