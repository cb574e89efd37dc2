"""The instance attributes that a dumped model carries, shared by all its sessions.

Several sessions may watch one model and leave in any order, so the first one to come puts these
attributes on the instance and the last one to leave takes them off: nothing is nested. The class
stays what it is, and so does what `copy`, `pickle` and `torch.save` make of the model.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any, Protocol

import torch

from hf_dumper.capture.calls import GenerateCall, generating_parts, watched_parts
from hf_dumper.capture.speculation import is_draft
from hf_dumper.errors import UnsupportedGenerationError

_GUARD = "_hf_dumper_guard"

_MAKES_DRAFTER = "_get_candidate_generator"
"""Called once in a speculative `generate()`, before any drafting (transformers 5.23)."""

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where torch (2.13) keeps the forward hooks of a module, by the id of their handle."""


class HookOwner:
    """Base of everything whose methods we register as hooks: that is how ours are known."""


class Watcher(Protocol):
    """What the guard asks of a session."""

    def watch_generate(self, call: GenerateCall) -> AbstractContextManager[Callable[[Any], None]]:
        """Enter a run; yields a function that takes what `generate` returned."""

    def watch_part(self, name: str, call: GenerateCall) -> AbstractContextManager[None]:
        """Enter a `generate()` of a part of the model inside one of the model."""

    def begin_drafts(self, length: int) -> None:
        """Learn that a drafter is made and runs next, and how long the ids of the prompt are."""

    def watch_draft(self) -> AbstractContextManager[None]:
        """Enter a `generate()` of the model that drafts tokens for another one of it."""


class ModelGuard:
    """Keeps the watchers of one model and the instance attributes that serve them."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Guard a model; nothing is changed until a watcher joins."""
        self._model = model
        self._watchers: list[Watcher] = []
        self._saved: dict[str, Any] = {}
        self._generating = False

    @classmethod
    def of(cls, model: torch.nn.Module) -> "ModelGuard":
        """Return the guard of a model, a new one when it has none."""
        guard = model.__dict__.get(_GUARD)
        return guard if isinstance(guard, cls) else cls(model)

    def join(self, watcher: Watcher) -> None:
        """Let a watcher see every `generate()` from now on."""
        self._watchers.append(watcher)
        if len(self._watchers) == 1:
            self._install()

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher; the last one to leave takes the attributes along."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._remove()

    def _install(self) -> None:
        attributes: dict[str, Any] = {
            _GUARD: self,
            "__deepcopy__": self._deepcopy,
            "__reduce_ex__": self._reduce_ex,
        }
        model: Any = self._model
        self._parts = generating_parts(model)
        if callable(getattr(type(model), "generate", None)):
            attributes["generate"] = self._wrap(model.generate)
        if callable(getattr(type(model), _MAKES_DRAFTER, None)):
            attributes[_MAKES_DRAFTER] = self._announce(getattr(model, _MAKES_DRAFTER))
        if callable(getattr(type(model), "generate_batch", None)):
            attributes["generate_batch"] = self._refuse(model.generate_batch)
        own = self._model.__dict__
        self._saved = {name: own[name] for name in attributes if name in own}
        own.update(attributes)
        self._installed = tuple(attributes)

    def _remove(self) -> None:
        for name in self._installed:
            self._model.__dict__.pop(name, None)
        self._model.__dict__.update(self._saved)
        self._saved = {}

    def _wrap(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(generate)

        @functools.wraps(generate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self._generating and is_draft(kwargs):
                with ExitStack() as stack:
                    for watcher in self._watchers:
                        stack.enter_context(watcher.watch_draft())
                    return generate(*args, **kwargs)
            if self._generating:
                msg = "Cannot follow a generate() inside a generate() of the same model."
                raise UnsupportedGenerationError(msg)
            call = GenerateCall(self._model, signature.bind(*args, **kwargs))
            self._generating = True
            try:
                with ExitStack() as stack:
                    finish = [stack.enter_context(w.watch_generate(call)) for w in self._watchers]
                    with watched_parts(self._parts, self._watch_part):
                        result = generate(*call.positional, **call.values)
                    for take in finish:
                        take(result)
                return result
            finally:
                self._generating = False

        return guarded

    @contextmanager
    def _watch_part(self, name: str, call: GenerateCall) -> Iterator[None]:
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher.watch_part(name, call))
            yield

    def _announce(self, make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def announced(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[1]
            for watcher in self._watchers:
                watcher.begin_drafts(ids.shape[1])
            return make(*args, **kwargs)

        return announced

    def _refuse(self, generate_batch: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate_batch)
        def refused(*_args: Any, **_kwargs: Any) -> Any:
            msg = (
                "Cannot follow generate_batch(): rows of several requests are packed into one. "
                "Use generate()."
            )
            raise UnsupportedGenerationError(msg)

        return refused

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """Leave the model without any trace of ours while the block runs.

        The dicts of hooks are put aside whole and put back, rather than hooks removed and set
        again: that would change their order, and pull them from under a forward in progress.
        """
        dump = self._model.__dict__.pop("dump", None)
        self._remove()
        hidden = [entry for module in self._model.modules() for entry in _hide_hooks(module)]
        try:
            yield
        finally:
            for module, name, hooks in hidden:
                module.__dict__[name] = hooks
            self._install()
            if dump is not None:
                self._model.__dict__["dump"] = dump

    def _deepcopy(self, memo: dict[int, Any]) -> torch.nn.Module:
        with self._plain():
            return copy.deepcopy(self._model, memo)

    def _reduce_ex(self, protocol: int) -> Any:
        # A twin that shares every tensor: the pickler walks it after we have returned, when the
        # model itself is hooked again.
        tensors = chain(self._model.parameters(), self._model.buffers())
        with self._plain():
            twin = copy.deepcopy(self._model, {id(t): t for t in tensors})
        return twin.__reduce_ex__(protocol)


def _hide_hooks(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, Any]]:
    """Take our hooks off a module; return (module, attribute, dict) for putting them back."""
    own = module.__dict__
    hooks = chain(own["_forward_pre_hooks"].items(), own["_forward_hooks"].items())
    ours = {i for i, hook in hooks if isinstance(getattr(hook, "__self__", None), HookOwner)}
    if not ours:
        return []
    hidden = [(module, name, own[name]) for name in _HOOKS]
    for _, name, entries in hidden:
        own[name] = type(entries)((i, hook) for i, hook in entries.items() if i not in ours)
    return hidden
