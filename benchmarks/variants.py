"""Ways of running a model that are measured: plain, dumped in some mode, dumped naively."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_dumper import DumpConfig, register_hook

NAIVE = "naive"
"""Name of the baseline: what one would write in ten lines instead of installing a package."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What is dumped: options of DumpConfig, and what the dump must therefore hold."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: bool = False
    statistics: bool = False
    head_only: bool = False


_MODES = (
    Mode("tensors", {"dump_statistics_mode": 0}, tensors=True),
    Mode("statistics", {"dump_statistics_mode": 1}, statistics=True),
    Mode("both", {"dump_statistics_mode": 2}, tensors=True, statistics=True),
    Mode("last-logits", {"dump_last_logits": True}, tensors=True, head_only=True),
)
MODES = {mode.name: mode for mode in _MODES}


def armed(model: torch.nn.Module, name: str, folder: Path) -> AbstractContextManager[object]:
    """Return a context in which the model is dumped into `folder` in the named way."""
    if name == NAIVE:
        return naively_dumped(model, folder)
    return register_hook(model, DumpConfig(folder, "all", **MODES[name].options))


@contextmanager
def naively_dumped(model: torch.nn.Module, folder: Path) -> Iterator[None]:
    """Clone every tensor that a leaf module returns; write one file per forward."""
    folder.mkdir()
    clones: dict[str, torch.Tensor] = {}
    files = 0

    def keep(name: str, output: Any) -> None:
        for i, item in enumerate(output if isinstance(output, tuple) else (output,)):
            if isinstance(item, torch.Tensor):
                clones[f"{name}.{i}"] = item.clone(memory_format=torch.contiguous_format)

    def write(*_: object) -> None:
        nonlocal files
        save_file(clones, folder / f"{files}.safetensors")
        clones.clear()
        files += 1

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                hook = module.register_forward_hook(lambda _m, _a, out, n=name: keep(n, out))
                stack.enter_context(hook)
        stack.enter_context(model.register_forward_hook(write))
        yield
