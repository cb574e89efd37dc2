"""Prompts through a dumped model, one run each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from hf_dumper.prompts import Prompt, encode

if TYPE_CHECKING:
    from hf_dumper.session import DumpSession


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What became of one prompt.

    `run` is the number of its run, None when it could not be dumped. `text` holds the new tokens
    only, special ones included, since they are in the dump too; None for a model that does not
    generate. `seconds` are those of the model, dumping included.
    """

    run: int | None
    prompt: Prompt
    text: str | None
    tokens: int
    seconds: float


OnToken = Callable[[int, int], None]
"""Is told the index of the prompt and how many tokens it has so far."""


def dump_prompts(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Iterable[Prompt],
    *,
    max_new_tokens: int,
    chat: bool = False,
    on_progress: OnToken | None = None,
    **generate_kwargs: Any,
) -> list[PromptResult]:
    """Generate from each prompt, one `generate()` and so one run of the model's dump each.

    A model that cannot generate runs one bare forward for each prompt instead.

    An error, be it of a prompt or of the model, ends the loop; the runs before it are on disk.
    """
    kwargs = {"max_new_tokens": max_new_tokens, **generate_kwargs}
    return list(
        each_prompt(model, tokenizer, prompts, chat=chat, on_progress=on_progress, **kwargs)
    )


def each_prompt(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Iterable[Prompt],
    *,
    chat: bool = False,
    on_progress: OnToken | None = None,
    **generate_kwargs: Any,
) -> Iterator[PromptResult]:
    """Do the same one prompt at a time: each result is yielded when its run is on disk."""
    session = cast("DumpSession", model.dump)
    for index, prompt in enumerate(prompts):
        inputs = {k: v.to(model.device) for k, v in encode(tokenizer, prompt, chat).items()}
        before = len(session.runs)
        start = perf_counter()
        ids = _run(model, inputs, generate_kwargs, _told(on_progress, index))
        seconds = perf_counter() - start
        runs = session.runs[before:]
        text = None if ids is None else tokenizer.decode(ids)
        tokens = 0 if ids is None else len(ids)
        yield PromptResult(runs[0] if runs else None, prompt, text, tokens, seconds)


def can_generate(model: torch.nn.Module) -> bool:
    """Tell whether a model has a head to generate with."""
    claim = getattr(model, "can_generate", None)
    return bool(claim()) if callable(claim) else False


def _run(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    generate_kwargs: dict[str, Any],
    on_token: Callable[[int], None] | None,
) -> torch.Tensor | None:
    """Return the ids [tokens] that were generated, None after a bare forward."""
    if not can_generate(model):
        with torch.no_grad():
            model(**inputs)
        return None
    kwargs = dict(generate_kwargs)
    if on_token is not None:
        given = kwargs.pop("stopping_criteria", None) or ()
        kwargs["stopping_criteria"] = StoppingCriteriaList([*given, _Counter(on_token)])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    ids = generate(**inputs, **kwargs)
    # A decoder's prompt is its own start token, not the encoder's input.
    is_pair = getattr(model.config, "is_encoder_decoder", False)
    return ids[0, 1 if is_pair else inputs["input_ids"].shape[1] :]


def _told(on_progress: OnToken | None, index: int) -> Callable[[int], None] | None:
    return None if on_progress is None else lambda tokens: on_progress(index, tokens)


class _Counter(StoppingCriteria):
    """Tells how many tokens there are so far; never stops."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._tokens = 0

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        self._tokens += 1
        self._on_token(self._tokens)
        rows = input_ids.shape[0]
        return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]
