"""Prompts from a dump, with the tokens that were generated from them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc
import torch

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import ROOT
from hf_dumper.errors import DumpWarning, KeyNotFoundError, PromptError
from hf_dumper.prompts.prompt import Prompt

_REPEATED: Final = (
    "eos_token_id",
    "pad_token_id",
    "num_beams",
    "use_cache",
    "prefill_chunk_size",
    "min_length",
    "min_new_tokens",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
)
"""Generation options that shape the scores, the forwards, or where a row ends."""

_GIVEN: Final = ("input_ids", "attention_mask")
"""Inputs of the root module that a run's facts hold."""

_MADE: Final = (
    *_GIVEN,
    "position_ids",
    "cache_position",
    "past_key_values",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_attention_mask",
)
"""Inputs of the root module that `generate()` makes of those."""

_DRAFTING: Final = ("prompt_lookup_num_tokens", "assistant_early_exit")
"""Options of speculative decoding, which changes no token; tokens are followed one at a time."""

_NEUTRAL: Final = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Sampling that changes no score."""


@dataclass(frozen=True, slots=True)
class GoldenRun:
    """One run of a golden dump, ready to be repeated.

    `inputs` are int64 [rows, length], left padding included. `ids` are the generated ids
    [rows, tokens], also of rows that ended before, None after a bare forward; several rows may
    belong to one row of the prompt. `options` are what `generate()`, or the forward, takes besides.
    """

    run: int
    prompt: Prompt
    inputs: Mapping[str, torch.Tensor]
    ids: torch.Tensor | None
    options: Mapping[str, Any]

    @property
    def largest_id(self) -> int:
        """The largest token id of the prompt and what follows."""
        prompt = int(self.inputs["input_ids"].max())
        return prompt if self.ids is None else max(prompt, int(self.ids.max()))


def golden_runs(golden: DumpReader) -> list[GoldenRun]:
    """Return the runs that can be followed, in order; each other one is a warning that says why.

    Raises:
        PromptError: none can be followed.
    """
    found, reasons = [], []
    for run in golden.runs():
        try:
            found.append(golden_run(golden, run))
        except PromptError as error:
            reasons.append(str(error))
    if not found:
        raise PromptError(reasons[0] if reasons else f"'{golden.path}' has no runs to follow.")
    for reason in reasons:
        warnings.warn(reason, DumpWarning, stacklevel=2)
    return found


def golden_run(golden: DumpReader, run: int) -> GoldenRun:
    """Return what is needed to repeat one run.

    Raises:
        PromptError: the dump does not have it; one line that says what is missing.
    """
    info = golden.run_info(run)
    facts = info.get("prompt") or {}
    where = f"Run {run} of '{golden.path}' cannot be followed"
    reason = _why_not(golden, run, info)
    if reason is not None:
        msg = f"{where}: {reason}."
        raise PromptError(msg)
    text = next(iter(facts.get("text") or ()), None)
    shown = text if text is not None else " ".join(map(str, facts["input_ids"][0]))
    inputs = {n: torch.tensor(facts[n]) for n in _GIVEN if facts.get(n) is not None}
    inputs = {n: tensor.to(torch.int64) for n, tensor in inputs.items()}
    inputs |= {name: _recorded(golden, run, name) for name in facts.get("as_recorded", ())}
    prompt = Prompt(str(run), text=shown)
    if info.get("kind") == "forward":
        keep = (info.get("inputs") or {}).get("logits_to_keep") or 0
        return GoldenRun(run, prompt, inputs, None, {"logits_to_keep": keep} if keep else {})
    ids = torch.tensor(info["generated_ids"], dtype=torch.int64)
    return GoldenRun(run, prompt, inputs, ids, _options(info, len(facts["input_ids"])))


def _recorded(golden: DumpReader, run: int, name: str) -> torch.Tensor:
    """Return what the outermost module was given in the prefill."""
    try:
        return golden.load(ROOT, f"input.{name}", 0, run=run, forward=0)
    except KeyNotFoundError as error:
        why = f"its {name}, of more axes than usual, is not among its records"
        msg = f"Run {run} of '{golden.path}' cannot be followed: {why}."
        raise PromptError(msg) from error


def _why_not(golden: DumpReader, run: int, info: Mapping[str, Any]) -> str | None:
    is_forward = info.get("kind") == "forward"
    ids = (info.get("prompt") or {}).get("input_ids")
    if info.get("complete") is not True:
        return f"it is incomplete ({info.get('incomplete') or 'it did not end'})"
    if not ids or not ids[0]:
        return "it holds no token ids of a prompt (inputs_embeds, images or sound)"
    foreign = sorted(_root_inputs(golden, run) - set(_GIVEN if is_forward else _MADE))
    if foreign:
        return f"the model was given {', '.join(foreign)} as well, which the run's facts lack"
    rows = info.get("generated_ids")
    if not is_forward and (not rows or not rows[0] or len(rows) % len(ids)):
        return "it holds no generated ids"
    return None


def _root_inputs(golden: DumpReader, run: int) -> set[str]:
    """Return the names of the tensors that the outermost module was given at first."""
    table = golden.index(run)
    for column, value in (("module", ROOT), ("token", 0)):
        table = table.filter(pc.equal(table.column(column), value))
    params = pc.unique(table.column("param")).to_pylist()
    return {name.partition(".")[0] for name in params if name}


def _options(info: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the golden's options; what it had none of is None, whatever the model's default is."""
    made: Mapping[str, Any] = info.get("generation_config") or {}
    options = {name: made[name] for name in _REPEATED if name in made}
    options |= {name: made.get(name) for name in ("eos_token_id", "pad_token_id")}
    options |= dict.fromkeys(_DRAFTING)
    several = len(info["generated_ids"]) // rows
    if several > 1:  # generate() repeats rows only when it samples: from the one token it is given
        options |= {"num_return_sequences": several, **_NEUTRAL}
    else:
        options["do_sample"] = False
    return options | {"max_new_tokens": len(info["generated_ids"][0])}
