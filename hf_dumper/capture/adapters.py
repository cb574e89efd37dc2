"""Models with adapters, as peft makes them: which model is dumped, and what its adapters do.

peft is not imported: what it made is known by what it has.
"""

import sys
from typing import Any, TypedDict

import torch


class AdapterFacts(TypedDict):
    """What the adapters of a model do, JSON-ready.

    `active` are the names of the adapters that take part, none while they are disabled, `merged`
    those that are added into the weights, `modules` the names of the modules that have any.
    """

    active: list[str]
    merged: list[str]
    modules: list[str]


def base_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model that computes: that inside a PeftModel, any other one itself.

    A PeftModel's `generate()` and forwards are those of the model inside, which are what hooks see.
    """
    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        inner: torch.nn.Module = model.get_base_model()
        return inner
    return model


def adapter_facts(model: torch.nn.Module) -> AdapterFacts | None:
    """Return what the adapters of a model do, None without any."""
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "merged_adapters", None), list)
        and hasattr(module, "active_adapters")
    }
    if not layers:
        return None
    active = {
        name
        for layer in layers.values()
        if not layer.disable_adapters
        for name in layer.active_adapters
    }
    merged = {name for layer in layers.values() for name in layer.merged_adapters}
    return {"active": sorted(active), "merged": sorted(merged), "modules": sorted(layers)}
