"""A witness that shares no code with hf_dumper: plain hooks, names of its own making.

It sees every tensor that goes into or comes out of a module, and notes what it is, the hash of its
bytes, and its statistics. A tensor is hashed where it lies and before the model goes on, which
proves as much as a clone and takes no memory.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from xxhash import xxh3_64_intdigest

Generate = Callable[..., torch.Tensor]
"""Runs the model on the one prompt, with further options for `generate()`; returns all ids."""

_BLOCK = 1 << 18
"""Values that are widened to float64 at a time."""


class Place(NamedTuple):
    """Which tensor: the slots are those of `docs/format.md`."""

    forward: int
    module: str
    call: int
    slot: str


class Sight(NamedTuple):
    """What a tensor is, and the xxh3-64 of its bytes in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    hash: int


@dataclasses.dataclass(frozen=True, slots=True)
class Testimony:
    """What one `generate()` of the plain model was.

    Attributes:
        tokens: Prompt and generated ids.
        modules: Inputs and outputs of every module, and the chosen tokens.
        head: The last logits, the scores and the chosen tokens.
        statistics: Statistics of each tensor seen, as float64 has them.
    """

    tokens: torch.Tensor
    modules: Mapping[Place, Sight]
    head: Mapping[Place, Sight]
    statistics: Mapping[Sight, Mapping[str, float | None]]


class Witness:
    """Hooks on every module of a model, while it is used as a context."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Prepare to watch a model."""
        self.modules: dict[Place, Sight] = {}
        self.head: dict[Place, Sight] = {}
        self.statistics: dict[Sight, dict[str, float | None]] = {}
        self._model = model
        self._forward = -1
        self._calls: Counter[str] = Counter()
        self._hooks = ExitStack()

    def __enter__(self) -> "Witness":
        """Set the hooks; that of the root comes first, and counts the forwards."""
        for name, module in self._model.named_modules():
            self._watch(name or "root", module)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        self._hooks.close()

    def _watch(self, name: str, module: torch.nn.Module) -> None:
        def before(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == "root":
                self._forward += 1
                self._calls.clear()
            self._calls[name] += 1
            for key, value in [*enumerate(args), *kwargs.items()]:
                self._see(name, f"input.{key}", value)

        def after(_module: object, _args: object, output: Any) -> None:
            self._see(name, "output", output)
            if name == "root":
                self._note(self.head, "root", "logits", output.logits[:, -1])

        self._hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        self._hooks.enter_context(module.register_forward_hook(after))

    def scores(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See what a logits processor sees; to be given to `generate()` as one."""
        self._note(self.head, "root", "scores", scores)
        return scores

    def chosen(self, tokens: torch.Tensor) -> None:
        """See the tokens [rows, generated] that the forwards so far have led to."""
        for forward, column in enumerate(tokens.unbind(1)):
            for seen in (self.modules, self.head):
                self._note(seen, "root", "token_ids", column, forward)

    def _see(self, name: str, prefix: str, value: Any) -> None:
        for slot, tensor in tensors_in(prefix, value):
            self._note(self.modules, name, slot, tensor)

    def _note(
        self,
        seen: dict[Place, Sight],
        name: str,
        slot: str,
        tensor: torch.Tensor,
        forward: int | None = None,
    ) -> None:
        forward = self._forward if forward is None else forward
        sight = look(tensor)
        seen[Place(forward, name, max(0, self._calls[name] - 1), slot)] = sight
        if sight not in self.statistics:
            self.statistics[sight] = statistics_of(tensor)


def watch(model: PreTrainedModel, generate: Generate) -> Testimony:
    """Let a witness watch one `generate()`."""
    plain = generate()
    with Witness(model) as witness:
        tokens = generate(logits_processor=LogitsProcessorList([witness.scores]))
    if not torch.equal(tokens, plain):
        msg = "The witness changed the tokens; what it saw is not what the plain model does."
        raise RuntimeError(msg)
    forwards = 1 + max(place.forward for place in witness.modules)
    witness.chosen(tokens[:, -forwards:])
    return Testimony(tokens, witness.modules, witness.head, witness.statistics)


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (slot, tensor) for every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif hasattr(value, "_fields"):
        parts = value._asdict().items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    for key, part in parts:
        yield from tensors_in(f"{name}.{key}", part)


def look(tensor: torch.Tensor) -> Sight:
    """Describe a tensor and hash its bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.stride() != (1,):  # a single value counts as contiguous whatever its stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    raw = flat.view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Sight(dtype, tuple(tensor.shape), raw.nbytes, xxh3_64_intdigest(raw))


def statistics_of(tensor: torch.Tensor) -> dict[str, float | None]:
    """Compute the statistics that a dump may hold, in float64 and in the plainest way."""
    flat = tensor.detach().reshape(-1)
    zeros = nan = pos_inf = neg_inf = finite = 0
    total = squares = deviations = 0.0
    low, high = math.inf, -math.inf
    for values, all_values in _finite_blocks(flat):
        zeros += all_values.numel() - int(all_values.count_nonzero())
        nan += int(all_values.isnan().sum())
        pos_inf += int(all_values.isposinf().sum())
        neg_inf += int(all_values.isneginf().sum())
        if values.numel():
            finite += values.numel()
            low, high = min(low, values.min().item()), max(high, values.max().item())
            total += values.sum().item()
            squares += values.square().sum().item()
    mean = total / finite if finite else None
    if mean is not None:
        for values, _ in _finite_blocks(flat):
            deviations += (values - mean).square().sum().item()
    return {
        "count": flat.numel(),
        "min": low if finite else None,
        "max": high if finite else None,
        "mean": mean,
        "std": math.sqrt(deviations / finite) if finite else None,
        "l2": math.sqrt(squares),
        "sum": total,
        "absmax": max(abs(low), abs(high)) if finite else None,
        "zeros": zeros,
        "nan": nan,
        "pos_inf": pos_inf,
        "neg_inf": neg_inf,
    }


def _finite_blocks(flat: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (finite values, all values) of each block, in float64."""
    for block in flat.split(_BLOCK):
        wide = block.to(torch.float64)
        yield wide[wide.isfinite()], wide
