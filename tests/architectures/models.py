"""Small random models of every type in transformers' auto mappings, and what to run them with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto as auto

from tests.architectures.overrides import GIVEN, TOO_LARGE
from tests.architectures.shrink import shrunk

FAMILIES = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image-text": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "speech": auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "encoder": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
"""Class names by type; a class that is in several is taken once, in the first."""

PAD, PROMPT, NEW, CHUNK = 2, 7, 3, 3
IDS = torch.randint(5, 78, (2, PROMPT), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0] * PAD + [1] * (PROMPT - PAD), [1] * PROMPT])


class NotBuilt(Exception):
    """A model that cannot be made small from its configuration, and why."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One class of transformers, as the auto mapping of a family names it."""

    family: str
    type: str
    name: str


def architectures() -> Iterator[Architecture]:
    """Yield every class once."""
    seen = set()
    for family, names in FAMILIES.items():
        for kind, given in names.items():
            name = given if isinstance(given, str) else given[0]
            if (kind, name) not in seen:
                seen.add((kind, name))
                yield Architecture(family, kind, name)


def build(architecture: Architecture) -> nn.Module:
    """Return a small model with noise in every parameter, that generates as long as it is told.

    Norms of ones and biases of zeros would hide mistakes.

    Raises:
        NotBuilt: with what transformers says.
    """
    if architecture.type in TOO_LARGE:
        raise NotBuilt(TOO_LARGE[architecture.type])
    given = GIVEN.get(architecture.type, {})
    try:
        cls = getattr(transformers, architecture.name)
        config = shrunk(cls.config_class(), given, {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = cls(config)
    except Exception as error:  # whatever a configuration lacks
        raise NotBuilt(_told(error)) from error
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.eos_token_id, generation.pad_token_id, generation.num_beams = None, 0, 1
        if generation.decoder_start_token_id is None:
            generation.decoder_start_token_id = 0
    return model.eval()


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is run with: arguments for `generate()`, or for its forward.

    `note` tells what the arguments leave out.
    """

    arguments: dict[str, Any]
    generates: bool
    note: str = ""

    def __call__(self, model: nn.Module, **options: Any) -> Any:
        """Run the model."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if not self.generates:
                return model(**self.arguments)
            lengths = {"max_new_tokens": NEW, "do_sample": False}
            kept = {"return_dict_in_generate": True, "output_logits": True}
            return model.generate(**self.arguments | lengths | kept | options)


def text(ids: torch.Tensor = IDS, mask: torch.Tensor = LEFT, **others: Any) -> dict[str, Any]:
    """Return a prompt [rows, columns], 0 where it is padded."""
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, **others}


def find_task(architecture: Architecture, model: nn.Module) -> tuple[Task, Any]:
    """Return the first task that the plain model can do, and what it gave.

    Raises:
        NotBuilt: the plain model can do none of them.
    """
    reasons: list[str] = []
    for task in _tasks(architecture, model):
        try:
            task(model)  # once before: some models keep what they computed
            return task, task(model)
        except Exception as error:  # other inputs than these
            reasons.append(_told(error))
    raise NotBuilt(reasons[0] if reasons else "no inputs are known")


def _tasks(architecture: Architecture, model: nn.Module) -> Iterator[Task]:
    prompt = text()
    config: Any = model.config
    if architecture.family == "encoder":
        yield Task(text(mask=LEFT.flip(1)), generates=False)
        return
    if architecture.family == "image":
        yield from (Task({"pixel_values": p}, generates=False) for p in _pixels(config))
        return
    if architecture.family == "image-text":
        yield from _looking(model)
    if architecture.family == "speech":
        yield from _listening(model)
    if config.is_encoder_decoder:
        yield Task(text(mask=LEFT.flip(1)), generates=True)
        yield Task(text(mask=LEFT.flip(1)) | {"decoder_input_ids": IDS[:, :3]}, generates=False)
    without = {"image-text": "without an image", "speech": "without sound"}
    note = without.get(architecture.family, "")
    yield Task(prompt, generates=True, note=note)
    yield Task(prompt, generates=False, note=", ".join(filter(None, [note, "a bare forward"])))


def _pixels(config: Any) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (getattr(c, "image_size", None) for c in (config, getattr(config, "vision_config", 0)))
    for size in dict.fromkeys([*(s for s in sizes if isinstance(s, int)), 16, 32, 64]):
        yield torch.randn(1, 3, size, size, generator=generator)


def _looking(model: nn.Module) -> Iterator[Task]:
    """Yield prompts of one row with as many image tokens as the vision tower makes of an image."""
    config: Any = model.config
    yield from _asking(config)
    names = ("image_token_id", "image_token_index")
    token = next((found for n in names if (found := getattr(config, n, None))), None)
    for image in _images(config):
        if not token or not hasattr(model, "get_image_features"):
            yield _with_image(IDS[1:], image)
            continue
        try:
            with torch.no_grad():
                count = _count_features(model.get_image_features(**image), config)
        except Exception:  # images of another layout
            continue
        ids = torch.cat([IDS[1:, :3], torch.full((1, count), token), IDS[1:, 3:]], dim=1)
        yield _with_image(ids, image, mm_token_type_ids=(ids == token).int())
        yield _with_image(ids, image)


def _asking(config: Any) -> Iterator[Task]:
    """Yield prompts of models that ask an image a fixed number of questions."""
    count = getattr(config, "num_query_tokens", None) or getattr(config, "latent_query_num", None)
    if not isinstance(count, int):
        return
    places = torch.arange(3 + count).ge(3)[None]
    places = torch.cat([places, torch.zeros(1, PROMPT - 3, dtype=torch.bool)], dim=1)
    ids = torch.cat([IDS[1:, :3], torch.full((1, count), 90), IDS[1:, 3:]], dim=1)
    question = {"qformer_input_ids": IDS[1:], "qformer_attention_mask": torch.ones_like(IDS[1:])}
    for pixels in _pixels(config):
        yield _with_image(ids, {"pixel_values": pixels}, **question)
        yield _with_image(ids, {"pixel_values": pixels[:, None]}, **question)
        yield _with_image(ids, {"pixel_values": pixels})
        yield _with_image(ids, {"pixel_values": pixels}, image_embeds_position_mask=places.long())


def _with_image(ids: torch.Tensor, image: dict[str, Any], **others: Any) -> Task:
    arguments = text(ids, torch.ones_like(ids), **image, **others)
    return Task(arguments, generates=True, note="one row with an image")


def _images(config: Any) -> Iterator[dict[str, Any]]:
    vision = getattr(config, "vision_config", None)
    for pixels in _pixels(config):
        yield {"pixel_values": pixels}
        yield {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[-2:]])}
    patch, frames = getattr(vision, "patch_size", None), getattr(vision, "temporal_patch_size", 1)
    if isinstance(patch, int) and isinstance(frames, int):
        generator = torch.Generator().manual_seed(0)
        patches = torch.randn(16, 3 * frames * patch * patch, generator=generator)
        yield {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]])}


