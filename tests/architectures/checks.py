"""Where a dump is not what the model did: each check yields what is wrong, if anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_dumper import open_dump
from tests.architectures.witness import Witness, raw


def differences(plain: Any, dumped: Any) -> Iterator[str]:
    """Yield which tensors of two outputs differ in a bit, or are on one side only."""
    left, right = dict(tensors(plain)), dict(tensors(dumped))
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            yield f"{name} is on one side only"
        elif left[name].shape != right[name].shape or not torch.equal(
            raw(left[name]), raw(right[name])
        ):
            yield f"{name} differs"


def tensors(value: Any, name: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of an output of a model; caches are no output."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from tensors(part, f"{name}.{i}")


def unlike(witness: Witness, path: Path) -> Iterator[str]:
    """Yield where the dump's only run and what a witness of it saw are not the same."""
    with open_dump(path) as reader:
        if not reader.run_info(0)["complete"]:
            yield f"says that it is not complete: {reader.run_info(0)['incomplete']}"
        keys = {
            (k.forward, k.module, k.slot, k.call): k
            for k in reader.keys(run=0)
            if k.slot != "token_ids"
        }
        yield from (f"lacks {place}" for place in sorted(witness.seen.keys() - keys.keys()))
        yield from (f"has {place}" for place in sorted(keys.keys() - witness.seen.keys()))
        for place in sorted(witness.seen.keys() & keys.keys()):
            want, got = witness.seen[place], reader.load_key(keys[place])
            if (got.dtype, got.shape) != (want.dtype, want.shape):
                yield f"another type or shape at {place}"
            elif not torch.equal(raw(got), raw(want)):
                yield f"other bytes at {place}"


def belongings(model: nn.Module) -> set[tuple[str, str]]:
    """Return the attributes of a model, and the hooks of its modules, some of which are its own."""
    found = {("attribute", name) for name in vars(model)} - {("attribute", "dump")}
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        found |= {("hook", f"{hook!r} on {name!r}") for hook in hooks}
    return found
