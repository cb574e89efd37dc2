"""The drop-in: load a model as an Auto class does, with a dump session on it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PretrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.models.auto import modeling_auto
from transformers.utils import find_adapter_config_file

from hf_dumper.capture.facts import Tokenizer
from hf_dumper.config import DumpConfig
from hf_dumper.errors import ConfigError, ModelError
from hf_dumper.models.shims import shimmed
from hf_dumper.session import DumpSession

DEMO_MODEL = str(Path(__file__).parent / "assets" / "demo_model")
"""Folder of the small trained Llama that comes with the package."""

_GENERATING = (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoModelForImageTextToText,
)
"""Auto classes whose models generate: they come first where several make the same class."""

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "code_revision",
)
"""Keywords of `from_pretrained` that say where files lie, for the configuration as well."""


class DumpingModel:
    """Loads a model with a dump session at `model.dump`; not a model itself."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        dump_config: DumpConfig | None = None,
        auto_class: type[Any] | None = None,
        tokenizer: Tokenizer | None = None,
        **auto_model_kwargs: Any,
    ) -> PreTrainedModel:
        """Return the model that an Auto class returns, dumped from now on.

        Args:
            name_or_path: Repository on the hub, or a folder.
            dump_config: What to dump; None means `DumpConfig()`.
            auto_class: Auto class to load with. None takes the one whose model the checkpoint was
                saved from; where that is not known causal language model, else sequence to
                sequence, else base model: the first one that knows the model's configuration.
            tokenizer: Kept with the dump, and used for the text of prompts and answers.
            **auto_model_kwargs: What `auto_class.from_pretrained` takes: dtype, device_map,
                attn_implementation, revision, config, num_hidden_layers and so on. Code of a
                repository runs only with `trust_remote_code=True`.

        Raises:
            ConfigError: `dump_config` is not a DumpConfig.
            ModelError: the model has code of its own, which is not trusted.
        """
        config = DumpConfig() if dump_config is None else _checked(dump_config)
        model = load(name_or_path, auto_class, **auto_model_kwargs)
        DumpSession(model, config, tokenizer=tokenizer)
        return model


def load(
    name_or_path: str | PathLike[str], auto_class: type[Any] | None = None, **options: Any
) -> PreTrainedModel:
    """Return a model without a session; code of its own gets the shims that it needs.

    Raises:
        ModelError: the model has code of its own, which is not trusted.
    """
    if auto_class is not None and not hasattr(auto_class, "_model_mapping"):
        return auto_class.from_pretrained(name_or_path, **options)  # type: ignore[no-any-return]
    config = read_config(name_or_path, options)
    loader = auto_class or pick_auto_class(name_or_path, {**options, "config": config})
    with shimmed(config) as finish:
        model = loader.from_pretrained(name_or_path, **{"trust_remote_code": False} | options)
        finish(model)
    return model  # type: ignore[no-any-return]


def register_hook(
    model: torch.nn.Module,
    config: DumpConfig,
    hook_type: Literal["dump_data"] = "dump_data",
    *,
    tokenizer: Tokenizer | None = None,
) -> DumpSession:
    """Dump any module from now on; returns the armed session, which is a context manager too.

    Args:
        model: The module whose forwards and `generate()` calls become runs.
        config: What to dump.
        hook_type: "dump_data", the only one there is.
        tokenizer: Kept with the dump, and used for the text of prompts and answers.

    Raises:
        ConfigError: another `hook_type`, or `config` is not a DumpConfig.
    """
    if hook_type != "dump_data":
        msg = f"hook_type must be 'dump_data', not {hook_type!r}."
        raise ConfigError(msg)
    return DumpSession(model, _checked(config), tokenizer=tokenizer)


def _checked(config: DumpConfig) -> DumpConfig:
    if not isinstance(config, DumpConfig):
        msg = f"dump_config must be a DumpConfig, not {type(config).__name__}."
        raise ConfigError(msg)
    return config


