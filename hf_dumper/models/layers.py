"""How a configuration says how many layers there are, and how it is cut."""

from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any, Final

from hf_dumper.errors import ModelError

PARTS: Final = (
    "text_config",
    "language_config",
    "llm_config",
    "thinker_config",
    "encoder",
    "decoder",
)
"""Parts of a configuration that are a language model; vision and sound keep their layers."""

COUNTS: Final = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
)
"""Names under which configurations count layers."""

_PER_LAYER: Final = ("layer", "block", "types", "pattern")
"""Words in the names of lists that have an entry for each layer."""

_EACH: Final = (
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "num_query_heads",
    "ffn_multipliers",
)
"""Sizes that have an entry for each layer when they are lists."""

_INDICES: Final = (
    "mlp_only_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "cross_attention_layers",
)
"""Lists of numbers of layers."""

_AT_MOST: Final = ("max_window_layers", "first_k_dense_replace")
"""Numbers of layers that cannot be more than there are."""


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that says the sizes of the language model."""
    for name in PARTS:
        if isinstance(config.get(name), Mapping):
            return language_part(config[name])
    return config


def cut_config(
    config: Mapping[str, Any], layers: int, resolved: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration with the first layers only, and what was changed, one line each.

    Args:
        config: What config.json holds.
        layers: How many layers to keep of each stack; a stack with fewer keeps all.
        resolved: What the configuration's class makes of it, for counts that are left out.

    Raises:
        ModelError: the configuration counts no layers under a known name.
    """
    cut = deepcopy(dict(config))
    _fill_in(cut, resolved)
    notes = [note for part in _parts(cut, "") for note in _cut_part(*part, layers)]
    if not notes:
        names = ", ".join(COUNTS)
        msg = f"config.json counts no layers beyond {layers} under a name that is known: {names}."
        raise ModelError(msg)
    return cut, notes


def _fill_in(config: dict[str, Any], resolved: Mapping[str, Any]) -> None:
    """Write down the counts that the configuration leaves to the defaults of its class."""
    for name in COUNTS:
        if name not in config and type(resolved.get(name)) is int:
            config[name] = resolved[name]
    for name in PARTS:
        if isinstance(resolved.get(name), Mapping):
            _fill_in(config.setdefault(name, deepcopy(resolved[name])), resolved[name])


def _parts(config: MutableMapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    inner = [name for name in PARTS if isinstance(config.get(name), dict)]
    for name in inner:
        yield from _parts(config[name], f"{path}{name}.")
    yield path, config  # type: ignore[misc]


def _cut_part(path: str, part: dict[str, Any], layers: int) -> Iterator[str]:
    before = {n: part[n] for n in COUNTS if type(part.get(n)) is int and part[n] > layers}
    for name, old in before.items():
        part[name] = layers
        yield f"{path}{name}: {old} to {layers}"
    if before:
        yield from _cut_lists(path, part, layers, set(before.values()))


def _cut_lists(path: str, part: dict[str, Any], layers: int, old: set[int]) -> Iterator[str]:
    for name, value in part.items():
        part[name] = _cut_value(name, value, layers, old)
        if part[name] != value:
            yield f"{path}{name}: cut to {layers} layers"
        elif isinstance(value, list) and len(value) in old and name not in _INDICES:
            yield f"{path}{name}: left as it is, though it has as many entries as there were layers"


def _cut_value(name: str, value: Any, layers: int, old: set[int]) -> Any:
    if name in _AT_MOST and isinstance(value, int):
        return min(value, layers)
    if not isinstance(value, list):
        return value
    if name in _INDICES:
        return [i for i in value if i < layers]
    is_per_layer = name in _EACH or any(word in name for word in _PER_LAYER)
    return value[:layers] if is_per_layer and len(value) in old else value
