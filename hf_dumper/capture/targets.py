"""Which modules of a model a configuration selects."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from hf_dumper.capture.naming import named_modules
from hf_dumper.config import DumpConfig
from hf_dumper.core.selection import match_classes, match_names
from hf_dumper.core.types import ROOT
from hf_dumper.errors import ModelError, SelectionError


def select_modules(model: torch.nn.Module, config: DumpConfig) -> list[tuple[str, torch.nn.Module]]:
    """Return (name, module) of what the configuration selects, in the order of `named_modules()`.

    Raises:
        SelectionError: nothing is selected; the message names what comes nearest.
    """
    modules = {name or ROOT: module for name, module in named_modules(model)}
    if modules[ROOT] is not model:
        msg = f"{type(model).__name__} has a child named {ROOT!r}, which is what dumps call itself."
        raise ModelError(msg)
    chosen = set(modules)
    if config.layer_name is not None:
        chosen &= match_names(config.layer_name, modules)
    if config.module_list:
        chosen &= match_classes(config.module_list, {n: type(m) for n, m in modules.items()})
    if not chosen:
        msg = f"No module is both named {config.layer_name!r} and in module_list."
        raise SelectionError(msg)
    if config.device_id is not None:
        _check_device(model, config.device_id)
    return [(name, module) for name, module in modules.items() if name in chosen]


def _check_device(model: torch.nn.Module, device_id: int) -> None:
    devices = set(_devices(model))
    if not any(device.index == device_id for device in devices if device.type != "cpu"):
        listed = ", ".join(sorted(map(str, devices))) or "no device"
        msg = f"device_id={device_id} selects nothing: the model is on {listed}."
        raise SelectionError(msg)


def _devices(model: torch.nn.Module) -> Iterator[torch.device]:
    """Yield where parameters and buffers are, and where hooks bring those that are offloaded."""
    for tensor in chain(model.parameters(), model.buffers()):
        if not tensor.is_meta:
            yield tensor.device
    for module in model.modules():
        device = execution_device(module)
        if device is not None:
            yield device


def execution_device(module: torch.nn.Module) -> torch.device | None:
    """Return where accelerate's hook computes a module, None when it has none."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate chains several into one
        device = getattr(one, "execution_device", None)
        if isinstance(device, int):
            return torch.device(f"{_accelerator()}:{device}")
        if device is not None:
            return torch.device(device)
    return None


def _accelerator() -> str:
    """Return the kind of device that a bare number means to torch, cuda where there is none."""
    current = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    return "cuda" if current is None else current.type
