"""Which tensors of a checkpoint belong to which layer of a model."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from torch import nn

from hf_dumper.errors import ModelError
from hf_dumper.models.layers import COUNTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_OF_ALL_LAYERS: Final = {
    "embed_tokens_per_layer.weight": 1,
    "per_layer_model_projection.weight": 0,
}
"""Tensors with a part for each layer, one after the other -> along which axis (Gemma 3n, 4)."""

_HARMLESS: Final = (*COUNTS, "store_full_length_kv")
"""Attributes of a layer that later layers alone look at."""

_PLAIN: Final = (bool, int, float, str, type(None))


class Narrowed(NamedTuple):
    """A tensor of which only the beginning is kept: its whole shape, and how much of which axis."""

    whole: tuple[int, ...]
    axis: int
    size: int


def shortened(whole: nn.Module, cut: nn.Module) -> dict[str, int]:
    """Return the lists of layers that are shorter in `cut`, by name, and their length there.

    Raises:
        ModelError: there is none, or a kept layer is another than it is in `whole`.
    """
    lengths, kept = _lists(whole), _lists(cut)
    found = {name: n for name, n in kept.items() if n < lengths.get(name, 0)}
    if not found:
        msg = f"{type(whole).__name__} has no list of layers that the configuration shortens."
        raise ModelError(msg)
    for name, count in found.items():
        for i in range(count):
            _check_layer(f"{name}.{i}", whole, cut)
    return found


def _lists(model: nn.Module) -> dict[str, int]:
    lists = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return {name: len(module) for name, module in lists}


def _check_layer(place: str, whole: nn.Module, cut: nn.Module) -> None:
    """Make sure that a layer is made in the same way, whatever the number of layers."""
    before = dict(whole.get_submodule(place).named_modules())
    for name, module in cut.get_submodule(place).named_modules():
        path = f"{place}.{name}" if name else place
        if type(before.get(name)) is not type(module):
            msg = f"{path} is {type(module).__name__} with fewer layers, and another in the model."
            raise ModelError(msg)
        had = vars(before[name])
        for key, value in vars(module).items():
            if isinstance(value, _PLAIN) and key not in _HARMLESS and had.get(key) != value:
                msg = f"{path}.{key} is {value!r} with fewer layers, and {had.get(key)!r} in the "
                raise ModelError(msg + "model: the layer would compute something else.")


def narrowed(whole: nn.Module, cut: nn.Module) -> dict[str, Narrowed]:
    """Return the tensors of `cut` that are the beginning of those in `whole`, by name.

    Raises:
        ModelError: another tensor depends on the number of layers.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    found = {}
    for name, tensor in cut.state_dict().items():
        shape, axis = tuple(tensor.shape), _axis(name)
        if shapes.get(name) == shape:
            continue
        if axis is not None and _without(shapes.get(name, ()), axis) == _without(shape, axis):
            found[name] = Narrowed(shapes[name], axis, shape[axis])
        else:
            before = shapes.get(name, "nothing")
            msg = f"{name} is {shape} with fewer layers, and {before} in the model: "
            msg += "cutting layers would not be enough, so it is not done."
            raise ModelError(msg)
    return found


def _axis(name: str) -> int | None:
    return next((axis for end, axis in _OF_ALL_LAYERS.items() if name.endswith(end)), None)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def is_beyond(target: str, stacks: Mapping[str, int], base: str) -> bool:
    """Tell whether a tensor belongs to a layer that is left out.

    Args:
        target: Name in the model; of a tensor that the model does not know, that of the checkpoint.
        stacks: Lists of layers and how many are kept of each.
        base: `base_model_prefix`, which a checkpoint may have or lack.
    """
    prefix = f"{base}." if base else ""
    forms = {target, prefix + target, target.removeprefix(prefix)}
    for name, kept in stacks.items():
        for form in forms:
            found = re.match(rf"{re.escape(name)}\.(\d+)\.", form)
            if found and int(found.group(1)) >= kept:
                return True
    return False


def targets(model: "PreTrainedModel", names: Iterable[str]) -> dict[str, str]:
    """Return what the model calls each tensor of its checkpoint, as `from_pretrained` has it.

    Raises:
        ModelError: this release of transformers does not tell.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError as error:
        msg = f"This release of transformers does not tell how it renames weights: {error}."
        raise ModelError(msg) from error
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    known, base = model.state_dict(), model.base_model_prefix
    found = {}
    for name in sorted(names, key=dot_natural_key):  # some renamings depend on what came before
        target, _ = rename_source_key(name, renamings, converters, base, known)
        if target not in known and name in known:
            target = name
        found[name] = target
    return found
