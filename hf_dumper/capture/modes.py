"""Which ways of generating the clock can follow; the others are refused before the first token."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from transformers import GenerationConfig
from transformers.generation.configuration_utils import (
    ALL_CACHE_IMPLEMENTATIONS,
    GenerationMode,
)

from hf_dumper.capture.calls import GenerateCall
from hf_dumper.capture.generation import FollowTokens
from hf_dumper.capture.lengths import LengthLimit, length_limit
from hf_dumper.capture.speculation import drafter_of
from hf_dumper.errors import UnsupportedGenerationError

_FOLLOWED = (
    *(GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
    *(GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE),
)
_CACHES = (None, *ALL_CACHE_IMPLEMENTATIONS)
"""Every cache whose rows are those of the forward; a paged one packs several requests into one."""

_EXPLICIT = (
    "inputs",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "generation_config",
)
"""Parameters of `generate()` that are no generation options."""

AUTO_COMPILE_OFF = "disabled by hf_dumper"

_MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What a `generate()` call will do: its end-of-sequence ids, its bound and its options.

    `limit` bounds its length; `followed` says where the tokens come from when they are given to
    it, else it is None. `drafter` says where drafts come from, None without speculation. `beams` is
    the number of rows that a prompt has whose rows change places, 1 where they do not.
    `makes_masks` tells that masks of four axes are none of the user's. `auto_compile` says who
    keeps `generate()` from compiling.
    """

    eos: frozenset[int]
    max_new_tokens: int | None
    options: Mapping[str, Any]
    limit: LengthLimit
    followed: Mapping[str, Any] | None = None
    drafter: str | None = None
    beams: int = 1
    makes_masks: bool = True
    auto_compile: str = AUTO_COMPILE_OFF


def plan_generation(call: GenerateCall) -> GenerationPlan:
    """Read what the call is going to do.

    Raises:
        UnsupportedGenerationError: a mode whose token index or positions the clock cannot know.
    """
    values = call.values
    if values.get("custom_generate") is not None:
        _refuse("custom_generate", "it may ignore the callbacks that tell the token index")
    config = _effective_config(call)
    mode = config.get_generation_mode(values.get("assistant_model"))
    drafter = _drafter(config, values) if mode == GenerationMode.ASSISTED_GENERATION else None
    if mode not in _FOLLOWED and drafter is None:
        _refuse(str(mode.value).replace("_", " "), "its token index is not followed yet")
    if config.cache_implementation not in _CACHES:
        _refuse(f"cache_implementation={config.cache_implementation!r}", "it is not followed yet")
    options, given = config.to_diff_dict(), values.get("logits_processor") or ()
    followed = next((dict(p.source) for p in given if isinstance(p, FollowTokens)), None)
    return GenerationPlan(
        _eos(config),
        config.max_new_tokens,
        options,
        length_limit(call.model, values, config),
        followed,
        drafter,
        config.num_beams or 1,
        all(getattr(values.get(name), "ndim", 2) == 2 for name in _MASKS),
        "disabled by the caller" if config.disable_compile else AUTO_COMPILE_OFF,
    )


def disable_compilation(call: GenerateCall) -> None:
    """Keep `generate()` from compiling the model by itself: hooks would be skipped silently."""
    config = call.values.get("generation_config")
    if config is None:
        call.values["disable_compile"] = True
    else:
        call.values["generation_config"] = config = copy.deepcopy(config)
        config.disable_compile = True


def _drafter(config: GenerationConfig, values: Mapping[str, Any]) -> str:
    """Return where drafts come from."""
    drafter = drafter_of(config, values)
    if drafter is None:
        _refuse("this kind of speculative decoding", "how it drafts is not known")
    if any(isinstance(p, FollowTokens) for p in values.get("logits_processor") or ()):
        _refuse("FollowTokens under speculative decoding", "it cannot tell a draft from a token")
    return cast("str", drafter)


def _refuse(what: str, why: str) -> None:
    msg = f"Cannot follow {what}: {why}. Use greedy search, sampling or beams."
    raise UnsupportedGenerationError(msg)


def _effective_config(call: GenerateCall) -> GenerationConfig:
    options = {k: v for k, v in call.values.items() if k not in _EXPLICIT}
    model: Any = call.model
    config, _ = model._prepare_generation_config(call.values.get("generation_config"), **options)
    return cast("GenerationConfig", config)


def _eos(config: GenerationConfig) -> frozenset[int]:
    ids = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else [int(i) for i in ids])
