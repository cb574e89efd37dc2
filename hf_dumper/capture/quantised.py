"""The plain tensors that quantised weights are made of.

A weight may be a tensor of a class of its own, as torchao's, or be packed away behind a method, as
in torch's modules of dynamic quantisation. What is stored and hashed are the parts it is made of,
byte for byte: integers, scales, zero points. Nothing is dequantised.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import torch

from hf_dumper.capture.naming import named_modules
from hf_dumper.capture.storable import PLAIN

Load = Callable[[], torch.Tensor]

_MOST: Final = 8
"""Nesting of tensors inside tensors at which no more is looked for."""


class Packed(NamedTuple):
    """A tensor that is made when it is asked for: its name, its form without values, its loader.

    `reason` says why it cannot be made, "" when it can.
    """

    name: str
    form: torch.Tensor
    load: Load
    reason: str = ""


def parts(name: str, tensor: torch.Tensor, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of what a tensor is made of; of a plain tensor that is itself.

    Parts are called `<name>.<attribute>`, as the tensor's class calls them.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in PLAIN or not callable(flatten) or depth >= _MOST:
        yield name, tensor
        return
    for attribute in flatten()[0]:
        yield from parts(f"{name}.{attribute}", getattr(tensor, attribute), depth + 1)


def packed(model: torch.nn.Module) -> Iterator[Packed]:
    """Yield what is packed away in the modules of a model, and what cannot be unpacked."""
    unpacked: set[str] = set()
    for name, module in named_modules(model):
        if name.rpartition(".")[0] in unpacked:  # the packed form of what was unpacked
            continue
        methods = [own for own in ("weight", "bias") if _is_method(module, own)]
        if "weight" in methods:
            unpacked.add(name)
            for own in methods:
                yield from _unpacked(f"{name}.{own}", getattr(module, own))
        for own, value in vars(module).items():
            if isinstance(value, torch.ScriptObject):
                why = f"packed away in a {type(module).__name__}, which does not give it"
                yield Packed(f"{name}.{own}", torch.empty(0, device="meta"), _no_value, why)


def packed_objects(model: torch.nn.Module) -> list[int]:
    """Return what changes when a packed weight is replaced."""
    values = (value for module in model.modules() for value in vars(module).values())
    return [id(value) for value in values if isinstance(value, torch.ScriptObject)]


def quantised_kinds(model: torch.nn.Module) -> dict[str, int]:
    """Return how many weights are quantised, by the class of tensor or module; empty for none."""
    special = (p for p in model.parameters() if type(p) not in PLAIN)
    classes = Counter(type(p).__name__ for p in special if hasattr(p, "__tensor_flatten__"))
    hidden = (m for m in model.modules() if _is_method(m, "weight"))
    modules = Counter(f"{type(m).__module__}.{type(m).__name__}" for m in hidden)
    return dict(classes + modules)


def _is_method(module: torch.nn.Module, name: str) -> bool:
    """Ask the class: an attribute of the instance may run a module, as a parametrization does."""
    return callable(getattr(type(module), name, None))


def _unpacked(name: str, method: Load) -> Iterator[Packed]:
    try:
        value = method()
    except Exception as error:  # an engine of another processor, say
        why = f"it cannot be unpacked: {type(error).__name__}"
        yield Packed(name, torch.empty(0, device="meta"), _no_value, why)
        return
    if value is None:  # no bias
        return
    if not value.is_quantized:
        yield Packed(name, value.to("meta"), method)
        return
    for own, tensor in _quantised(value).items():
        yield Packed(f"{name}.{own}", tensor.to("meta"), partial(_part, method, own))


def _part(method: Load, own: str) -> torch.Tensor:
    return _quantised(method())[own]


def _quantised(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the integers of a quantised tensor and what turns them into its values."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = torch.tensor(tensor.q_scale(), dtype=torch.float64)
        return {
            "int_repr": tensor.int_repr(),
            "scale": scale,
            "zero_point": torch.tensor(tensor.q_zero_point()),
        }
    return {
        "int_repr": tensor.int_repr(),
        "scale": tensor.q_per_channel_scales(),
        "zero_point": tensor.q_per_channel_zero_points(),
    }


def _no_value() -> torch.Tensor:
    return torch.empty(0)
