"""What a forward of the root module is about to process, read from its arguments."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which transformers passes a cache (ALL_CACHE_NAMES of generation, 5.23)."""

_IDS = ("decoder_input_ids", "input_ids")
_EMBEDS = ("decoder_inputs_embeds", "inputs_embeds")


@dataclass(frozen=True, slots=True)
class RootInputs:
    """Sizes of one forward.

    `rows` x `cols` are the tokens it takes in, 0 columns where it takes none. `past` is the number
    of cached columns, None when a cache does not tell. `mask` is the 2-D mask, 1 for real tokens,
    as int8 [rows, columns]; None means that nothing is masked. `readable` is False for masks of
    another shape, from which positions cannot be known. `cache` is the class name of the cache.
    """

    rows: int
    cols: int
    keep: int
    past: int | None
    mask: NDArray[np.int8] | None
    readable: bool
    cache: str | None


def read_inputs(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RootInputs:
    """Read the sizes of a forward from its positional and keyword arguments."""
    names = parameter_names(module)
    given = named_arguments(module, args, kwargs)
    decoder = any(name.startswith("decoder_") for name in names)
    rows, cols = _sizes(given, decoder, args)
    mask = given.get("decoder_attention_mask" if decoder else "attention_mask")
    keep = given.get("logits_to_keep")
    flat = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
    return RootInputs(
        rows=rows,
        cols=cols,
        keep=keep if isinstance(keep, int) and keep > 0 else 0,
        past=_past(given),
        mask=None if flat is None else flat.detach().ne(0).to("cpu", torch.int8).numpy(),
        readable=mask is None or flat is not None,
        cache=next((type(given[n]).__name__ for n in CACHES if given.get(n) is not None), None),
    )


def named_arguments(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a module's forward by name."""
    return {**dict(zip(parameter_names(module), args, strict=False)), **kwargs}


def parameter_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module's forward.

    The class is asked, not the instance: accelerate replaces `forward` on instances.
    """
    return _parameter_names(type(module).forward)


@lru_cache(maxsize=1024)
def _parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, p in parameters.items() if p.kind in kinds)[1:]


def _sizes(given: Mapping[str, Any], decoder: bool, args: tuple[Any, ...]) -> tuple[int, int]:
    for names, ndim in ((_IDS, 2), (_EMBEDS, 3)):
        value = given.get(names[0] if decoder else names[1])
        if isinstance(value, torch.Tensor) and value.ndim == ndim:
            return value.shape[0], value.shape[1]
    labels = given.get("labels")
    if decoder and isinstance(labels, torch.Tensor) and labels.ndim == 2:
        return labels.shape[0], labels.shape[1]  # shifted right inside the model
    for value in (*args, *given.values()):
        if isinstance(value, torch.Tensor) and value.ndim:
            return value.shape[0], 0
    return 0, 0


def _past(given: Mapping[str, Any]) -> int | None:
    for name in CACHES:
        cache = given.get(name)
        if cache is None:
            continue
        try:
            return _length(cache)
        except ValueError:  # a cache of states alone says so in this way (transformers 5.23)
            return None
    return 0


def _length(cache: Any) -> int | None:
    """Return how many columns a cache has seen, None where it does not tell."""
    count = getattr(cache, "get_seq_length", None)
    if not callable(count):
        return None
    # That of the first layer, and 0 where that one keeps its states elsewhere (MiniMax, 5.23).
    layers = getattr(cache, "layers", None)
    within = map(_length, layers) if isinstance(layers, list) else ()
    return _as_int(count()) or max((n for n in within if n), default=0)


def _as_int(length: Any) -> int:
    return int(length.item()) if isinstance(length, torch.Tensor) else int(length)
