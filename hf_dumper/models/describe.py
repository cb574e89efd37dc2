"""What a model is, from its files alone: no weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hf_dumper.errors import ModelError
from hf_dumper.models.files import ModelFiles, read_json
from hf_dumper.models.headers import Header
from hf_dumper.models.layers import language_part
from hf_dumper.models.roles import FileRole, auto_maps, file_roles, missing
from hf_dumper.models.weights import WeightFiles, read_headers, weight_files

_SIZES: Final = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    "key_value_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "d_kv", "kv_channels"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "positions": ("max_position_embeddings", "n_positions", "seq_length"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
}
"""What is told of the sizes -> how configurations call it."""


@dataclass(frozen=True, slots=True)
class DtypeSum:
    """Tensors of one type."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A model as files.

    Attributes:
        name: Folder or repository.
        files: What every file is for.
        architecture: Class, model_type and sizes; those that config.json does not say are absent.
        auto_map: Purpose -> "module.Class" of the model's own code.
        needs_remote_code: Whether transformers has no class of its own for the model_type.
        quantisation: quantization_config of config.json, None without one.
        weights: Files that hold the weights.
        tensors: What the headers say.
        missing: What is missing to load model and tokenizer.
        unread: File -> why its tensors are not known.
    """

    name: str
    files: tuple[FileRole, ...]
    architecture: Mapping[str, Any]
    auto_map: Mapping[str, str]
    needs_remote_code: bool
    quantisation: Mapping[str, Any] | None
    weights: WeightFiles
    tensors: Header
    missing: tuple[str, ...]
    unread: Mapping[str, str]

    @property
    def dtypes(self) -> dict[str, DtypeSum]:
        """Tensors, elements and bytes of each type, the largest first."""
        sums: dict[str, list[int]] = {}
        for tensor in self.tensors:
            found = sums.setdefault(tensor.dtype, [0, 0, 0])
            for i, n in enumerate((1, tensor.elements, tensor.nbytes)):
                found[i] += n
        ordered = sorted(sums.items(), key=lambda item: -item[1][2])
        return {name: DtypeSum(*found) for name, found in ordered}


def describe(files: ModelFiles) -> Description:
    """Return what a model is, from its small files and the headers of its weights.

    Raises:
        ModelError: there is no config.json, or a file is damaged.
    """
    if "config.json" not in files.sizes:
        msg = f"{files.name!r} holds no config.json, so it is no model of transformers."
        raise ModelError(msg)
    config = read_json(files, "config.json")
    weights = weight_files(files)
    tensors, unread = read_headers(files, weights)
    maps = auto_maps(config, *(read_json(files, name) for name in _WITH_CODE))
    return Description(
        name=files.name,
        files=file_roles(files, weights, maps),
        architecture=_architecture(config),
        auto_map=maps,
        needs_remote_code=_needs_code(config),
        quantisation=_quantisation(config),
        weights=weights,
        tensors=tensors,
        missing=(*missing(files, weights, maps), *_not_in_index(weights, tensors, unread)),
        unread=unread,
    )


_WITH_CODE: Final = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def _needs_code(config: Mapping[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return (
        bool(config.get("auto_map")) and str(config.get("model_type")) not in CONFIG_MAPPING_NAMES
    )


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    part = language_part(config)
    named = {
        "class": _class(config),
        "model_type": config.get("model_type"),
        "dtype": config.get("dtype") or config.get("torch_dtype") or part.get("dtype"),
    }
    sizes = {
        said: next((part[name] for name in names if part.get(name) is not None), None)
        for said, names in _SIZES.items()
    }
    tied = config.get("tie_word_embeddings", part.get("tie_word_embeddings"))
    found = named | sizes | {"tied_embeddings": tied}
    return {name: value for name, value in found.items() if value is not None}


def _quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = config.get("quantization_config")
    return found if found is None or isinstance(found, Mapping) else {"quant_method": str(found)}


def _class(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _not_in_index(weights: WeightFiles, tensors: Header, unread: Mapping[str, str]) -> list[str]:
    """Say where the index and the headers disagree."""
    held = {tensor.name: tensor.file for tensor in tensors}
    absent = [
        name
        for name, shard in weights.places.items()
        if shard in {tensor.file for tensor in tensors} - unread.keys() and held.get(name) != shard
    ]
    shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    return [f"tensors that {weights.index} names and their shards lack: {shown}"] if absent else []
