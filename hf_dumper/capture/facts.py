"""JSON-ready facts about a run: what went in, under which regime, what came out."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from hf_dumper.capture.inputs import RootInputs


class Tokenizer(Protocol):
    """What is asked of a tokenizer: text for ids, and a folder to keep itself in."""

    def batch_decode(self, sequences: Any) -> list[str]:
        """Return the text of each row of ids."""

    def save_pretrained(self, save_directory: str) -> Any:
        """Write the tokenizer's files."""


def prompt_facts(values: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Describe the inputs of a `generate()` call: ids and mask as lists, text if possible."""
    ids = values.get("inputs", values.get("input_ids"))
    mask = values.get("attention_mask")
    facts: dict[str, Any] = {"input_ids": None, "attention_mask": None, "text": None}
    if isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        facts["input_ids"] = ids.tolist()
        facts["text"] = decode(tokenizer, facts["input_ids"])
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
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


def decode(tokenizer: Tokenizer | None, ids: list[list[int]] | None) -> list[str] | None:
    """Return the text of each row, None without a tokenizer or ids."""
    if tokenizer is None or ids is None:
        return None
    return list(tokenizer.batch_decode(ids))
