"""Names of modules and weights, which are the same whether or not a layer is compiled.

`torch.compile(layer)` puts a wrapper in the layer's place, and the layer below it as `_orig_mod`.
"""

from collections.abc import Iterator
from typing import Final

import torch

_INNER: Final = "_orig_mod"


def plain_name(name: str) -> str:
    """Return a dotted name without the wrappers in it."""
    return ".".join(part for part in name.split(".") if part != _INNER)


def named_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield what `model.named_modules()` would if nothing in it was wrapped."""
    for name, module in model.named_modules():
        if without_wrapper(module) is module:
            yield plain_name(name), module


def without_wrapper(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module that `torch.compile(module)` wrapped, or the module itself.

    `generate()` of a wrapped model runs the model inside it, so the hooks have to be there.
    """
    inner = getattr(module, _INNER, None)
    is_wrapper = type(module).__name__ == "OptimizedModule"
    return inner if is_wrapper and isinstance(inner, torch.nn.Module) else module
