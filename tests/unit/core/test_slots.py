"""Names of the tensors inside inputs and outputs."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from hf_dumper.core.slots import MAX_DEPTH, leaves

A, B, C = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)
Pair = namedtuple("Pair", "left right")


@dataclass
class Box:
    first: torch.Tensor
    rest: object = None


CASES = {
    "bare": (A, [("output", A)]),
    "tuple of one": ((A,), [("output.0", A)]),
    "list of one": ([A], [("output.0", A)]),
    "tuple": ((A, B), [("output.0", A), ("output.1", B)]),
    "None inside": ((A, None), [("output.0", A), ("output.1", None)]),
    "None": (None, [("output", None)]),
    "number": (3, [("output", 3)]),
    "dict": ({"x": A, 1: B}, [("output.x", A), ("output.1", B)]),
    "ordered": (OrderedDict(b=A, a=B), [("output.b", A), ("output.a", B)]),
    "nested": ({"x": [A, (B,)]}, [("output.x.0", A), ("output.x.1.0", B)]),
    "named tuple": (Pair(A, B), [("output.left", A), ("output.right", B)]),
    "dataclass": (Box(A, [B]), [("output.first", A), ("output.rest.0", B)]),
    "dataclass with None": (Box(A), [("output.first", A), ("output.rest", None)]),
    "class of a dataclass": (Box, [("output", Box)]),
    "empty tuple": ((), []),
    "empty dict": ({}, []),
    "string": ("ab", [("output", "ab")]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_leaves_of_a_value_have_these_names(case):
    value, expected = CASES[case]
    found = list(leaves("output", value))
    assert [slot for slot, _ in found] == [slot for slot, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))


def test_a_model_output_names_its_fields_and_leaves_out_what_is_none():
    value = BaseModelOutput(last_hidden_state=A, attentions=(B, C))
    slots = [slot for slot, _ in leaves("output", value)]
    assert slots == ["output.last_hidden_state", "output.attentions.0", "output.attentions.1"]


def test_the_fields_of_what_torch_returns_are_numbered():
    value = torch.max(torch.ones(2, 3), dim=1)
    assert [slot for slot, _ in leaves("output", value)] == ["output.0", "output.1"]


def test_a_value_that_is_too_deep_is_a_leaf_of_its_own():
    value: object = A
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    ((slot, leaf),) = leaves("x", value)
    assert slot == "x" + ".0" * MAX_DEPTH
    assert isinstance(leaf, list)


def test_a_value_just_deep_enough_is_found():
    value: object = A
    for _ in range(MAX_DEPTH):
        value = [value]
    ((_, leaf),) = leaves("x", value)
    assert leaf is A


def test_a_cycle_ends():
    value: list[object] = []
    value.append(value)
    assert len(list(leaves("x", value))) == 1
