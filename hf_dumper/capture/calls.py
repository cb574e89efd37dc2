"""Calls of `generate()`: their arguments by name, and those of a model's parts."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

Part = tuple[str, torch.nn.Module]
"""Name and module of a part of a model."""


class GenerateCall:
    """The arguments of one `generate()` call by name; watchers may add to them before it runs."""

    def __init__(self, model: torch.nn.Module, arguments: inspect.BoundArguments) -> None:
        """Flatten the `**kwargs` of the call into one mapping."""
        self.model = model
        self.values: dict[str, Any] = dict(arguments.arguments)
        self.positional: tuple[Any, ...] = ()
        for name, parameter in arguments.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.values.update(self.values.pop(name, {}))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                self.positional = self.values.pop(name, ())

    def add(self, name: str, callback: object) -> None:
        """Append a callback to a list argument unless it is in there; the user's list stays."""
        given = list(self.values.get(name) or ())
        if not any(entry is callback for entry in given):
            self.values[name] = [*given, callback]


def generating_parts(model: torch.nn.Module) -> list[Part]:
    """Return the parts of a model that have transformers' `generate()` themselves."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name and hasattr(type(module), "_prepare_generation_config")
    ]


@contextmanager
def watched_parts(
    parts: Iterable[Part], watch: Callable[[str, GenerateCall], AbstractContextManager[None]]
) -> Iterator[None]:
    """Run every `generate()` of the parts inside what `watch` returns, while the block runs."""
    saved = []
    for name, part in parts:
        own = part.__dict__
        saved.append((own, own.get("generate")))
        own["generate"] = _watched(name, part, watch)
    try:
        yield
    finally:
        for own, before in saved:
            del own["generate"]
            if before is not None:
                own["generate"] = before


def _watched(
    name: str,
    part: Any,
    watch: Callable[[str, GenerateCall], AbstractContextManager[None]],
) -> Callable[..., Any]:
    generate: Callable[..., Any] = part.generate
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        call = GenerateCall(part, signature.bind(*args, **kwargs))
        with watch(name, call):
            return generate(*call.positional, **call.values)

    return watched
