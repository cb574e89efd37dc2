"""Parameters and buffers of a model, also of one whose weights lie elsewhere than in the model.

accelerate keeps the weights of an offloaded module in a map, in memory or on a disk, and puts a
tensor without values in their place; its hook brings them in for each forward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hf_dumper.capture.naming import named_modules, plain_name
from hf_dumper.capture.quantised import Packed, packed, parts
from hf_dumper.capture.storable import PLAIN, STORABLE, shape_of, unstorable
from hf_dumper.capture.targets import execution_device
from hf_dumper.core.selection import match_names
from hf_dumper.core.types import ROOT
from hf_dumper.core.weights import BUFFER, PARAMETER, Weight

Load = Callable[[], torch.Tensor]


def collect_weights(
    model: torch.nn.Module, layer_name: str | Sequence[str] | None = None
) -> list[Weight]:
    """Return the parameters and buffers of the modules that `layer_name` selects; no values yet.

    As in torch, the parameters of a module are also those of the modules inside it. Tied weights
    come once, under all their names, also those outside of the selection. What has no values that
    can be stored is there with its reason.

    Raises:
        SelectionError: `layer_name` matches no module.
    """
    wanted = _selected(model, layer_name)
    groups: dict[tuple[object, ...], list[tuple[str, str, torch.Tensor, Load | None]]] = {}
    for found_as, kind, tensor, value in _valued(model):
        name = plain_name(found_as)
        groups.setdefault(_identity(model, name, tensor, value), []).append(
            (name, kind, tensor, value)
        )
    found = [_packed(one) for one in packed(model) if _is_inside(one.name, wanted)]
    for members in groups.values():
        if any(_is_inside(name, wanted) for name, *_ in members):
            _, kind, tensor, value = members[0]
            found.append(_weight(tuple(m[0] for m in members), kind, tensor, value))
    return found


def _selected(model: torch.nn.Module, layer_name: str | Sequence[str] | None) -> set[str]:
    if layer_name is None:
        return {ROOT}
    return match_names(layer_name, [name or ROOT for name, _ in named_modules(model)])


def _is_inside(name: str, modules: set[str]) -> bool:
    owner = name.rpartition(".")[0]
    while owner:
        if owner in modules:
            return True
        owner = owner.rpartition(".")[0]
    return ROOT in modules


def _named(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, PARAMETER, parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield name, BUFFER, buffer


def _valued(
    model: torch.nn.Module,
) -> Iterator[tuple[str, str, torch.Tensor, Load | None]]:
    """Yield what parameters and buffers are made of, and what loads one that is offloaded."""
    for name, kind, tensor in _named(model):
        if tensor.is_meta and type(tensor) in PLAIN:
            yield name, kind, tensor, _offloaded(model, name)
        else:
            yield from ((part, kind, value, None) for part, value in parts(name, tensor))


def _packed(one: Packed) -> Weight:
    """Describe a tensor that its module packs away."""
    form = one.form
    dtype = str(form.dtype).removeprefix("torch.")
    load = partial(_fetched, one.load, form.dtype)
    nbytes = 0 if one.reason else form.nbytes
    return Weight((one.name,), PARAMETER, dtype, shape_of(form), nbytes, one.reason, load)


def _weight(
    names: tuple[str, ...], kind: str, tensor: torch.Tensor, offloaded: Load | None
) -> Weight:
    """Describe one tensor; a quantised or otherwise special one has a reason instead of values."""
    reason = unstorable(tensor)
    load = partial(_plain, tensor)
    if offloaded is not None and type(tensor) in PLAIN and tensor.dtype in STORABLE:
        reason = None
        load = partial(_fetched, offloaded, tensor.dtype)
    dtype = str(tensor.dtype).removeprefix("torch.")
    nbytes = 0 if reason else tensor.numel() * tensor.dtype.itemsize
    return Weight(names, kind, dtype, shape_of(tensor), nbytes, reason or "", load)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _fetched(load: Load, dtype: torch.dtype) -> torch.Tensor:
    """Return an offloaded tensor in the type that its hook gives it in the model."""
    return _plain(load().to(dtype))


def _offloaded(model: torch.nn.Module, name: str) -> Load | None:
    """Return what loads an offloaded tensor: a hook of its module, or of one around that."""
    owner, local = _split(name)
    while True:
        for weights in _maps(model.get_submodule(owner)):
            if local in weights:
                return partial(weights.__getitem__, local)
        if not owner:
            return None
        owner, inner = _split(owner)
        local = f"{inner}.{local}"


def _split(name: str) -> tuple[str, str]:
    owner, _, local = name.rpartition(".")
    return owner, local


def _maps(module: torch.nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate chains several into one
        weights = getattr(one, "weights_map", None)
        if getattr(one, "offload", False) and weights is not None:
            yield weights


def _identity(
    model: torch.nn.Module, name: str, tensor: torch.Tensor, offloaded: Load | None
) -> tuple[object, ...]:
    """Return what is equal for two names of one tensor."""
    if offloaded is None:
        return _memory(tensor) or ("object", id(tensor))
    value = offloaded()
    # A map in memory gives the same tensor each time. One on a disk reads it anew, perhaps to
    # where another one was before, so that its address proves nothing: there the model must know.
    if offloaded() is value:
        return _memory(value) or ("object", id(value))
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return ("name", tied.get(name, name))


def _memory(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Return where the values lie and how; None where that is not known."""
    if unstorable(tensor) is not None or not tensor.numel():
        return None
    where = (tensor.data_ptr(), str(tensor.device), tensor.dtype)
    return ("memory", *where, tuple(tensor.shape), tensor.stride())


def main_device(model: torch.nn.Module) -> str:
    """Return where a model computes, as msit writes it: "cpu", "cuda0", "npu0".

    That is where its first parameter or buffer is, or where its hook brings an offloaded one.
    """
    for name, _, tensor in _named(model):
        owner = model.get_submodule(name.rpartition(".")[0])
        device = execution_device(owner) if tensor.is_meta else tensor.device
        if device is not None:
            return device.type if device.index is None else f"{device.type}{device.index}"
    return "cpu"
