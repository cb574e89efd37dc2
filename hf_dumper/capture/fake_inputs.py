"""Inputs of the right shapes and no values, for models on the meta device."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from hf_dumper.capture.inputs import parameter_names
from hf_dumper.errors import ModelError

_IMAGE, _CHANNELS = 224, 3
"""Size of an image for models that take any, and its channels."""

_SAMPLES, _FRAMES = 16_000, 200
"""Length of sound, and of its spectrum, for models that take any."""


def fake_inputs(model: torch.nn.Module, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return what a forward of the model takes, on the meta device.

    `tokens` is the length of texts; images and sound have the size that the configuration says.

    Raises:
        ModelError: the model takes something else.
    """
    names = parameter_names(model)
    config: Any = getattr(model, "config", None)
    main = str(getattr(model, "main_input_name", "input_ids"))
    make = _MAKERS.get(main)
    if make is None or main not in names:
        return _dummies(model, main)
    wanted = {main: make}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        wanted["decoder_input_ids"] = _ids
    if "pixel_values" in names and not _generates(model):  # text and images in one forward
        wanted["pixel_values"] = _images
    if main == "pixel_values" and "input_ids" in names:
        wanted["input_ids"] = _ids
    found = {name: maker(config, rows, tokens) for name, maker in wanted.items()}
    return {name: _typed(model, tensor) for name, tensor in found.items()}


def tower_inputs(model: torch.nn.Module, rows: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the methods that call the towers of a model alone, and what they take.

    Only a model that generates has any: the forward of another one calls its towers itself.
    """
    config: Any = getattr(model, "config", None)
    return {
        method: {name: _typed(model, make(config, rows, 0))}
        for method, (name, make) in _TOWERS.items()
        if _generates(model) and callable(getattr(model, method, None))
    }


def _typed(model: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of numbers in the model's type, and one of ids as it is."""
    dtype = getattr(model, "dtype", torch.float32)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _dummies(model: torch.nn.Module, main: str) -> dict[str, torch.Tensor]:
    """Return what transformers itself would try the model with."""
    given: Mapping[str, Any] = getattr(model, "dummy_inputs", None) or {}
    if main not in given:
        msg = f"What the model takes as {main!r} is not known"
        raise ModelError(msg)
    return {n: t.to("meta") for n, t in given.items() if isinstance(t, torch.Tensor)}


def _generates(model: Any) -> bool:
    claim = getattr(model, "can_generate", None)
    return bool(claim()) if callable(claim) else False


def _ids(_config: Any, rows: int, tokens: int) -> torch.Tensor:
    return torch.zeros(rows, tokens, dtype=torch.int64, device="meta")


def _images(config: Any, rows: int, _tokens: int) -> torch.Tensor:
    size = _asked(config, "image_size", _IMAGE)
    if isinstance(size, Mapping):
        size = size.get("height", _IMAGE), size.get("width", _IMAGE)
    height, width = size if isinstance(size, tuple | list) else (size, size)
    frames = _asked(config, "num_frames", None)
    film = [frames] if isinstance(frames, int) else []
    channels = _asked(config, "num_channels", _CHANNELS)
    return torch.zeros([rows, *film, channels, height, width], device="meta")


def _features(config: Any, rows: int, _tokens: int) -> torch.Tensor:
    bins, positions = (
        _asked(config, name, None) for name in ("num_mel_bins", "max_source_positions")
    )
    if bins and positions:  # whose encoder halves the length by its second convolution
        return torch.zeros(rows, bins, 2 * positions, device="meta")
    width = _asked(config, "input_feat_per_channel", None) or bins
    if not width:
        msg = "What the model takes as 'input_features' is not known"
        raise ModelError(msg)
    return torch.zeros(rows, _FRAMES, width, device="meta")


def _waves(config: Any, rows: int, _tokens: int) -> torch.Tensor:
    bins, length = (_asked(config, name, None) for name in ("num_mel_bins", "max_length"))
    shape = (rows, length, bins) if bins and length else (rows, _SAMPLES)
    return torch.zeros(shape, device="meta")


def _asked(config: Any, name: str, default: Any) -> Any:
    """Return a value of the configuration, or of its part about images or sound."""
    parts = (getattr(config, name, None) for name in ("vision_config", "audio_config", "encoder"))
    for part in (config, *parts):
        value = getattr(part, name, None)
        if value is not None:
            return value
    return default


_MAKERS: Final[Mapping[str, Callable[[Any, int, int], torch.Tensor]]] = {
    "input_ids": _ids,
    "pixel_values": _images,
    "input_features": _features,
    "input_values": _waves,
}

_TOWERS: Final = {
    "get_image_features": ("pixel_values", _images),
    "get_audio_features": ("input_features", _features),
}
