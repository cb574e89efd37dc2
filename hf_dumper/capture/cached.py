"""The tensors that a cache of transformers 5 holds, whatever its class, by layer.

A cache is an object with a list of layers (`cache_utils.py`), an object of its own kind, or a list
of tensors. What is not known by name is found by looking at the attributes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

_SIZES = frozenset(
    {
        *("cumulative_length", "_sliding_window_tensor"),
        *("indexer_cumulative_length", "idx_cumulative_length", "seqlen_offset"),
        "_pending_beam_idx",  # how rows will have changed places when they are next read
    }
)
"""Attributes whose tensors count columns or rows, and are no part of what is cached."""

_NAMES = {
    "conv_states": "conv",
    "recurrent_states": "recurrent",
    "linear_cache": "recurrent",  # MiniMax
    "rnn_state": "recurrent",  # xLSTM
    "buckets_cache": "buckets",  # Reformer
    "states_cache": "states",
}
"""What attributes are called in a slot, where that is another word."""


class _Growth(NamedTuple):
    """Where an attribute grows: the axis, the attribute that counts, the axis of rows."""

    axis: int
    counted_by: str | None = None
    row: int = 0


_GROWING = {
    "indexer_keys": _Growth(1, "indexer_cumulative_length"),  # [rows, columns, channels]
    "indexer_position_ids": _Growth(2, row=1),  # [dimensions, rows, columns]
    "idx_keys": _Growth(2, "idx_cumulative_length"),  # [rows, heads, columns, channels]
    "compressed_kv": _Growth(1),  # [rows, entries, channels], one for some columns
    "states_cache": _Growth(1),  # [rows, columns, channels]
}
"""Attributes to which a forward appends; of any other the whole is its state."""


class Part(NamedTuple):
    """A tensor of a cache.

    Attributes:
        slot: Where it is, without the leading "kv.".
        tensor: What it is after the forward, or before it.
        grows: The axis along which forwards append, None for a state.
        length: Columns that it has seen; some may have left it, or there is room for more.
        row: The axis of rows, where it has one.
        own: Whether its columns are those of the forward, not of an encoder.
        forgets: Whether its end is new only where it grew by as much as went in.
    """

    slot: str
    tensor: torch.Tensor
    grows: int | None = None
    length: int = 0
    row: int = 0
    own: bool = True
    forgets: bool = False


def parts(cache: Any, called: str) -> Iterator[Part | str]:
    """Yield the tensors of a cache passed as argument `called`, and why something is no tensor."""
    own, cross = (getattr(cache, f"{kind}_attention_cache", None) for kind in ("self", "cross"))
    if own is not None and cross is not None:
        yield from parts(own, called)
        yield from below("cross", parts(cross, called), own=False)
    elif isinstance(cache, list | tuple):
        yield from _of_list(cache, called)
    else:
        for name, layer in layers(cache):
            yield from _of_layer(name, layer)
        yield from _beside(cache)


def layers(cache: Any) -> list[tuple[str, Any]]:
    """Return the layers of a cache by name; none where it has no collection of them."""
    found = getattr(cache, "layers", None)
    return [(str(name), layer) for name, layer in _items(found)]


def below(word: str, found: Iterator[Part | str], *, own: bool = True) -> Iterator[Part | str]:
    """Put a word behind the layer in the slots; without `own`, columns are others' than those."""
    for part in found:
        if isinstance(part, str):
            yield part
        else:
            layer, _, rest = part.slot.partition(".")
            yield part._replace(slot=f"{layer}.{word}.{rest}", own=own and part.own)


def _of_layer(name: str, layer: Any) -> Iterator[Part | str]:
    yield from _keys_and_values(name, layer)
    for attribute, path, tensor in _attributes(layer):
        slot = f"{name}.{_NAMES.get(attribute, attribute)}{path}"
        yield _grown(Part(slot, tensor), attribute, layer)


