"""What each file of a model is for, and which are missing."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, Final, NamedTuple

from hf_dumper.models.files import ModelFiles, is_safe, read_json
from hf_dumper.models.weights import WeightFiles

_TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.tiktoken",
    "*.spm",
)
"""Any of these holds the vocabulary of a tokenizer."""

_ROLES: Final = (
    ("config", ("config.json",)),
    ("generation config", ("generation_config.json",)),
    ("tokenizer", _TOKENIZERS),
    (
        "tokenizer settings",
        (
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "merges.txt",
            "chat_template.*",
            "additional_chat_templates/*",
        ),
    ),
    ("processor", ("preprocessor_config.json", "processor_config.json", "video_*config.json")),
    ("quantisation", ("quantize_config.json", "quant_config.json", "hf_quant_config.json")),
    ("adapter", ("adapter_config.json", "adapter_model.*")),
    ("weight index", ("*.index.json",)),
    (
        "other weights",
        ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx*"),
    ),
    ("code", ("*.py",)),
    ("document", ("*.md", "LICENSE*", "NOTICE*", "*.txt", "*.pdf", "*.png", "*.jpg")),
)
"""Roles by name of file, the first that matches; weights and named code are told apart before."""


class FileRole(NamedTuple):
    """One file: `bytes` is None where the hub tells none, `detail` says more or is ""."""

    name: str
    bytes: int | None
    role: str
    detail: str = ""


def file_roles(
    files: ModelFiles, weights: WeightFiles, maps: Mapping[str, str]
) -> tuple[FileRole, ...]:
    """Return what every file is for. `maps` are the classes that an auto_map names, by purpose."""
    code = _named_code(maps)
    return tuple(
        FileRole(name, size, *_role(name, weights, code)) for name, size in files.sizes.items()
    )


def _role(name: str, weights: WeightFiles, code: Mapping[str, list[str]]) -> tuple[str, str]:
    if name in weights.shards:
        return "weights", weights.format
    if name == weights.index:
        return "weight index", f"{len(weights.places)} tensors in {len(weights.shards)} shards"
    if name in code:
        return _kind_of_code(code[name]), ", ".join(code[name])
    matching = (r for r, patterns in _ROLES if any(fnmatch(name, p) for p in patterns))
    return next(matching, "other"), ""


def _named_code(maps: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for purpose, where in maps.items():
        module = where.rpartition(".")[0].replace(".", "/")
        found.setdefault(f"{module}.py", []).append(f"{purpose} = {where.rpartition('.')[2]}")
    return found


def _kind_of_code(purposes: list[str]) -> str:
    names = {purpose.split(" = ")[0] for purpose in purposes}
    kinds = (
        ("modeling code", lambda n: n.startswith("AutoModel")),
        ("configuration code", lambda n: n == "AutoConfig"),
        ("tokenizer code", lambda n: n == "AutoTokenizer"),
    )
    matching = (kind for kind, fits in kinds if any(map(fits, names)))
    return next(matching, "processor code")


def auto_maps(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Return purpose -> "module.Class" of the auto_map of each; of two tokenizers one."""
    found: dict[str, str] = {}
    for config in configs:
        maps = config.get("auto_map")
        for purpose, where in maps.items() if isinstance(maps, Mapping) else ():
            names = where if isinstance(where, list | tuple) else [where]
            first = next((name for name in names if name), None)
            if isinstance(first, str) and "." in first:
                found[purpose] = first
    return found


def missing(files: ModelFiles, weights: WeightFiles, maps: Mapping[str, str]) -> Iterator[str]:
    """Yield what is missing for the model and the tokenizer to load, one sentence each."""
    config = read_json(files, "config.json")
    if not config.get("model_type") and "AutoConfig" not in maps:
        yield "config.json has no model_type, so transformers cannot tell what the model is"
    yield from _missing_weights(files, weights)
    yield from _missing_code(files, maps)
    yield from _missing_tokenizer(files, config, maps)


def _missing_weights(files: ModelFiles, weights: WeightFiles) -> Iterator[str]:
    if weights.format and not weights.shards:
        yield f"weights: {weights.index} names no tensor"
    if not weights.format:
        yield "weights: no model.safetensors or pytorch_model.bin, and no index of shards"
    for shard in weights.shards:
        if shard not in files.sizes:
            held = sum(place == shard for place in weights.places.values())
            yield f"shard {shard}, which {weights.index} names for {held} tensors"


def _missing_code(files: ModelFiles, maps: Mapping[str, str]) -> Iterator[str]:
    from transformers.dynamic_module_utils import get_relative_imports

    waiting = [m for m in _named_code(maps) if "--" not in m]
    seen: dict[str, str] = dict.fromkeys(waiting, "auto_map names it")
    while waiting:
        name = waiting.pop()
        if not is_safe(name) or name not in files.sizes:
            yield f"code {name}: {seen[name]}"
            continue
        for module in get_relative_imports(files.path(name)):
            wanted = f"{module.replace('.', '/')}.py"
            if wanted not in seen and f"{module.replace('.', '/')}/__init__.py" not in files.sizes:
                seen[wanted] = f"{name} imports it"
                waiting.append(wanted)


def _missing_tokenizer(
    files: ModelFiles, config: Mapping[str, Any], maps: Mapping[str, str]
) -> Iterator[str]:
    names = files.sizes
    vocabulary = [n for n in names if any(fnmatch(n, p) for p in _TOKENIZERS)]
    if not vocabulary:
        yield f"tokenizer: none of {', '.join(_TOKENIZERS)}"
    elif vocabulary == ["vocab.json"] and "merges.txt" not in names:
        yield "merges.txt, without which vocab.json is no tokenizer"
    if vocabulary and "tokenizer_config.json" not in names:
        yield "tokenizer_config.json, which names the tokenizer's class and special tokens"
    if "generation_config.json" not in names:
        yield "generation_config.json: generate() takes its defaults from config.json then"
    if "vision_config" in config and not {"preprocessor_config.json", "processor_config.json"} & {
        *names
    }:
        yield "preprocessor_config.json, without which no image can be given"
