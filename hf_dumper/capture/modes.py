"""Which ways of generating the clock can follow; the others are refused before the first token."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from hf_dumper.capture.generation import FollowTokens
from hf_dumper.capture.guard import GenerateCall
from hf_dumper.capture.lengths import LengthLimit, length_limit
from hf_dumper.capture.speculation import drafter_of
from hf_dumper.errors import CompiledModelError, UnsupportedGenerationError

_FOLLOWED = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_CACHES = (None, "dynamic", "hybrid")
"""Caches that grow with the tokens; "hybrid" means a dynamic one since transformers 4.56."""

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


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What a `generate()` call will do: its end-of-sequence ids, its bound and its options.

    `limit` bounds its length; `followed` says where the tokens come from when they are given to
    it, else it is None. `drafter` says where drafts come from, None without speculation.
    """

    eos: frozenset[int]
    max_new_tokens: int | None
    options: Mapping[str, Any]
    limit: LengthLimit
    followed: Mapping[str, Any] | None = None
    drafter: str | None = None


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
    if config.guidance_scale not in (None, 1, 1.0):
        _refuse("guidance_scale", "a second forward runs inside a logits processor")
    if config.cache_implementation not in _CACHES:
        _refuse(f"cache_implementation={config.cache_implementation!r}", "it is not followed yet")
    cache = values.get("past_key_values")
    if "Static" in type(cache).__name__:
        _refuse(f"a {type(cache).__name__}", "its positions are not followed yet")
    options, given = config.to_diff_dict(), values.get("logits_processor") or ()
    followed = next((dict(p.source) for p in given if isinstance(p, FollowTokens)), None)
    limit = length_limit(call.model, values, config)
    return GenerationPlan(_eos(config), config.max_new_tokens, options, limit, followed, drafter)


def disable_compilation(call: GenerateCall) -> None:
    """Keep `generate()` from compiling the model by itself: hooks would be skipped silently."""
    config = call.values.get("generation_config")
    if config is None:
        call.values["disable_compile"] = True
    else:
        call.values["generation_config"] = config = copy.deepcopy(config)
        config.disable_compile = True


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise when the model, or a layer of it, is compiled already.

    Raises:
        CompiledModelError: torch skips hooks that come after the first compiled call.
    """
    for name, module in model.named_modules():
        if _is_compiled(module):
            msg = (
                f"{name or 'The model'!r} is compiled ({type(module).__name__}); torch would skip "
                "the hooks silently. Dump the model before torch.compile()."
            )
            raise CompiledModelError(msg)


def _is_compiled(module: torch.nn.Module) -> bool:
    """Tell the three ways apart: module.compile(), torch.compile(module), a compiled forward."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    forward = module.__dict__.get("forward")
    compiled = getattr(forward, "_torchdynamo_orig_callable", None) is not None
    return compiled or type(module).__name__ == "OptimizedModule"


def _drafter(config: GenerationConfig, values: Mapping[str, Any]) -> str:
    """Return where drafts come from."""
    drafter = drafter_of(config, values)
    if drafter is None:
        _refuse("this kind of speculative decoding", "how it drafts is not known")
    if any(isinstance(p, FollowTokens) for p in values.get("logits_processor") or ()):
        _refuse("FollowTokens under speculative decoding", "it cannot tell a draft from a token")
    return cast("str", drafter)


def _refuse(what: str, why: str) -> None:
    msg = f"Cannot follow {what}: {why}. Use greedy search or sampling with the default cache."
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
