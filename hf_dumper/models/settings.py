"""What models and dumps say of their settings, and where two of them differ."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hf_dumper.core.protocols import DumpReader
from hf_dumper.errors import ModelError
from hf_dumper.models.files import FolderFiles, ModelFiles, read_json
from hf_dumper.store.kept import tokenizer_folder
from hf_dumper.store.reader import NativeReader

Values = dict[str, Any]

_NUMERICS: Final = (
    ("weights", r"weights"),
    ("dtype", r"dtype"),
    ("quantisation", r"quanti[sz]ation"),
    ("rope", r"rope|rotary"),
    ("norm epsilon", r"(^|[._])(eps|epsilon)$|norm_eps|_epsilon$"),
    ("attention", r"attn_implementation|sliding_window|layer_types|attention_bias|use_cache"),
    ("experts", r"experts_implementation|num_experts|experts_per_tok|norm_topk|topk|router"),
    ("activation", r"(^|[._])(hidden_)?act(ivation)?(_function|_fn)?$"),
    ("softcap", r"softcap"),
    ("scaling", r"scal(e|ing)|multiplier|query_pre_attn"),
    (
        "size",
        r"(^|[._])(num_\w*layers|n_layer|\w*hidden_size|intermediate_size|head_dim|vocab_size|"
        r"num_\w*heads|n_head|n_embd|d_model|d_ff|d_kv|tie_word_embeddings|\w+_bias|class)$",
    ),
    ("versions", r"^environment\.versions\."),
    ("device", r"device_map|cpu_capability|interop_threads|(^|\.)threads$"),
    ("precision", r"^environment\.|^identity\.seed|determinis"),
)
"""What changes numbers -> names of the settings, the most telling first."""

_NO_EFFECT: Final = "other"

_NOT_COMPARED: Final = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "auto_map")
"""Fields of a configuration that say where it comes from, or are compared by themselves."""


_WHERE_FROM: Final = ("name_or_path", "is_local", "local_files_only")
"""Fields of a tokenizer that say how it was loaded."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one side by section: config, generation, tokenizer, identity, environment.

    A section is absent where this kind of thing has none, and {} where it has one with nothing in
    it. `notes` say what could not be taken as it is meant.
    """

    name: str
    kind: str
    sections: Mapping[str, Values]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that is not the same; `golden` or `candidate` is None where a side lacks it.

    `group` says what it acts on, `numerics` whether that changes numbers.
    """

    key: str
    golden: Any
    candidate: Any
    group: str
    numerics: bool


@dataclass(frozen=True, slots=True)
class SettingsDiff:
    """All that differs, what changes numbers first; and the sections that one side does not have.

    `compared` is the number of settings that were looked at.
    """

    golden: str
    candidate: str
    differences: tuple[Difference, ...]
    not_compared: tuple[str, ...]
    compared: int
    notes: tuple[str, ...]

    def to_dict(self) -> Values:
        """Return JSON-ready values."""
        return {"equal": not self.differences, **asdict(self)}


def settings_of_model(files: ModelFiles, *, trust_remote_code: bool = False) -> Settings:
    """Return the settings of a folder or repository.

    Defaults of the configuration's class are filled in, so that what is left out equals what is
    written down; where that is not possible, a note says so.
    """
    config = read_json(files, "config.json")
    if not config:
        msg = f"{files.name!r} holds no config.json, so it is no model of transformers."
        raise ModelError(msg)
    filled, notes = _filled_in(files, config, trust_remote_code=trust_remote_code)
    dtype = config.get("dtype") or config.get("torch_dtype")
    identity = {"class": next(iter(config.get("architectures") or ()), None), "dtype": dtype}
    sections = {
        "config": _without(filled),
        "generation": _without(read_json(files, "generation_config.json")),
        "tokenizer": _tokenizer(files),
        "identity": {name: value for name, value in identity.items() if value is not None},
    }
    return Settings(files.name, "model", sections, notes)


def _filled_in(
    files: ModelFiles, config: Values, *, trust_remote_code: bool
) -> tuple[Values, tuple[str, ...]]:
    from transformers import AutoConfig

    place = files.path("config.json").parent
    try:
        read = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:  # code of others, or a type that transformers does not know
        told = " ".join(str(error).split())[:100]
        return config, (f"config.json of {files.name} is compared as it is written: {told}",)
    return read.to_dict(), ()


