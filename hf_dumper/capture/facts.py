"""JSON-ready facts about a run: what went in, under which regime, what came out."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import torch
from transformers.generation import utils as generation_utils

from hf_dumper.capture.inputs import RootInputs
from hf_dumper.capture.masks import real_columns

logger = logging.getLogger(__name__)

_AS_RECORDED = ("attention_mask", "position_ids")
"""Inputs whose values, where a mask has more than two axes, are among the records only."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer: text for ids, and a folder to keep itself in."""

    def batch_decode(self, sequences: Any) -> list[str]:
        """Return the text of each row of ids."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write the tokenizer's files."""


def prompt_facts(values: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Describe the inputs of a `generate()` call: ids and mask as lists, text if possible."""
    ids, mask = values.get("inputs"), values.get("attention_mask")
    if ids is None:
        ids = values.get("input_ids")
    facts: dict[str, Any] = {"input_ids": None, "attention_mask": None, "text": None}
    if _is_table(ids) and not ids.is_floating_point():
        facts["input_ids"] = ids.tolist()
        facts["text"] = decode(tokenizer, facts["input_ids"])
    if _is_table(ids) and isinstance(mask, torch.Tensor) and mask.ndim > 2:
        facts["as_recorded"] = [n for n in _AS_RECORDED if values.get(n) is not None]
        mask = real_columns(mask, ids.shape[1])
    if _is_table(mask):
        facts["attention_mask"] = mask.to(torch.int8).tolist()
    return facts


def forward_facts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the inputs of a bare forward like those of `generate()`."""
    first = args[0] if args else None
    values = {"input_ids": first, **kwargs} if isinstance(first, torch.Tensor) else kwargs
    return prompt_facts(values, None)


def input_facts(model: torch.nn.Module, inputs: RootInputs) -> dict[str, Any]:
    """Describe under which conditions the numbers of this run are exactly these."""
    config = getattr(model, "config", None)
    return {
        "rows": inputs.rows,
        "columns": inputs.cols,
        "padded": bool(inputs.mask is not None and (inputs.mask == 0).any()),
        "cache": inputs.cache,
        "logits_to_keep": inputs.keep,
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "training": model.training,
        "grad": torch.is_grad_enabled(),
    }


def result_facts(result: Any, prompt_length: int | None) -> dict[str, Any]:
    """Describe what `generate()` returned: the new ids of each row, after the prompt."""
    sequences = getattr(result, "sequences", result)
    if not isinstance(sequences, torch.Tensor) or sequences.ndim != 2 or prompt_length is None:
        return {"generated_ids": None, "generated_tokens": None}
    new = sequences[:, prompt_length:]
    return {"generated_ids": new.tolist(), "generated_tokens": new.shape[1]}


def is_stop_deferred(result: Any) -> bool:
    """Tell whether `generate()` may have run one forward more than it returned tokens of."""
    sequences = getattr(result, "sequences", result)
    deferred = getattr(generation_utils, "DeferredStopCheck", None)  # not in every release
    if deferred is None or not isinstance(sequences, torch.Tensor):
        return False
    return bool(deferred.is_supported(sequences.device, None, False, is_assistant=False))


def decode(tokenizer: Tokenizer | None, ids: list[list[int]] | None) -> list[str] | None:
    """Return the text of each row, None without a tokenizer or ids, or if it cannot decode them."""
    if tokenizer is None or ids is None:
        return None
    try:
        return list(tokenizer.batch_decode(ids))
    except Exception:
        logger.exception("The tokenizer cannot decode the ids of a run; its text is left out")
        return None


def _is_table(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_meta
