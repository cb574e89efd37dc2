"""Compiled models, refused or run without their compilation.

torch skips hooks that are set after a module was compiled, silently. Its stance `force_eager`
makes everything compiled run as if it were not, whichever way it was compiled: `module.compile()`,
`torch.compile(module)` or a compiled `forward`.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from hf_dumper.errors import CompiledModelError


def compiled_modules(model: torch.nn.Module) -> list[str]:
    """Return the names of the modules that are compiled, "root" for the outermost."""
    return [name or "root" for name, module in model.named_modules() if _is_compiled(module)]


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise when the model, or a layer of it, is compiled already.

    Raises:
        CompiledModelError: torch skips hooks that come after the first compiled call.
    """
    for name, module in model.named_modules():
        if _is_compiled(module):
            msg = (
                f"{name or 'The model'!r} is compiled ({type(module).__name__}); torch would skip "
                "the hooks silently. Dump the model before torch.compile(), or run it without its "
                "compilation: allow_eager=True."
            )
            raise CompiledModelError(msg)


def _is_compiled(module: torch.nn.Module) -> bool:
    """Tell the three ways apart: module.compile(), torch.compile(module), a compiled forward."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    forward = module.__dict__.get("forward")
    compiled = getattr(forward, "_torchdynamo_orig_callable", None) is not None
    return compiled or type(module).__name__ == "OptimizedModule"


class _EagerStance:
    """Holds torch's stance at `force_eager` as long as anybody needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._stance: AbstractContextManager[object] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._stance = torch.compiler.set_stance("force_eager")
                self._stance.__enter__()
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders and self._stance is not None:
                    self._stance.__exit__(None, None, None)
                    self._stance = None


_STANCE = _EagerStance()


def eager() -> AbstractContextManager[None]:
    """Run everything that is compiled without its compilation, in the whole process.

    The stance comes back with the last of those who hold it, in whatever order they leave.
    """
    return _STANCE.hold()
