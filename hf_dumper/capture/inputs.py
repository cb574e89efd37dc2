"""What a forward of the root module is about to process, read from its arguments."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.capture.integers import Integers, copy_integers, copy_mask

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which transformers passes a cache (ALL_CACHE_NAMES of generation, 5.23)."""

_IDS = ("decoder_input_ids", "input_ids")
_EMBEDS = ("decoder_inputs_embeds", "inputs_embeds")


class RootInputs(NamedTuple):
    """Sizes of one forward, and copies of the small integers that went in.

    `rows` x `cols` are the tokens it takes in, 0 columns where it takes none. `past` is the number
    of cached columns, None when a cache does not tell. `readable` is False for masks of another
    shape, from which positions cannot be known. `cache` is the class name of the cache. `ids` and
    `position_ids` are None where they were not given, or have not two axes.
    """

    rows: int
    cols: int
    keep: int
    past: int | None
    given_mask: Integers | None
    readable: bool
    cache: str | None
    ids: Integers | None = None
    position_ids: Integers | None = None

    @property
    def mask(self) -> NDArray[np.int8] | None:
        """The 2-D mask, 1 for real tokens [rows, columns]; None means that nothing is masked."""
        given = self.given_mask
        return None if given is None else (given.table() != 0).astype(np.int8)


def read_inputs(
    module: torch.nn.Module, args: tuple[Any, ...], given: Mapping[str, Any]
) -> RootInputs:
    """Read the sizes of a forward from its arguments; `given` are those that have names."""
    decoder = _takes_decoder_ids(type(module).forward)
    rows, cols = _sizes(given, decoder, args)
    mask = given.get("decoder_attention_mask" if decoder else "attention_mask")
    keep = given.get("logits_to_keep")
    copied = copy_mask(mask)
    return RootInputs(
        rows=rows,
        cols=cols,
        keep=keep if isinstance(keep, int) and keep > 0 else 0,
        past=_past(given),
        given_mask=copied,
        readable=mask is None or copied is not None,
        cache=next((type(given[n]).__name__ for n in CACHES if given.get(n) is not None), None),
        ids=copy_integers(given.get("decoder_input_ids" if decoder else "input_ids")),
        position_ids=copy_integers(
            given.get("decoder_position_ids" if decoder else "position_ids")
        ),
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


@lru_cache(maxsize=1024)
def _takes_decoder_ids(forward: Callable[..., Any]) -> bool:
    return any(name.startswith("decoder_") for name in _parameter_names(forward))


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
    counted = count()
    if counted is None:  # a cache of states that has the method, and no answer (Reformer, 5.23)
        return None
    return _as_int(counted) or max((n for n in within if n), default=0)


def _as_int(length: Any) -> int:
    return int(length.item()) if isinstance(length, torch.Tensor) else int(length)
