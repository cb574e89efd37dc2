"""Dumps of the demo model, plain or with a fault planted, for the tests of comparisons."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_dumper import DEMO_MODEL, DumpConfig, FollowTokens, open_dump, register_hook

PROMPTS = (
    "The licence applies to",
    "You may copy",
    "This program is free software: you can redistribute it",
)
TOKENS = 4


def load(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Load the demo model."""
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=dtype, **options)


def make_dump(
    path: Path,
    *,
    prompts: tuple[str, ...] = PROMPTS,
    batch: bool = False,
    model: Any = None,
    follow: Path | None = None,
    config: dict[str, Any] | None = None,
    **generate: Any,
) -> Path:
    """Dump one run per prompt, or one batch, left-padded, of all; return the path.

    `follow` is a dump of the same prompts whose tokens are generated again.
    """
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, padding_side="left")
    model = model or load()
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False} | generate
    followed = None if follow is None else _generated(follow)
    with register_hook(model, DumpConfig(path, "all", **(config or {})), tokenizer=tokenizer):
        for i, group in enumerate([prompts] if batch else [(p,) for p in prompts]):
            inputs = tokenizer(list(group), return_tensors="pt", padding=True)
            if followed is not None:
                options["logits_processor"] = [FollowTokens(followed[i])]
            model.generate(**inputs, **options)
    return path


def _generated(path: Path) -> list[list[list[int]]]:
    with open_dump(path) as dump:
        return [dump.run_info(run)["generated_ids"] for run in dump.runs()]


@contextmanager
def patched_forward(module: torch.nn.Module, wrap: Callable[..., Any]) -> Any:
    """Replace a module's forward by `wrap(original, *args, **kwargs)` while the block runs."""
    original = module.forward
    module.forward = lambda *args, **kwargs: wrap(original, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward
