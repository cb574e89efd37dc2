"""Which facts of a mixture of experts are records: router logits, chosen experts, their weights."""

from collections.abc import Iterator

import torch
from torch import nn

from tests.architectures.witness import Witness

FACTS = ("logits", "choice", "weights")


def stacked(model: nn.Module) -> Iterator[str]:
    """Yield the name of each module with one matrix per expert; shared ones are not chosen."""
    for name, module in model.named_modules():
        counts = set(_numbers(module))
        sizes = {p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3}
        if counts & sizes and "shared" not in name.rpartition(".")[2]:
            yield name


def recorded(model: nn.Module, witness: Witness) -> dict[str, bool] | None:
    """Tell which facts every layer of experts has as records; None without experts."""
    layers = [name.rpartition(".")[0] for name in stacked(model)]
    if not layers:
        return None
    found = [_facts(model.get_submodule(name), name, witness) for name in layers]
    return {fact: all(layer[fact] for layer in found) for fact in FACTS}


def _facts(layer: nn.Module, name: str, witness: Witness) -> dict[str, bool]:
    """Look through the records of a layer, which may count more than its experts: one to skip."""
    counts = {n for module in layer.modules() for n in _numbers(module)}
    near = [t for place, t in witness.seen.items() if _is_inside(place[1], name)]
    choices = [t for t in near if _is_choice(t, max(counts))]
    shapes = {t.shape for t in choices}
    scores = [t for t in near if t.is_floating_point() and t.ndim > 1 and t.shape[-1] in counts]
    # Some routers weight all experts, those not chosen by 0: that tells both.
    both = any(bool(((t == 0).any(-1) & (t != 0).any(-1)).all()) for t in scores)
    return {
        "logits": any(bool((t != 0).all()) for t in scores),
        "choice": both or bool(choices),
        "weights": both or any(t.is_floating_point() and t.shape in shapes for t in near),
    }


def _numbers(module: nn.Module) -> Iterator[int]:
    for name, value in vars(module).items():
        is_count = ("expert" in name or "router" in name) and "per_tok" not in name
        if type(value) is int and is_count and value > 1:
            yield value


def _is_inside(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _is_choice(tensor: torch.Tensor, count: int) -> bool:
    return not tensor.is_floating_point() and tensor.ndim > 1 and 0 <= int(tensor.max()) < count
