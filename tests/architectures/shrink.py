"""Small configurations of every type, made from the defaults: sizes shrink by the name they have.

What a name does not tell stands in `overrides.py`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, HIDDEN, HEADS, HEAD_DIM, LAYERS = 96, 32, 4, 8, 2

SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|codebook_size", VOCABULARY),
    (r".*(num|n|_)_?(attention_|query_)?heads?|n_heads?|num_query_groups|num_head", HEADS),
    (r".*(num|n)_(key_value|kv)_(heads|groups)|.*kv_heads|multi_query_group_num", 2),
    (
        r".*layer_indices|.*(num|n)_.*layers?|(encoder|decoder)_layers|layers|depth|num_blocks",
        LAYERS,
    ),
    (r"n_layers?|num_layers|.*_depth|num_hidden_groups", LAYERS),
    (
        r".*(intermediate|ffn|mlp|ff)_(size|dim|hidden_size)|d_ff|d_inner|n_inner|.*ffn_embed_dim",
        48,
    ),
    (
        r".*hidden_(size|dim)|.*d_model|.*n_embd|(.*_)?(embed|emb)_dim|.*embedding_(size|dim)",
        HIDDEN,
    ),
    (r"(.*_)?(projection|proj|output|input|model|out|patch_embed)_(dim|size)|dim", HIDDEN),
    (r".*qk_rope_head_dim", 4),
    (r".*(head_dim|dim_head|head_size|d_head|d_kv|dim_per_head|headdim)", HEAD_DIM),
    (r".*qk_nope_head_dim|.*v_head_dim|rotary_dim", HEAD_DIM),
    (r".*lora_rank|.*_lora_dim|.*_rank", 16),
    (r".*(num|n)_(local_|routed_)?experts|moe_num_experts", 4),
    (r".*(experts_per_tok|per_token|topk|top_k)", 2),
    (r".*shared_experts|n_group|num_expert_group|topk_group|first_k_dense_replace", 1),
    (r".*(num|n)_?groups|.*nextn_predict_layers", 1),
    (r".*(d_state|state_size|state_dim)", 8),
    (r".*chunk_size", 4),
    (r".*(max|n)_.*(positions?|position_embeddings?|_ctx)|n_ctx|.*n_positions|max_seq_len", 64),
    (r"original_max_position_embeddings", 32),
    (r".*sliding_window(_size)?|window_size", 4),
    (r".*image_size", 16),
    (r".*patch_size", 4),
    (r".*mel_bins", 8),
)
"""(names, size): an integer of such a name becomes no larger than that; the first match counts."""

_SIZES = [(re.compile(names), size) for names, size in SIZES]
_TOKEN = re.compile(
    r".*(token|eos|bos|pad|sep|cls|mask|image|video|audio|start|end).*_(id|index|ids)"
)
_NOT_SIZES = frozenset({"dtype", "id2label", "label2id", "problem_type", "transformers_version"})


def shrunk(default: PreTrainedConfig, given: Mapping[str, Any], tokens: dict[str, int]) -> Any:
    """Return a small configuration of the type of `default`.

    `given` are values that names do not tell, those of nested configurations as mappings.
    `tokens` numbers the special tokens that lie outside of the small vocabulary.
    """
    values = _given_values(default)
    nested = {n: v for n, v in values.items() if isinstance(v, PreTrainedConfig)}
    small = {n: shrunk(v, given.get(n, {}), tokens) for n, v in nested.items()}
    lists = _layers(values)
    for name, value in values.items():
        if name not in nested and name not in lists:
            new = _value(name, value, tokens)
            if new is not value:
                small[name] = new
    small |= lists
    small |= {name: value for name, value in given.items() if name not in nested}
    return type(default)(**small)


def _given_values(default: PreTrainedConfig) -> dict[str, Any]:
    """Return the values by which a configuration is made; it works out the others by itself."""
    fields = {f.name: f for f in dataclasses.fields(default) if f.init}
    # vars(), as attributes that may vary by layer refuse to be read.
    values = {n: v for n, v in vars(default).items() if n in fields and n not in _NOT_SIZES}
    return {n: v for n, v in values.items() if not (type(v) is int and _is_worked_out(fields[n]))}


def _is_worked_out(field: dataclasses.Field[Any]) -> bool:
    return field.default is None or isinstance(field.default, str)


def _value(name: str, value: Any, tokens: dict[str, int]) -> Any:
    if isinstance(value, dict) and name.startswith("rope"):
        return _rope(value)
    if name == "head_dim" and value is None:
        return HEAD_DIM
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if _TOKEN.fullmatch(name):
        return value if value < 80 else tokens.setdefault(name, 80 + len(tokens))
    size = next((size for names, size in _SIZES if names.fullmatch(name)), None)
    return value if size is None or value <= size else size


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain rotary parameters: factors of others are lists as long as a head."""
    if any(isinstance(part, dict) for part in rope.values()):
        return {k: _rope(part) if isinstance(part, dict) else part for k, part in rope.items()}
    plain = {n: v for n, v in rope.items() if v is not None and not isinstance(v, list | tuple)}
    plain["rope_type"] = "default"
    if "mrope_section" in rope:
        plain["mrope_section"] = [2, 1, 1]
    return plain


def _layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep layers enough for one of each kind; return the numbers and lists that say so."""
    counts = {n: v for n, v in values.items() if _is_count(n) and isinstance(v, int)}
    found: dict[str, Any] = {}
    for name, count in counts.items():
        lists = {n: v for n, v in values.items() if _is_per_layer(v, count)}
        kinds = [v for v in lists.values() if len(set(map(str, v))) < count]
        if lists and count > LAYERS:
            kept = _one_of_each(kinds) if kinds else list(range(LAYERS))
            found[name] = len(kept)
            # A list of different numbers tells which layers, not what they are.
            found |= {n: type(v)(v[i] for i in kept) for n, v in lists.items() if v in kinds}
            found |= {n: v[: len(kept)] for n, v in lists.items() if v not in kinds}
    return found


def _is_count(name: str) -> bool:
    return name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")


def _is_per_layer(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count


def _one_of_each(lists: Iterable[Any]) -> list[int]:
    kinds = list(zip(*lists, strict=True))
    kept: list[int] = []
    for place in range(len(kinds[0])):
        seen: set[Any] = {str(kinds[i][place]) for i in kept}
        for i, kind in enumerate(kinds):
            if str(kind[place]) not in seen:
                seen.add(str(kind[place]))
                kept.append(i)
    rest = [i for i in range(len(kinds)) if i not in kept]
    return sorted([*kept, *rest[: max(0, LAYERS - len(kept))]])
