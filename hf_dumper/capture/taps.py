"""Module hooks: what goes into a module before its forward, what comes out after it.

The hooks exist twice, in Python and compiled; both do the same, the compiled ones in less time.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from types import MethodType
from typing import Any, Final

import torch

from hf_dumper.capture import hooks
from hf_dumper.capture.guard import HookOwner
from hf_dumper.capture.inputs import parameter_names
from hf_dumper.core.types import ROOT

try:
    from hf_dumper.capture import _hooks

    _hooks.bind(torch.Tensor, torch.nn.Parameter)
    COMPILED = True
except (ImportError, AttributeError):  # not built; a torch older than 2.10 has no DLPack table
    _hooks = hooks  # type: ignore[misc]
    COMPILED = False

PURE_PYTHON: Final = "HF_DUMPER_PURE_PYTHON"
"""Environment variable that, unless empty, keeps the compiled hooks from being used."""


_HEAVY_BYTES: Final = 1 << 20
"""Parameters below this size are read in some hundred microseconds at most."""


class _OwnedTap(HookOwner):
    """A tap whose copy, made when a hooked submodule is copied or pickled, is inert."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without an intake."""
        return _inert, (type(self),)


class PlainTap(_OwnedTap, hooks.Tap):
    """A tap in Python."""


class CompiledTap(_OwnedTap, _hooks.Tap):
    """A tap in C, where that was built."""


def new_intake() -> hooks.Intake:
    """Return an intake of the kind that is to be used: compiled if possible."""
    if COMPILED and not os.environ.get(PURE_PYTHON):
        return _hooks.Intake()
    return hooks.Intake()


def tap_modules(
    modules: Iterable[tuple[str, torch.nn.Module]], intake: hooks.Intake, stack: ExitStack
) -> None:
    """Hook the modules; the handles are removed when `stack` is closed."""
    modules = list(modules)
    heavy = _heavy(module for _, module in modules)
    kind: Any = PlainTap if type(intake) is hooks.Intake else CompiledTap
    for name, module in modules:
        source = (name or ROOT, type(module).__name__)
        tap = kind(source, parameter_names(module), intake, module in heavy)
        # Bound by hand: the copy of a hook must be bound to the copy of its tap, which is inert,
        # but a method of a compiled class would be copied as it is.
        before, after = MethodType(kind.before, tap), MethodType(kind.after, tap)
        stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        stack.enter_context(module.register_forward_hook(after, with_kwargs=True))


def _heavy(modules: Iterable[torch.nn.Module]) -> set[torch.nn.Module]:
    """Return the modules with the most to read at once: a language model's head, as a rule."""
    sizes = {
        module: sum(p.nbytes for p in module.parameters(recurse=False))
        for module in modules
        if not isinstance(module, torch.nn.Embedding)  # reads a few rows only
    }
    least = max([_HEAVY_BYTES, *(size // 2 for size in sizes.values())])
    return {module for module, size in sizes.items() if size >= least}


def _inert(kind: Any) -> Any:
    return kind.__new__(kind)
