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
    "num_blocks",
    "encoder_layers",
    "decoder_layers",
)
"""Names under which configurations count layers."""

_LISTS: Final = ("layers_block_type",)
"""Lists whose length is the number of layers where nothing counts them."""

_PER_LAYER: Final = ("layer", "block", "types", "pattern")
"""Words in the names of lists that have an entry for each layer."""

_EACH: Final = (
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "num_query_heads",
    "ffn_multipliers",
    "attention_window",
    "sparse_attention_freq",
)
"""Sizes that have an entry for each layer when they are lists."""

_INDICES: Final = (
    "mlp_only_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "cross_attention_layers",
    "moe_layers",
    "hybrid_layer_ids",
)
"""Lists of numbers of layers."""

_FROM_ONE: Final = ("full_attn_layers", "kda_layers")
"""Those that count from 1."""

_INNER: Final = ("linear_attn_config", "sparse_attention_config")
"""Parts of a configuration with lists of that kind, which count no layers."""

_AT_MOST: Final = ("max_window_layers", "first_k_dense_replace")
"""Numbers of layers that cannot be more than there are."""

_SHARED_LAST: Final = ("num_kv_shared_layers",)
"""Numbers of layers at the end."""


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
    lists = (part[name] for name in _LISTS if isinstance(part.get(name), list))
    counts = {*before.values(), *(len(types) for types in lists if len(types) > layers)}
    if counts:
        yield from _cut_lists(path, part, layers, counts)


def _cut_lists(path: str, part: dict[str, Any], layers: int, old: set[int]) -> Iterator[str]:
    for name, value in part.items():
        if name in _INNER and isinstance(value, dict):
            yield from _cut_lists(f"{path}{name}.", value, layers, old)
            continue
        part[name] = _cut_value(name, value, layers, old)
        if part[name] != value:
            yield f"{path}{name}: cut to {layers} layers"
        elif isinstance(value, list) and len(value) in old and name not in _INDICES:
            yield f"{path}{name}: left as it is, though it has as many entries as there were layers"


def _cut_value(name: str, value: Any, layers: int, old: set[int]) -> Any:
    if name in _AT_MOST and isinstance(value, int):
        return min(value, layers)
    if name in _SHARED_LAST and isinstance(value, int):
        return max(0, value - (max(old) - layers))
    if name == "per_layer_config" and isinstance(value, dict):
        return {i: each for i, each in value.items() if int(i) < layers}
    if name == "attention_types" and isinstance(value, list):
        return _first_of_runs(value, layers)
    if isinstance(value, str):
        return value[:layers] if "pattern" in name and len(value) in old else value
    if not isinstance(value, list):
        return value
    if name in (*_INDICES, *_FROM_ONE):
        return [i for i in value if i < layers + (name in _FROM_ONE)]
    return value[:layers] if is_per_layer(name) and len(value) in old else value


def is_per_layer(name: str) -> bool:
    """Tell by its name whether a list has an entry for each layer, if it is as long."""
    return name in _EACH or any(word in name for word in _PER_LAYER)


def _first_of_runs(runs: list[Any], layers: int) -> list[Any]:
    """Cut GPT-Neo's `[[kinds, times], ...]` to the first layers."""
    kinds = [kind for names, times in runs for kind in names * times]
    return [[[kind], 1] for kind in kinds[:layers]]


def settled(
    config: Mapping[str, Any], cut: Mapping[str, Any], whole: Mapping[str, Any], layers: int
) -> dict[str, Any]:
    """Return a cut configuration that says for each layer what the whole one says.

    Where config.json leaves out what each layer is, its class takes defaults that may depend on the
    number of layers; then they are written down.

    Args:
        config: What is to be in config.json.
        cut: What the configuration's class makes of it.
        whole: What it makes of the whole model's.
        layers: How many layers are kept.
    """
    found = dict(config)
    for name, value in whole.items():
        inner = config.get(name), cut.get(name)
        if name in PARTS and all(isinstance(v, Mapping) for v in (value, *inner)):
            found[name] = settled(inner[0], inner[1], value, layers)  # type: ignore[arg-type]
    for name, value, _ in _changed(cut, whole, layers):
        if config.get(name) is None:
            found[name] = value
    return found


def check_settled(cut: Mapping[str, Any], whole: Mapping[str, Any], layers: int) -> None:
    """Make sure that each layer is what it is in the whole model.

    Raises:
        ModelError: the configuration's class does not take the first layers as they are.
    """
    for name, wanted, got in _changed(cut, whole, layers):
        msg = f"{name} of the first {layers} layers is {wanted}, and with {layers} layers the model"
        msg += f" would have {got}: keep another number of layers."
        raise ModelError(msg)
    for name in PARTS:
        if isinstance(whole.get(name), Mapping) and isinstance(cut.get(name), Mapping):
            check_settled(cut[name], whole[name], layers)


def _changed(
    cut: Mapping[str, Any], whole: Mapping[str, Any], layers: int
) -> Iterator[tuple[str, list[Any], Any]]:
    """Yield the lists with entries for each layer that do not begin as the whole one's."""
    counts = {whole[n] for n in COUNTS if type(whole.get(n)) is int and whole[n] > layers}
    for name, value in whole.items():
        if isinstance(value, list | tuple) and len(value) in counts and is_per_layer(name):
            wanted, got = list(value[:layers]), cut.get(name)
            if isinstance(got, list | tuple) and list(got) != wanted:
                yield name, wanted, list(got)