def _count_features(features: Any, config: Any) -> int:
    found = getattr(features, "pooler_output", features)
    parts = found if isinstance(found, tuple | list) else [found]
    width = parts[0].shape[-1]
    return sum(part.numel() // width for part in parts)


def _listening(model: nn.Module) -> Iterator[Task]:
    """Yield sounds as features [rows, channels, frames], the other way round, and as samples."""
    generator = torch.Generator().manual_seed(0)
    name = getattr(model, "main_input_name", "input_features")
    channels = [getattr(model.config, n, None) for n in ("num_mel_bins", "input_feat_per_channel")]
    encoder = getattr(model.config, "encoder_config", None) or model.config
    channels.append(getattr(encoder, "num_mel_bins", None))
    widths = [n for n in dict.fromkeys(channels) if isinstance(n, int)] + [8, 160]
    for width in widths:
        for frames in (2 * getattr(model.config, "max_source_positions", 32), 64):
            sound = torch.randn(2, width, frames, generator=generator)
            yield Task({name: sound}, generates=True)
            yield Task({name: sound.transpose(1, 2)}, generates=True)
    yield Task({name: torch.randn(2, 4000, generator=generator)}, generates=True)


def prepared(architecture: Architecture) -> tuple[nn.Module, Task, Any]:
    """Build a model and find what it can do."""
    model = build(architecture)
    return model, *find_task(architecture, model)


def _told(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:150]
