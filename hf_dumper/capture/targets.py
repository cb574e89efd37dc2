"""Which modules of a model a configuration selects."""

import torch

from hf_dumper.config import DumpConfig
from hf_dumper.core.selection import match_classes, match_names
from hf_dumper.core.types import ROOT
from hf_dumper.errors import ModelError, SelectionError


def select_modules(model: torch.nn.Module, config: DumpConfig) -> list[tuple[str, torch.nn.Module]]:
    """Return (name, module) of what the configuration selects, in the order of `named_modules()`.

    Raises:
        SelectionError: nothing is selected; the message names what comes nearest.
    """
    modules = {name or ROOT: module for name, module in model.named_modules()}
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
    devices = sorted({str(p.device) for p in model.parameters()})
    if not any(p.device.index == device_id for p in model.parameters() if p.device.type != "cpu"):
        msg = f"device_id={device_id} selects nothing: the model is on {', '.join(devices)}."
        raise SelectionError(msg)
