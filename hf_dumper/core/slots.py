"""Names of the tensors inside a module's inputs and outputs."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch

MAX_DEPTH = 16
"""Nesting at which a value is no longer searched; deeper ones, or cycles, are reported."""


def is_container(value: Any) -> bool:
    """Tell whether a value is of a class that `leaves` looks into."""
    cls: Any = type(value)
    return _is_container(cls)


@lru_cache(maxsize=4096)
def _is_container(cls: type) -> bool:
    return issubclass(cls, tuple | list | Mapping) or is_dataclass(cls)


def leaves(prefix: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (slot, leaf) for each tensor or other leaf inside a value.

    A bare tensor keeps the prefix as its slot; items of a tuple or list are `prefix.<i>`, entries
    of a mapping, ModelOutput or dataclass `prefix.<key>`, nested with dots. Whatever is neither a
    tensor nor one of these is a leaf too, so that the caller can count what it skips.
    """
    if isinstance(value, torch.Tensor) or depth >= MAX_DEPTH:
        yield prefix, value
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or range(len(value))
        for name, item in zip(names, value, strict=True):
            yield from leaves(f"{prefix}.{name}", item, depth + 1)
    elif isinstance(value, Mapping):  # a ModelOutput is one, and shows only what is not None
        for key, item in value.items():
            yield from leaves(f"{prefix}.{key}", item, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(f"{prefix}.{field.name}", getattr(value, field.name, None), depth + 1)
    else:
        yield prefix, value
