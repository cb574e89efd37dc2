"""Every way of generating that is followed, and what an independent witness says of it.

The witness knows nothing of the package: a hook and a logits processor of its own stand inside the
plain `generate()`, and plain forwards replay what they saw.
"""

from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from hf_dumper import DEMO_MODEL

PROMPTS = ("If you modify the Program, you must", "The license")
NEW = 6
OUTPUTS = {
    "max_new_tokens": NEW,
    "return_dict_in_generate": True,
    "output_logits": True,
    "do_sample": False,
    "eos_token_id": None,
}


class Mode(NamedTuple):
    """Options of `generate()`; `greedy` tells that its tokens are those of a greedy run.

    `replayed` tells that a plain forward without cache gives the same logits; a cache that rounds
    keys and values does not.
    """

    options: dict[str, Any]
    greedy: bool = False
    replayed: bool = True


def quantised(backend: str, **options: Any) -> dict[str, Any]:
    config = {"backend": backend, **options}
    return {"cache_implementation": "quantized", "cache_config": config}


GROUPS = {"q_group_size": 16, "residual_length": 4}

MODES = {
    "greedy": Mode({}, greedy=True),
    "no cache": Mode({"use_cache": False}, greedy=True),
    "chunked prefill": Mode({"prefill_chunk_size": 3}, greedy=True),
    "static cache": Mode({"cache_implementation": "static"}, greedy=True),
    "static cache, chunked prefill": Mode(
        {"cache_implementation": "static", "prefill_chunk_size": 3}, greedy=True
    ),
    "quantised cache, fp8": Mode(quantised("fp8"), replayed=False),
    "quantised cache, quanto": Mode(quantised("quanto", **GROUPS), replayed=False),
    "sampling": Mode({"do_sample": True, "top_k": 20}),
    "several sequences": Mode({"do_sample": True, "num_return_sequences": 3}),
    "beams": Mode({"num_beams": 3, "num_return_sequences": 2}),
    "one beam": Mode({"num_beams": 1}, greedy=True),
    "beams, no cache": Mode({"num_beams": 3, "use_cache": False}),
    "beams, static cache": Mode({"num_beams": 3, "cache_implementation": "static"}),
    "beams, quantised cache": Mode({"num_beams": 3, **quantised("fp8")}, replayed=False),
    "sampled beams": Mode({"num_beams": 3, "do_sample": True, "num_return_sequences": 3}),
    "guidance": Mode({"guidance_scale": 1.5}),
    "guidance, no cache": Mode({"guidance_scale": 1.5, "use_cache": False}),
    "guidance, negative prompt": Mode({"guidance_scale": 1.5, "negative_prompt_ids": "prompt"}),
    "guidance and beams": Mode({"guidance_scale": 1.5, "num_beams": 2}),
    "a guidance of one": Mode({"guidance_scale": 1.0}, greedy=True),
}


class Seen(NamedTuple):
    """One forward as the witness saw it: its ids, by position or by keyword, and its mask.

    `sequences` are the ids that it continued, per row, as `generate()` shows them to processors
    after it; None where none was shown.
    """

    ids: torch.Tensor
    beside: bool
    token: int


class Witness(LogitsProcessor):
    """Sees forwards and sequences of a plain model."""

    def __init__(self) -> None:
        self.forwards: list[Seen] = []
        self.sequences: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.sequences.append(input_ids.clone())
        return scores

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a forward: guidance passes its ids by position, `generate()` by keyword."""
        ids = args[0] if args else kwargs["input_ids"]
        self.forwards.append(Seen(ids.clone(), bool(args), len(self.sequences)))


def demo() -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the embedded model in float32 and two prompts of unequal length, padded left."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, padding_side="left")
    return model, dict(tokenizer(list(PROMPTS), return_tensors="pt", padding=True))


def generate(model: Any, inputs: dict[str, Any], mode: Mode, **more: Any) -> Any:
    """Generate with one seed; `more` overrides."""
    torch.manual_seed(11)
    options = OUTPUTS | mode.options | more
    ids = inputs["input_ids"]
    if options.get("negative_prompt_ids") == "prompt":
        options["negative_prompt_ids"] = ids[:, -2:].flip(1)
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**kept, **options)


def witnessed(model: Any, inputs: dict[str, Any], mode: Mode) -> tuple[Any, Witness]:
    """Generate without the package, with a witness."""
    witness = Witness()
    with model.register_forward_pre_hook(witness.before, with_kwargs=True):
        result = generate(model, inputs, mode, logits_processor=[witness])
    return result, witness