def pick_auto_class(name_or_path: str | PathLike[str], options: dict[str, Any]) -> type[Any]:
    """Return the Auto class for a model.

    It is the one that makes the very class the checkpoint was saved from, when the configuration
    names that; else causal language model, else sequence to sequence, else base model: the first
    that knows the configuration. An encoder-decoder is never loaded as a decoder alone.
    """
    config = read_config(name_or_path, options)
    saved = next(iter(getattr(config, "architectures", None) or ()), None)
    classes: list[Any] = [*_GENERATING, AutoModel, *_auto_classes()]
    remote = getattr(config, "auto_map", None) or {}
    for auto in classes:
        own = str(remote.get(auto.__name__)).rpartition(".")[2]
        if saved in (own, *_names(auto._model_mapping.get(type(config), None))):
            return cast("type[Any]", auto)
    general = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)
    for auto in reversed(general) if getattr(config, "is_encoder_decoder", False) else general:
        if type(config) in auto._model_mapping or auto.__name__ in remote:
            return auto
    return next((auto for auto in _auto_classes() if auto.__name__ in remote), AutoModel)


def read_config(name_or_path: str | PathLike[str], options: Mapping[str, Any]) -> PretrainedConfig:
    """Return the configuration that `from_pretrained` with these options reads.

    Raises:
        ModelError: it has code of its own, which is not trusted.
    """
    config = options.get("config")
    if isinstance(config, PretrainedConfig):
        return config
    hub = {k: v for k, v in options.items() if k in _HUB_OPTIONS}
    hub = {"trust_remote_code": False} | hub
    try:
        return AutoConfig.from_pretrained(config or name_or_path, **hub)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        if not hub["trust_remote_code"] and "trust_remote_code" in str(error):
            raise ModelError(_untrusted(config or name_or_path, hub)) from error
        base = _base_of_adapter(name_or_path, hub)
        if base is None:
            raise
        return read_config(base, {"trust_remote_code": hub["trust_remote_code"]})


def _base_of_adapter(name_or_path: str | PathLike[str], hub: dict[str, Any]) -> str | None:
    """Return the model that an adapter is for, None where there is no adapter."""
    kept = {k: v for k, v in hub.items() if k != "trust_remote_code"}
    found = find_adapter_config_file(str(name_or_path), **kept)
    facts = {} if found is None else json.loads(Path(found).read_text("utf-8"))
    base = facts.get("base_model_name_or_path")
    return None if base is None else str(base)


def _untrusted(name_or_path: str | PathLike[str], hub: dict[str, Any]) -> str:
    """Say which code would have to run."""
    kept = {k: v for k, v in hub.items() if k != "trust_remote_code"}
    parts, _ = PretrainedConfig.get_config_dict(name_or_path, **kept)
    code = ", ".join(f"{part} = {where}" for part, where in (parts.get("auto_map") or {}).items())
    return (
        f"{str(name_or_path)!r} has code of its own, which would have to run: {code}. Read it, and "
        "if you trust it, allow it with trust_remote_code=True (--trust-remote-code)."
    )


def _auto_classes() -> Iterator[type[Any]]:
    """Return every Auto class of transformers that makes models, also classifiers and detectors."""
    classes: Iterator[Any] = (v for v in vars(modeling_auto).values() if isinstance(v, type))
    return (c for c in classes if getattr(c, "_model_mapping", None) is not None)


def _names(classes: Any) -> list[str]:
    """Return the names of a mapping's entry: one class, several, or None."""
    found = classes if isinstance(classes, tuple | list) else [classes]
    return [cls.__name__ for cls in found if cls is not None]


def empty_model(name_or_path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """Return a model on the meta device: its modules and shapes, without reading a weight.

    Only the configuration is read, and downloaded from the hub if need be. `options` are those of
    `from_pretrained` that say where files lie, and `trust_remote_code`.
    """
    hub = {k: v for k, v in options.items() if k in _HUB_OPTIONS}
    config = read_config(name_or_path, hub)
    loader = pick_auto_class(name_or_path, {**hub, "config": config})
    trusted = {k: v for k, v in hub.items() if k == "trust_remote_code"}
    # Constructors that compute with numbers of their own, such as rates of dropout, need values.
    safe = getattr(initialization, "meta_device_safe_creation_ops", nullcontext)
    with shimmed(config) as finish, torch.device("meta"), safe():
        model = loader.from_config(config, **{"trust_remote_code": False} | trusted)
        finish(model)
    return model  # type: ignore[no-any-return]
