"""What a dump is a dump of: the model, its weights, and what they ran on."""

import ctypes
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from xxhash import xxh3_64_hexdigest

from hf_dumper.capture.adapters import adapter_facts
from hf_dumper.capture.naming import plain_name, without_wrapper
from hf_dumper.capture.quantised import packed, packed_objects, parts, quantised_kinds
from hf_dumper.capture.seeding import determinism_facts
from hf_dumper.core.digests import json_digest
from hf_dumper.core.shims import shims_of

_PACKAGES = (
    "hf_dumper",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "torch_npu",
)
_NOT_IDENTITY = ("dump_path", "overwrite", "max_bytes", "on_error", "durable", "hash_weights")
_NOT_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def describe_model(model: torch.nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a dump of `model` made with the given DumpConfig values.

    `identity` holds what must be equal for another session to add runs to the same dump.
    """
    config = _config(model)
    weights = _weights(model) if options["hash_weights"] else None
    adapters = adapter_facts(model)
    return {
        "identity": {
            "class": type(model).__name__,
            "config_hash": json_digest(config) if config is not None else None,
            "weights_hash": json_digest(weights) if weights is not None else None,
            "dtype": str(_dtype(model)),
            "attn_implementation": _implementation(model, "_attn_implementation"),
            "experts_implementation": _implementation(model, "_experts_implementation"),
            "device_map": _placement(model),
            "dump_config": {k: v for k, v in options.items() if k not in _NOT_IDENTITY},
            **({} if adapters is None else {"adapters": adapters}),
        },
        "model": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "config": config,
        "quantised": quantised_kinds(model),
        "shims": shims_of(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": weights,
        "seed": options["seed"],
        "determinism": determinism_facts(),
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def module_tree(model: torch.nn.Module, name: str = "root") -> dict[str, Any]:
    """Return the modules as nested {"name", "type", "children"}; names are full dotted paths."""
    prefix = "" if name == "root" else f"{name}."
    return {
        "name": name,
        "type": type(model).__name__,
        "children": [
            module_tree(without_wrapper(child), prefix + key)
            for key, child in model.named_children()
        ],
    }


def fingerprint(model: torch.nn.Module) -> tuple[object, ...]:
    """Return a cheap value that changes when parameters are replaced, moved or written in place."""
    plain = (part for name, p in model.named_parameters() for part in parts(name, p))
    tensors = (
        (name, p.data_ptr() if not p.is_meta else 0, p.dtype, _version(p)) for name, p in plain
    )
    return (*tensors, *packed_objects(model), str(adapter_facts(model)))


def _placement(model: torch.nn.Module) -> dict[str, str] | None:
    """Return the device of each part; of a model on one device without that device's index.

    Each process of a launch has a device of its own, and all of them dump the same thing.
    """
    placement = getattr(model, "hf_device_map", None)
    if not placement:
        return None
    if set(placement) == {""}:
        return {"": _kind_of_device(placement[""])}
    return {name: str(device) for name, device in placement.items()}


def _kind_of_device(device: int | str | torch.device) -> str:
    return torch.device(device).type if device != "disk" else "disk"


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _weights(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Hash every parameter and persistent buffer; a value on another device is copied to be read.

    An offloaded weight has no bytes here; its hash is None, never a guess.
    """
    return {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "hash": _hash_tensor(tensor),
        }
        for name, tensor in _tensors(model)
    }


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(value, torch.Tensor):
            yield from parts(plain_name(name), value)
    for one in packed(model):
        yield one.name, one.form if one.reason else one.load()


def _hash_tensor(tensor: torch.Tensor) -> str | None:
    if tensor.is_meta or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if tensor.layout is not torch.strided:
        return None
    plain = tensor.detach().cpu().contiguous()
    if not plain.nbytes:
        return xxh3_64_hexdigest(b"")
    return xxh3_64_hexdigest((ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()))


def _config(model: torch.nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    plain = json.loads(json.dumps(config.to_dict(), default=str, sort_keys=True))
    return {k: v for k, v in plain.items() if k not in _NOT_CONFIG}


def _dtype(model: torch.nn.Module) -> torch.dtype | None:
    floating = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return floating[0] if floating else None


def _implementation(model: torch.nn.Module, name: str) -> str | None:
    return getattr(getattr(model, "config", None), name, None)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
