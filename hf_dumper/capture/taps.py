"""Module hooks: what goes into a module before its forward, what comes out after it.

The hooks exist twice, in Python and compiled; both do the same, the compiled ones in less time.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import MethodType
from typing import Any, Final

import torch

from hf_dumper.capture import hooks
from hf_dumper.capture.guard import HookOwner
from hf_dumper.capture.inputs import parameter_names
from hf_dumper.core.compiled import PURE_PYTHON
from hf_dumper.core.types import ROOT

try:
    from hf_dumper.capture import _hooks

    _hooks.bind(torch.Tensor, torch.nn.Parameter)
    COMPILED = True
except (ImportError, AttributeError):  # not built; a torch older than 2.10 has no DLPack table
    _hooks = hooks  # type: ignore[misc]
    COMPILED = False


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
    kind: Any = PlainTap if type(intake) is hooks.Intake else CompiledTap
    for name, module in modules:
        source = (name or ROOT, type(module).__name__)
        tap = kind(source, parameter_names(module), intake)
        # Bound by hand: the copy of a hook must be bound to the copy of its tap, which is inert,
        # but a method of a compiled class would be copied as it is.
        before, after = MethodType(kind.before, tap), MethodType(kind.after, tap)
        stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        stack.enter_context(module.register_forward_hook(after))


def announce_kernels(model: torch.nn.Module, tell: Callable[[], None], stack: ExitStack) -> None:
    """Call `tell` before each module that will be a long time in one kernel, without Python.

    Those are the modules with the most parameters of their own, all of which are read at once: the
    head of a language model, as a rule. The hooks are removed when `stack` is closed.
    """
    sizes = {
        module: sum(p.nbytes for p in module.parameters(recurse=False))
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)  # reads a few rows only
    }
    least = max([_HEAVY_BYTES, *(size // 2 for size in sizes.values())])
    for module, size in sizes.items():
        if size >= least:
            hook = KernelHook(tell)
            stack.enter_context(module.register_forward_pre_hook(hook.before))


class KernelHook(HookOwner):
    """Tells that a long kernel is about to begin; a copy of it tells nobody."""

    def __init__(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` before the module's forward."""
        self._tell = tell

    def before(self, *_: Any) -> None:
        """Tell; a forward pre-hook."""
        if self._tell is not None:
            self._tell()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without whom to tell."""
        return KernelHook, (None,)


def _inert(kind: Any) -> Any:
    return kind.__new__(kind)
