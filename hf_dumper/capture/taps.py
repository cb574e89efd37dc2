"""Module hooks: what goes into a module before its forward, what comes out after it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch

from hf_dumper.capture.guard import HookOwner
from hf_dumper.capture.inputs import parameter_names
from hf_dumper.capture.snapshot import Snapshot, Source
from hf_dumper.core.slots import is_container, leaves
from hf_dumper.core.types import ROOT


class TapState:
    """What the taps of one session share: whether to record, where to, and the order of calls.

    `stamp` changes with every forward, so that a tap knows when to count its calls from 0 again.
    `fail` takes an exception of our own making: it must never reach the model.
    """

    def __init__(self, snapshot: Snapshot, fail: Callable[[Exception], None]) -> None:
        """Share a snapshot; recording is off."""
        self.snapshot = snapshot
        self.fail = fail
        self.recording = False
        self.inputs = True
        self.outputs = True
        self.device: int | None = None
        self.stamp = 0
        self.sequence = 0

    def start_forward(self) -> None:
        """Count the calls of every module from 0 again."""
        self.stamp += 1

    def next(self) -> int:
        """Return the next number in the run's one order of entries and completions."""
        self.sequence += 1
        return self.sequence - 1

    def take(
        self, source: Source, slot: str, param: str, call: tuple[int, int], value: Any
    ) -> None:
        """Record an argument or an output: every tensor in it; anything else is counted.

        `param` is the input's name in the forward's signature, empty for outputs.
        """
        if isinstance(value, torch.Tensor):
            if self.device is not None and (value.is_cpu or value.get_device() != self.device):
                self.snapshot.skip("on another device")
            else:
                self.snapshot.add(source, slot, param, call, value)
        elif is_container(value):
            self._take_parts(source, slot, param, call, value)
        else:
            self.snapshot.skip_value(value)

    def _take_parts(
        self, source: Source, prefix: str, param: str, call: tuple[int, int], value: Any
    ) -> None:
        # A dict may hold keys that come out as one name, such as 1 and "1". A second tensor of
        # one name could not be told from the first, so it is counted instead.
        seen = set()
        for slot, leaf in leaves(prefix, value):
            if slot in seen:
                self.snapshot.skip("a second value under one slot name")
                continue
            seen.add(slot)
            if isinstance(leaf, torch.Tensor):
                self.take(source, slot, param and param + slot[len(prefix) :], call, leaf)
            else:
                self.snapshot.skip_value(leaf)


class Tap(HookOwner):
    """The two hooks of one module. They return None, so the model sees nothing of them.

    A copy of a tap, made when a hooked submodule is copied or pickled, is inert.
    """

    def __init__(self, name: str, module: torch.nn.Module, state: TapState) -> None:
        """Prepare the tap of a module under its dotted name."""
        self.source = (name, type(module).__name__)
        self.state = state
        self.params = parameter_names(module)
        self.stamp = -1
        self.calls = 0
        self.open: list[tuple[int, int, int]] = []

    def __reduce__(self) -> tuple[Callable[[], "InertTap"], tuple[()]]:
        """Pickle and copy as an inert tap."""
        return InertTap, ()

    def before(
        self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Record the inputs; a forward pre-hook with keyword arguments."""
        state = self.state
        if not state.recording:
            return
        try:
            if self.stamp != state.stamp:
                self.stamp, self.calls = state.stamp, 0
                self.open.clear()
            calls = state.snapshot.calls
            call = (self.calls, len(calls))
            self.calls += 1
            calls.append([state.next(), -1])
            self.open.append((*call, state.stamp))
            if state.inputs:
                self._take_inputs(args, kwargs, call)
        except Exception as error:  # whatever we did wrong, the model must go on
            state.fail(error)

    def after(self, _module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """Record the outputs; a forward hook with keyword arguments."""
        state = self.state
        if not state.recording or not self.open:
            return
        try:
            number, index, stamp = self.open.pop()
            if stamp != state.stamp:
                return
            if state.outputs:
                state.take(self.source, "output", "", (number, index), output)
            state.snapshot.calls[index][1] = state.next()
        except Exception as error:  # as above
            state.fail(error)

    def _take_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call: tuple[int, int]
    ) -> None:
        take, source, params = self.state.take, self.source, self.params
        for i, argument in enumerate(args):
            take(source, input_slot(i), params[i] if i < len(params) else "", call, argument)
        for name, argument in kwargs.items():
            take(source, input_slot(name), name, call, argument)


class InertTap(Tap):
    """What a copied or unpickled tap is: its hooks find that nothing is being recorded."""

    def __init__(self) -> None:
        """Share no state with anything."""
        self.state = _INERT


class _Inert:
    recording = False


_INERT: Any = _Inert()


@lru_cache(maxsize=4096)
def input_slot(key: int | str) -> str:
    """Return the slot of a positional or keyword argument."""
    return f"input.{key}"


def tap_modules(
    modules: Iterable[tuple[str, torch.nn.Module]], state: TapState, stack: ExitStack
) -> None:
    """Hook the modules; the handles are removed when `stack` is closed."""
    for name, module in modules:
        tap = Tap(name or ROOT, module, state)
        stack.enter_context(module.register_forward_pre_hook(tap.before, with_kwargs=True))
        stack.enter_context(module.register_forward_hook(tap.after, with_kwargs=True))
