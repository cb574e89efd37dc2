"""Which tensors of a checkpoint belong to which layer of a model."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from hf_dumper.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shortened(whole: nn.Module, cut: nn.Module) -> dict[str, int]:
    """Return the lists of layers that are shorter in `cut`, by name, and their length there.

    Raises:
        ModelError: there is none, or a tensor outside of them depends on the number of layers.
    """
    lengths, kept = _lists(whole), _lists(cut)
    found = {name: n for name, n in kept.items() if n < lengths.get(name, 0)}
    if not found:
        msg = f"{type(whole).__name__} has no list of layers that the configuration shortens."
        raise ModelError(msg)
    _check_shapes(whole, cut)
    return found


def _lists(model: nn.Module) -> dict[str, int]:
    lists = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return {name: len(module) for name, module in lists}


def _check_shapes(whole: nn.Module, cut: nn.Module) -> None:
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    for name, tensor in cut.state_dict().items():
        if shapes.get(name) != tensor.shape:
            before = tuple(shapes[name]) if name in shapes else "nothing"
            msg = f"{name} is {tuple(tensor.shape)} with fewer layers, and {before} in the model: "
            msg += "cutting layers would not be enough, so it is not done."
            raise ModelError(msg)


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
