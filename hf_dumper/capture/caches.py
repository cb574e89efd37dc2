"""What a forward added to the cache of keys and values, and the states it left there.

Written for the caches of transformers 5 (`cache_utils.py`): a cache is a list of layers, a layer
holds keys and values [batch, heads, length, channels], states, or both.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from hf_dumper.capture.inputs import CACHES
from hf_dumper.core.axes import OTHER, POS, ROW

_KNOWN = frozenset(
    {
        *("keys", "values", "conv_states", "recurrent_states"),
        *("cumulative_length", "_sliding_window_tensor"),  # sizes
        "_pending_beam_idx",  # how rows will have changed places when they are next read
    }
)
"""Attributes of cache layers whose tensors are recorded, or are no part of what is cached."""


class Cached(NamedTuple):
    """A tensor of a cache: its slot, and its axes as the index has them."""

    slot: str
    axes: str
    tensor: torch.Tensor


class CacheReader:
    """Compares the cache of a forward before and after it."""

    def __init__(self) -> None:
        """Know of no cache."""
        self._given: Any = None
        self._lengths: dict[str, int] = {}

    def before(self, given: Mapping[str, Any]) -> None:
        """Look at the cache that a forward is given, among its arguments by name."""
        self._given = next((given[n] for n in CACHES if given.get(n) is not None), None)
        layers = _layers(self._given)
        self._lengths = {name: _length(layer) for name, layer in layers}

    def after(self, output: Any, rows: int, cols: int) -> Iterator[Cached | str]:
        """Yield what a forward of `rows` x `cols` tokens added, and why something is left out.

        Keys and values are what the forward added, or as much of it as the layer keeps; states are
        as the forward left them.
        """
        cache, given = _returned(output), self._given
        self._given = None
        cache = given if cache is None else cache  # which may be empty, and false
        if cache is None:
            yield "cache: the forward had none"
            return
        layers = _layers(cache)
        if not layers:
            yield f"cache: what a {type(cache).__name__} holds cannot be read"
        yield from _unread(cache)
        for name, layer in layers:
            is_self = not name.endswith(".cross")
            axis = POS if is_self else OTHER  # columns of an encoder are none of this forward
            yield from _added(name, layer, self._lengths.get(name, 0), rows, (cols, axis))
            yield from _states(name, layer, rows)
            yield from _unread(layer)
            if _is_empty(layer):
                yield f"cache: a {type(layer).__name__} holds nothing"


def _returned(output: Any) -> Any:
    for name in CACHES:
        cache = getattr(output, name, None)
        if cache is not None:
            return cache
    values = output if isinstance(output, tuple) else ()
    return next((v for v in values if isinstance(getattr(v, "layers", None), list)), None)


def _layers(cache: Any) -> list[tuple[str, Any]]:
    """Return the layers of a cache by name; none where it has no list of them."""
    own, cross = (getattr(cache, f"{kind}_attention_cache", None) for kind in ("self", "cross"))
    if own is not None and cross is not None:
        return _layers(own) + [(f"{name}.cross", layer) for name, layer in _layers(cross)]
    layers = getattr(cache, "layers", None)
    return [(str(i), layer) for i, layer in enumerate(layers)] if isinstance(layers, list) else []


def _length(layer: Any) -> int:
    """Return how many columns a layer has seen; layers of states alone count none."""
    count = getattr(layer, "get_seq_length", None)
    return int(count()) if callable(count) else 0


def _added(
    name: str, layer: Any, before: int, rows: int, columns: tuple[int, str]
) -> Iterator[Cached | str]:
    length = _length(layer)
    added = length - before
    if added < 0:
        yield f"cache: a {type(layer).__name__} became shorter in a forward"
    if added <= 0:
        return
    for slot, tensor in _held(layer, added):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
            yield f"cache: the {slot}s of a {type(layer).__name__} have no four axes"
            continue
        # A static layer has room for more than it holds, a sliding one holds less than it has seen.
        end = min(length, tensor.shape[2])
        part = tensor[:, :, end - min(added, end) : end]
        position = columns[1] if added == columns[0] else OTHER
        axes = ",".join((_row(tensor, rows), OTHER, position, OTHER))
        yield Cached(f"kv.{name}.{slot}", axes, part)


def _held(layer: Any, added: int) -> Iterator[tuple[str, Any]]:
    """Yield keys and values by name; where the added ones are quantised already, dequantised.

    A quantised layer keeps its last ones as they are until there are enough of them.
    """
    for slot in ("key", "value"):
        tensor = getattr(layer, f"{slot}s")
        quantised = getattr(layer, f"_quantized_{slot}s", None)
        is_plain = isinstance(tensor, torch.Tensor) and tensor.ndim == 4
        if quantised is None or (is_plain and tensor.shape[2] >= added):
            yield slot, tensor
        else:
            yield slot, layer._dequantize(quantised)


def _states(name: str, layer: Any, rows: int) -> Iterator[Cached]:
    for slot in ("conv", "recurrent"):
        states = getattr(layer, f"{slot}_states", None)
        if not isinstance(states, dict):
            continue
        for i, state in states.items():
            if isinstance(state, torch.Tensor):
                which = f"{slot}.{i}" if len(states) > 1 else slot
                axes = ",".join((_row(state, rows), *[OTHER] * (state.ndim - 1)))
                yield Cached(f"kv.{name}.{which}", axes, state)


def _row(tensor: torch.Tensor, rows: int) -> str:
    return ROW if tensor.shape[0] == rows else OTHER


def _is_empty(layer: Any) -> bool:
    """Tell whether a layer has neither keys nor states: its module keeps them itself, or none."""
    states = (getattr(layer, f"{kind}_states", None) or {} for kind in ("conv", "recurrent"))
    held = [getattr(layer, "keys", None), *(state for kind in states for state in kind.values())]
    return not any(isinstance(part, torch.Tensor) for part in held)


def _unread(layer: Any) -> Iterator[str]:
    """Yield a reason for every tensor of a layer, or of a cache, that is none of the above."""
    for name, value in getattr(layer, "__dict__", {}).items():
        if name in _KNOWN or (name.startswith("_quantized") and value is not None):
            continue
        held = value.values() if isinstance(value, dict) else value
        parts = list(held) if isinstance(value, dict | tuple | list) else [held]
        if any(isinstance(part, torch.Tensor) for part in parts):
            yield f"cache: {type(layer).__name__}.{name} is not read"
