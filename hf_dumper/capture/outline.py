"""The outline of a model on the meta device: no weights, no values, only shapes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final

import torch
from torch import nn

from hf_dumper.capture.fake_inputs import fake_inputs, tower_inputs
from hf_dumper.core.outline import DtypeTotal, ModuleOutline, Outline, Shapes
from hf_dumper.core.slots import leaves
from hf_dumper.core.types import ROOT
from hf_dumper.errors import ModelError

_HOLDERS: Final = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Classes that hold others and have no forward."""

_NOT_CALLED: Final = "not called in this forward"

_WAYS: Final = (
    ("", lambda _model: None),
    ("experts as batched_mm", lambda model: model.set_experts_implementation("batched_mm")),
    ("attention as eager", lambda model: model.set_attn_implementation("eager")),
)
"""Kernels to try one after the other: some look at values, which are not there."""


def outline(model: nn.Module, *, rows: int, tokens: int) -> Outline:
    """Return the modules of a model on the meta device, after a forward that computes nothing.

    The towers of a model that goes on from a text are called by themselves: with a text they would
    need values. Where no forward is possible, because it depends on values or takes inputs of
    another kind, the shapes are unknown, and each module says why. The model's kernels may be
    changed by this.
    """
    notes: list[str] = []
    inputs: dict[str, torch.Tensor] = {}
    try:
        inputs = fake_inputs(model, rows, tokens)
        seen, note = _try(model, partial(model.eval(), **inputs))
        notes += [note] if note else []
    except ModelError as error:
        seen = _Seen(failure=str(error))
    for name, given in tower_inputs(model, rows).items():
        tower, _ = _try(model, partial(getattr(model, name), **given))
        if seen.add(tower, name):
            inputs |= given
            notes.append(f"what the forward did not call was learnt by {name}")
    counted = _count(model)
    modules = [
        _describe(name, module, seen, counted[module]) for name, module in model.named_modules()
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return Outline(modules, _by_dtype(model), shapes, (*notes, *_quantised(model)))


@dataclass(slots=True)
class _Seen:
    """What a forward showed: by module the shapes of its first call, and why it stopped if so."""

    shapes: dict[nn.Module, Shapes] = field(default_factory=dict)
    open: list[nn.Module] = field(default_factory=list)
    failure: str = ""

    def enter(self, module: nn.Module, _args: Any) -> None:
        self.open.append(module)

    def leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        self.open.pop()
        found = ((s, tuple(v.shape)) for s, v in leaves("output", output) if _is_tensor(v))
        self.shapes.setdefault(module, tuple(found))

    def add(self, other: "_Seen", by: str) -> bool:
        """Add what another call showed; return whether that is anything new."""
        is_new = not other.shapes.keys() <= self.shapes.keys()
        self.shapes = other.shapes | self.shapes
        if other.failure and not self.failure:
            self.failure = f"{_NOT_CALLED}; by {by} {other.failure}"
        return is_new


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _try(model: nn.Module, call: Callable[[], object]) -> tuple[_Seen, str]:
    """Call the model with one kind of kernels after the other; return the best, and a note."""
    best, changes, note = _Seen(), [], ""
    for name, change in _WAYS:
        try:
            change(model)
        except (AttributeError, ValueError):  # the model has no such choice
            continue
        changes += [name] if name else []
        seen = _run(model, call)
        if (not best.failure and not best.shapes) or len(seen.shapes) > len(best.shapes):
            best = seen
            note = f"shapes were learnt with {' and '.join(changes)}" if changes else ""
        if not seen.failure:
            break
    return best, note


def _run(model: nn.Module, call: Callable[[], object]) -> _Seen:
    seen = _Seen()
    names = {module: name or ROOT for name, module in model.named_modules()}
    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_pre_hook(seen.enter))
            stack.enter_context(module.register_forward_hook(seen.leave))
        try:
            with torch.no_grad():
                call()
        except Exception as error:  # code of others meets tensors without values: anything
            where = names[seen.open[-1]] if seen.open else ROOT
            told = " ".join(str(error).split())[:120]
            seen.failure = f"the forward stops in {where}: {type(error).__name__}: {told}"
    return seen


@dataclass(slots=True)
class _Count:
    """Elements and bytes of a module and what is below it."""

    parameters: int = 0
    trainable: int = 0
    buffers: int = 0
    bytes: int = 0
    tied: list[str] = field(default_factory=list)


def _count(model: nn.Module) -> dict[nn.Module, _Count]:
    """Count each tensor once, for the first module that has it and for all modules above that."""
    counts = {module: _Count() for module in model.modules()}
    homes: dict[int, str] = {}
    for name, module in model.named_modules():
        above = [model.get_submodule(path) for path in _above(name)]
        for own, tensor, is_parameter in _own(module):
            full = f"{name}.{own}" if name else own
            home = homes.setdefault(id(tensor), full)
            if home != full:
                counts[module].tied.append(f"{own} = {home}")
                continue
            for each in dict.fromkeys(above):
                _add(counts[each], tensor, is_parameter=is_parameter)
    return counts


def _above(name: str) -> Iterator[str]:
    """Yield the names of a module and of all modules above it."""
    parts = name.split(".") if name else []
    return (".".join(parts[:n]) for n in range(len(parts) + 1))


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    yield from ((n, t, True) for n, t in module.named_parameters(recurse=False))
    yield from ((n, t, False) for n, t in module.named_buffers(recurse=False))


def _add(count: _Count, tensor: torch.Tensor, *, is_parameter: bool) -> None:
    n = tensor.numel()
    count.parameters += n * is_parameter
    count.trainable += n * (is_parameter and tensor.requires_grad)
    count.buffers += n * (not is_parameter)
    count.bytes += tensor.nbytes


def _describe(name: str, module: nn.Module, seen: _Seen, count: _Count) -> ModuleOutline:
    shapes = seen.shapes.get(module)
    why = ""
    if shapes is None and not isinstance(module, _HOLDERS):
        why = seen.failure or _NOT_CALLED
    return ModuleOutline(
        name=name or ROOT,
        class_name=type(module).__name__,
        depth=len(name.split(".")) if name else 0,
        outputs=shapes,
        why=why,
        parameters=count.parameters,
        trainable=count.trainable,
        buffers=count.buffers,
        bytes=count.bytes,
        tied=tuple(count.tied),
    )


def _by_dtype(model: nn.Module) -> dict[str, DtypeTotal]:
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    parameters = ((p, 0) for p in model.parameters())
    for tensor, place in chain(parameters, ((b, 1) for b in model.buffers())):
        total = sums[str(tensor.dtype).removeprefix("torch.")]
        total[place] += tensor.numel()
        total[2] += tensor.nbytes
    return {name: DtypeTotal(*total) for name, total in sums.items()}


def _quantised(model: nn.Module) -> tuple[str, ...]:
    config = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is None:
        return ()
    return ("the checkpoint is quantised, which types and bytes here do not show",)