def _tokenizer(files: ModelFiles) -> Values:
    """Return tokenizer_config.json, and the digests of the files with a vocabulary or template."""
    from xxhash import xxh3_64_hexdigest

    found = _without(read_json(files, "tokenizer_config.json"))
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"):
        if name in files.sizes:
            found[f"file {name}"] = xxh3_64_hexdigest(files.path(name).read_bytes())
    for name in ("chat_template.jinja", "chat_template.json"):
        if name in files.sizes:
            found["chat_template"] = files.path(name).read_text(encoding="utf-8")
    if "tokenizer_class" in found:
        found["tokenizer_class"] = _class_name(str(found["tokenizer_class"]))
    return {name: value for name, value in found.items() if name not in _WHERE_FROM}


def _class_name(name: str) -> str:
    """Return what a class is called by itself: transformers has several names for some."""
    import transformers

    return str(getattr(getattr(transformers, name, None), "__name__", name))


def settings_of_dump(reader: DumpReader) -> Settings:
    """Return the settings of a dump; the regime and the generation are those of its first run."""
    manifest = reader.manifest
    identity = dict(manifest.get("identity") or {})
    identity.pop("config_hash", None)  # the configuration itself is compared
    environment = {"versions": manifest.get("versions") or {}}
    sections: dict[str, Values] = {
        "config": _without(dict(manifest.get("config") or {})),
        "identity": {**identity, "seed": manifest.get("seed")},
        "environment": environment,
    }
    notes: tuple[str, ...] = ()
    runs = reader.runs()
    if isinstance(reader, NativeReader):
        kept = tokenizer_folder(reader.path)
        if kept is not None:
            sections["tokenizer"] = _tokenizer(FolderFiles(kept))
        if runs:
            facts = reader.run_info(runs[0])
            environment |= dict(facts.get("regime") or manifest.get("determinism") or {})
            sections["generation"] = _without(dict(facts.get("generation_config") or {}))
        if len(runs) > 1:
            notes = (f"of the {len(runs)} runs of {reader.path}, run {runs[0]} is compared",)
    path = str(getattr(reader, "path", "a dump"))
    return Settings(path, "dump", sections, notes)


def diff(golden: Settings, candidate: Settings) -> SettingsDiff:
    """Return what differs between two sides, section by section."""
    both = [name for name in golden.sections if name in candidate.sections]
    left = dict(_flat({name: golden.sections[name] for name in both}))
    right = dict(_flat({name: candidate.sections[name] for name in both}))
    keys = [key for key in {**left, **right} if _is_comparable(key, golden, candidate)]
    found = [
        _difference(key, left.get(key), right.get(key))
        for key in keys
        if _plain(left.get(key)) != _plain(right.get(key))
    ]
    order = [name for name, _ in _NUMERICS]
    found.sort(key=lambda d: (order.index(d.group) if d.numerics else len(order), d.key))
    return SettingsDiff(
        golden.name,
        candidate.name,
        tuple(found),
        tuple(_alone(golden, candidate)),
        len(keys),
        golden.notes + candidate.notes,
    )


def _alone(golden: Settings, candidate: Settings) -> Iterator[str]:
    """Name what one side alone has."""
    for one, other in ((golden, candidate), (candidate, golden)):
        for name in one.sections:
            if name not in other.sections:
                yield f"{name}: {other.name} is a {other.kind} without it"
    if golden.kind != candidate.kind:
        yield "identity: of a model, class and dtype alone"
        yield "generation: what generation_config.json does not set, generate() chose"


def _is_comparable(key: str, golden: Settings, candidate: Settings) -> bool:
    """Tell whether both sides are of a kind that has this setting."""
    if golden.kind == candidate.kind:
        return True
    section, _, name = key.partition(".")
    if section == "identity":
        return name in ("class", "dtype")
    if section == "generation":
        model = golden if golden.kind == "model" else candidate
        return name in dict(_flat(model.sections["generation"]))
    return True


def _difference(key: str, golden: Any, candidate: Any) -> Difference:
    group = _group(key)
    return Difference(key, golden, candidate, group, group != _NO_EFFECT)


def _group(key: str) -> str:
    if key.startswith(("tokenizer.", "identity.dump_config.")):
        return _NO_EFFECT
    if key.startswith("generation."):
        return _NO_EFFECT
    matching = (name for name, pattern in _NUMERICS if re.search(pattern, key))
    return next(matching, _NO_EFFECT)


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; an empty mapping is a value."""
    for name, value in values.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix("torch.")
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if value == {} else value


def _without(values: Mapping[str, Any]) -> Values:
    return {
        name: _without(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in _NOT_COMPARED
    }


def is_dump(path: Path) -> bool:
    """Tell whether a folder is a dump that a reader recognises."""
    from hf_dumper.store.open import READERS

    return path.is_dir() and any(kind.detect(path) for kind in dict(READERS).values())
