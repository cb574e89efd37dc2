"""Modules that experts compute with: what they are given is sorted, so no axis is a row."""

import torch

from hf_dumper.capture.naming import named_modules


def routed_modules(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of the modules that see tokens in the order of the experts they chose.

    Those are the modules inside of stacked experts (their parameters have one matrix per expert),
    and the experts of a list, which see the tokens that chose them. Of such a tensor the sizes may
    be those of rows or columns by chance, and would be taken for them.
    """
    modules = dict(named_modules(model))
    homes = {
        name for name, module in modules.items() if _is_stacked(module) or _is_list(name, module)
    }
    return frozenset(name for name in modules if not homes.isdisjoint(_above(name)))


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _is_list(name: str, module: torch.nn.Module) -> bool:
    kinds = torch.nn.ModuleList | torch.nn.ModuleDict
    return isinstance(module, kinds) and name.rpartition(".")[2] == "experts"


def _is_stacked(module: torch.nn.Module) -> bool:
    """Tell whether the parameters of a module have an axis of as many experts as it says it has."""
    stacked = {p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3}
    counts = {n for name, n in vars(module).items() if "expert" in name and type(n) is int}
    return not stacked.isdisjoint(counts)
