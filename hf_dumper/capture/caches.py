"""What a forward added to the cache of keys and values, and the states it left there."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch

from hf_dumper.capture.cached import Part, below, layers, parts
from hf_dumper.capture.inputs import CACHES
from hf_dumper.capture.naming import named_modules
from hf_dumper.core.axes import OTHER, POS, ROW

_KEPT_BY_MODULES = {"conv1d_state": "conv", "recurrent_states": "recurrent"}
"""States that modules keep as attributes, not in the cache (RecurrentGemma), and their slots."""


_OTHERS = {"encoder_past_key_values": "encoder", "padding_cache": "padding"}
"""Caches of an audio encoder that go with the model's own (Voxtral Realtime), and their word."""


class Cached(NamedTuple):
    """A tensor of a cache: its slot, and its axes as the index has them."""

    slot: str
    axes: str
    tensor: torch.Tensor


class _Kept(NamedTuple):
    """A state that a module keeps: the layer it belongs to, its slot there, where it is."""

    layer: str
    slot: str
    module: torch.nn.Module
    attribute: str


class CacheReader:
    """Compares the cache of a forward before and after it."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Know of no cache; `model` may have modules that keep states themselves."""
        self._model = model
        self._given: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}

    def before(self, given: Mapping[str, Any]) -> None:
        """Look at the caches that a forward is given, among its arguments by name."""
        names = (*CACHES, *_OTHERS)
        self._given = {name: given[name] for name in names if given.get(name) is not None}
        found = (p for name, cache in self._given.items() for p in _parts(cache, name))
        self._lengths = {p.slot: p.length for p in found if isinstance(p, Part)}

    def after(self, output: Any, rows: int, cols: int) -> Iterator[Cached | str]:
        """Yield what a forward of `rows` x `cols` tokens added, and why something is left out.

        Of what grows with the tokens it is what the forward appended, or as much of it as the layer
        keeps; states are as the forward left them.
        """
        given, self._given = self._given, {}
        for part in (*self._own(output, given), *_of_others(output, given)):
            yield from self._added(part, rows, cols)

    def _own(self, output: Any, given: Mapping[str, Any]) -> Iterator[Part | str]:
        """Yield what the model's own cache holds, or why it is not known."""
        found = _returned(output)
        before = next(((name, given[name]) for name in CACHES if name in given), None)
        if found is None and isinstance(output, tuple) and (not before or before[0] == "mems"):
            yield "cache: none was given, or it is replaced, and a tuple does not name the new one"
            return
        cache = found or before
        if cache is None:
            yield "cache: the forward had none"
            return
        held = list(self._held(*cache))
        yield from held or [f"cache: what a {type(cache[1]).__name__} holds cannot be read"]

    def _held(self, called: str, cache: Any) -> Iterator[Part | str]:
        """Yield what a cache holds after a forward, and what modules keep in its stead."""
        numbers = set()
        for part in parts(cache, called):
            yield part
            numbers.add("" if isinstance(part, str) else part.slot.partition(".")[0])
        for name, layer in layers(cache):
            if name not in numbers:
                kept: list[Part | str] = [*self._kept_by_modules(name)]
                yield from kept or [f"cache: a {type(layer).__name__} holds nothing"]

    def _added(self, part: Part | str, rows: int, cols: int) -> Iterator[Cached | str]:
        if isinstance(part, str):
            yield part
            return
        added = part.length - self._lengths.get(part.slot, 0)
        axes = [OTHER] * part.tensor.ndim
        if part.tensor.shape[part.row : part.row + 1] == (rows,):
            axes[part.row] = ROW
        if part.grows is None or (part.forgets and added != cols):
            yield Cached(f"kv.{part.slot}", ",".join(axes), part.tensor)
        elif added < 0:
            yield f"cache: {part.slot} became shorter in a forward"
        elif added:
            # A static layer has room for more than it holds, a sliding one holds less than it saw.
            end = min(part.length, part.tensor.shape[part.grows])
            kept = min(added, end)
            if added == cols and part.own:
                axes[part.grows] = POS
            new = part.tensor.narrow(part.grows, end - kept, kept)
            yield Cached(f"kv.{part.slot}", ",".join(axes), new)

    def _kept_by_modules(self, layer: str) -> Iterator[Part]:
        for number, slot, module, attribute in self._keepers:
            state = getattr(module, attribute)
            if number == layer and isinstance(state, torch.Tensor):
                yield Part(f"{layer}.{slot}", state)

    @cached_property
    def _keepers(self) -> list[_Kept]:
        return [
            _Kept(number, slot, module, attribute)
            for name, module in named_modules(self._model)
            for attribute, slot in _KEPT_BY_MODULES.items()
            if attribute in vars(module)
            for number in [part for part in name.split(".") if part.isdecimal()][:1]
        ]


def _parts(cache: Any, name: str) -> Iterator[Part | str]:
    """Yield what a cache holds that is called `name` among arguments or outputs."""
    word = _OTHERS.get(name)
    found = parts(cache, name)
    return below(word, found, own=False) if word else found


def _of_others(output: Any, given: Mapping[str, Any]) -> Iterator[Part | str]:
    for name in _OTHERS:
        cache = getattr(output, name, None)
        cache = given.get(name) if cache is None else cache
        if cache is not None:
            yield from _parts(cache, name)


def _returned(output: Any) -> tuple[str, Any] | None:
    """Return the cache among the outputs of a forward, and what it is called."""
    for name in CACHES:
        cache = getattr(output, name, None)
        if cache is not None:
            return name, cache
    values = output if isinstance(output, tuple) else ()
    return next((("past_key_values", v) for v in values if _is_cache(v)), None)


def _is_cache(value: Any) -> bool:
    return bool(layers(value)) or type(value).__name__.endswith("Cache")