def _keys_and_values(name: str, layer: Any) -> Iterator[Part | str]:
    count = getattr(layer, "get_seq_length", None)
    length = int(count()) if callable(count) else 0
    for slot in ("key", "value"):
        tensor = _latest(layer, slot)
        if isinstance(tensor, torch.Tensor) and tensor.ndim > 1:
            yield Part(f"{name}.{slot}", tensor, tensor.ndim - 2, length)
        elif length:
            yield f"cache: the {slot}s of a {type(layer).__name__} have no columns"


def _latest(layer: Any, slot: str) -> Any:
    """Return the tensor that ends in the columns which came last, dequantised where they are.

    A quantised layer keeps its last columns as they are until there are enough of them.
    """
    tensor = getattr(layer, f"{slot}s", None)
    quantised = getattr(layer, f"_quantized_{slot}s", None)
    if quantised is None or (isinstance(tensor, torch.Tensor) and tensor.numel()):
        return tensor
    return layer._dequantize(quantised)


def _grown(part: Part, attribute: str, holder: Any) -> Part:
    growth = _GROWING.get(attribute)
    if growth is None or growth.axis >= part.tensor.ndim:
        return part
    count = getattr(holder, growth.counted_by, None) if growth.counted_by else None
    length = part.tensor.shape[growth.axis] if count is None else int(count)
    return part._replace(grows=growth.axis, length=length, row=growth.row)


def _attributes(holder: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield attribute, path within it and tensor, but for keys and values, and for counts."""
    for attribute, value in getattr(holder, "__dict__", {}).items():
        if attribute in ("keys", "values") or attribute in _SIZES or "_quantized" in attribute:
            continue
        if isinstance(value, dict) and list(value) == [0]:  # the only state of its kind
            value = value[0]
        for path, tensor in tensors(value):
            yield attribute, path, tensor


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested lists, tuples and mappings, each with its path: ".0.name".

    One without elements has no value, and stands for none.
    """
    if isinstance(value, torch.Tensor) and value.numel():
        yield "", value
    for key, item in _items(value):
        for path, tensor in tensors(item):
            yield f".{key}{path}", tensor


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _beside(cache: Any) -> Iterator[Part | str]:
    """Yield what a cache holds beside its layers: of each layer, or of itself."""
    for attribute, value in getattr(cache, "__dict__", {}).items():
        if attribute == "layers" or attribute in _SIZES:
            continue
        name = _NAMES.get(attribute, attribute)
        if layers(value):
            yield from below(name, parts(value, attribute))
        elif isinstance(value, torch.Tensor):
            yield Part(name, value)
        elif any(tensors(getattr(value, "__dict__", None))):
            yield f"cache: {type(cache).__name__}.{attribute} is not read"
        for layer, item in _items(value):
            for path, tensor in tensors(item):
                yield _grown(Part(f"{layer}.{name}{path}", tensor), attribute, cache)


def _of_list(cache: list[Any] | tuple[Any, ...], called: str) -> Iterator[Part]:
    if called == "state" and _is_stacked(cache):  # RWKV: [rows, channels, layers], five of them
        for layer in range(cache[0].shape[2]):
            for i, state in enumerate(cache):
                yield Part(f"{layer}.recurrent.{i}", state[:, :, layer])
        return
    for layer, item in enumerate(cache):
        for path, tensor in tensors(item):
            part = Part(f"{layer}.{called}{path}", tensor)
            if called == "mems" and tensor.ndim > 1:  # XLNet: [columns, rows, channels]
                part = part._replace(grows=0, length=tensor.shape[0], row=1, forgets=True)
            yield part


def _is_stacked(cache: list[Any] | tuple[Any, ...]) -> bool:
    shapes = {tuple(s.shape) if isinstance(s, torch.Tensor) else () for s in cache}
    return len(shapes) == 1 and len(next(iter(shapes))) == 3
