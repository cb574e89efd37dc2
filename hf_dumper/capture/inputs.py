"""What a forward of the root module is about to process, read from its arguments."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hf_dumper.capture.integers import Integers, copy_integers, copy_mask
from hf_dumper.capture.masks import real_columns
from hf_dumper.capture.static_masks import Generated, is_static_mask, unmasked_columns

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Names under which transformers passes a cache (ALL_CACHE_NAMES of generation, 5.23)."""

_IDS = ("decoder_input_ids", "input_ids")
_EMBEDS = ("decoder_inputs_embeds", "inputs_embeds")


class RootInputs(NamedTuple):
    """Sizes of one forward, and copies of the small integers that went in.

    `rows` x `cols` are the tokens it takes in, 0 columns where it takes none. `past` is the number
    of cached columns, None when a cache does not tell. `readable` is False for masks that do not
    tell what is padding, from which positions cannot be known. `cache` is the class name of the
    cache. `ids` and `position_ids` are None where they were not given, or have not two axes.
    `goes_on` tells that the mask says nothing, and that every column is real: a token that
    `generate()` decodes into a static cache. `is_cut` tells that a memory may have forgotten
    columns that were fed, so that nobody knows how many there were.
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
    goes_on: bool = False
    is_cut: bool = False

    @property
    def mask(self) -> NDArray[np.int8] | None:
        """The 2-D mask, 1 for real tokens [rows, columns]; None means that nothing is masked."""
        given = self.given_mask
        return None if given is None else (given.table() != 0).astype(np.int8)


def read_inputs(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    given: Mapping[str, Any],
    *,
    seen: int | None = None,
    generated: Generated = Generated.NO,
) -> RootInputs:
    """Read the sizes of a forward from its arguments; `given` are those that have names.

    `seen` is the number of columns in the cache, should that lie on a device: None means that it
    has to be waited for. `generated` says whether `generate()` made the mask, and of what.
    """
    decoder = _takes_decoder_ids(type(module).forward)
    rows, cols = _sizes(given, decoder, args)
    mask = given.get("decoder_attention_mask" if decoder else "attention_mask")
    inverted = given.get("input_mask")  # XLNet's, which has 1 where a column is masked
    if mask is None and isinstance(inverted, torch.Tensor):
        mask = inverted == 0
    keep = given.get("logits_to_keep")
    cache = next((given[n] for n in CACHES if given.get(n) is not None), None)
    past = _past(cache, given, seen)
    goes_on = False
    if generated is not Generated.NO and is_static_mask(mask, cache):
        goes_on = generated is Generated.DECODE
        mask = None if goes_on else unmasked_columns(mask, cache, past or 0, cols)
    copied = copy_mask(mask)
    if copied is None and mask is not None:
        copied = copy_integers(real_columns(mask, cols))
    return RootInputs(
        rows=rows,
        cols=cols,
        keep=keep if isinstance(keep, int) and keep > 0 else 0,
        past=past,
        given_mask=copied,
        readable=mask is None or copied is not None,
        cache=None if cache is None else type(cache).__name__,
        ids=copy_integers(given.get("decoder_input_ids" if decoder else "input_ids")),
        position_ids=copy_integers(
            given.get("decoder_position_ids" if decoder else "position_ids")
        ),
        goes_on=goes_on,
        is_cut=_is_cut(module, given),
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


def _past(cache: Any, given: Mapping[str, Any], seen: int | None) -> int | None:
    if cache is None:
        return 0
    return _columns_of(cache) if cache is given.get("mems") else _length(cache, seen)


def _is_cut(module: torch.nn.Module, given: Mapping[str, Any]) -> bool:
    """Tell whether memories that are given may lack columns that were fed (XLNet's options)."""
    mems, config = given.get("mems"), getattr(module, "config", None)
    if mems is None or config is None:
        return False
    most = getattr(config, "mem_len", None) or 0
    # generate() drops the last two columns and feeds them again.
    is_full = most > 0 and (_columns_of(mems) or 0) >= most - 2
    return is_full or bool(getattr(config, "reuse_len", None))


def _columns_of(mems: Any) -> int | None:
    """Return how many columns the memories of XLNet [columns, rows, channels] hold."""
    first = next(iter(mems), None)
    return first.shape[0] if isinstance(first, torch.Tensor) else None


def _length(cache: Any, seen: int | None) -> int | None:
    """Return how many columns a cache has seen, None where it does not tell."""
    if getattr(cache, "seqlen_offset", None) is not None:  # xLSTM
        return int(cache.seqlen_offset)
    count = getattr(cache, "get_seq_length", None)
    if not callable(count):
        return None
    try:
        told = count()
    except ValueError:  # a cache of states alone says so in this way (transformers 5.23)
        used = getattr(cache, "has_previous_state", None)
        return 0 if callable(used) and not used() else None
    if told is None:  # Reformer
        return int(cache.get_start_idx()) if hasattr(cache, "get_start_idx") else None
    # That of the first layer, and 0 where that one keeps its states elsewhere (MiniMax, 5.23).
    layers = getattr(cache, "layers", None)
    within = (_length(layer, seen) for layer in layers) if isinstance(layers, list) else ()
    return _as_int(told, seen) or max((n for n in within if n), default=0)


def _as_int(length: Any, seen: int | None) -> int:
    """Return a length; one on a device is not waited for where it is known."""
    if isinstance(length, torch.Tensor) and not length.is_cpu and seen is not None:
        return seen
    return int(length)
