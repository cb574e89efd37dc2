"""Prompts through a dumped model, one run each; or the runs of a golden dump once more."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_dumper.capture.generation import FollowRun
from hf_dumper.core.protocols import DumpReader
from hf_dumper.errors import CaptureError, PromptError
from hf_dumper.prompts import GoldenRun, Prompt, encode, golden_runs

if TYPE_CHECKING:
    from hf_dumper.session import DumpSession


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What became of one prompt.

    `run` is the number of its run, None when it could not be dumped. `text` holds the new tokens of
    its first row only, special ones included, since they are in the dump too; None for a model that
    does not generate. `seconds` are those of the whole run, dumping included. `row` is the prompt's
    row in its data set, None for a prompt that is from none.
    """

    run: int | None
    prompt: Prompt
    text: str | None
    tokens: int
    seconds: float
    row: int | None = None


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
    for index, prompt in enumerate(prompts):
        inputs = encode(tokenizer, prompt, chat)
        on_token = _told(on_progress, index)
        run = partial(generate_or_forward, model, inputs, generate_kwargs, on_token)
        yield _timed(model, tokenizer, prompt, run)


def dump_golden(
    model: PreTrainedModel,
    tokenizer: Any,
    golden: DumpReader,
    *,
    on_progress: OnToken | None = None,
) -> list[PromptResult]:
    """Repeat every run of a golden dump on another model, token by token, one run each.

    The prompts, padding included, and the generated tokens are the golden's, so that every token of
    the two dumps can be compared; the logits are this model's own. A bare forward is repeated as
    one. Whatever the model, its dtype, device and attention are: its token ids must mean the same.

    Raises:
        PromptError: no run can be followed, or the vocabulary lacks an id. A single run that cannot
            be followed is a DumpWarning.
    """
    return list(each_golden(model, tokenizer, golden_runs(golden), golden, on_progress=on_progress))


def each_golden(
    model: PreTrainedModel,
    tokenizer: Any,
    runs: Iterable[GoldenRun],
    golden: DumpReader,
    *,
    on_progress: OnToken | None = None,
) -> Iterator[PromptResult]:
    """Do the same one run at a time: each result is yielded when its run is on disk."""
    for index, wanted in enumerate(runs):
        _check_vocabulary(model, wanted, golden)
        run: Callable[[], torch.Tensor | None]
        if wanted.ids is None:
            run = partial(_forward, model, {**wanted.inputs, **wanted.options})
        else:
            on_token = _told(on_progress, index)
            run = partial(_follow, model, wanted, wanted.ids, str(golden.path), on_token)
        yield _timed(model, tokenizer, wanted.prompt, run)


def can_generate(model: torch.nn.Module) -> bool:
    """Tell whether a model has a head to generate with."""
    claim = getattr(model, "can_generate", None)
    return bool(claim()) if callable(claim) else False


def _timed(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: Prompt,
    run: Callable[[], torch.Tensor | None],
) -> PromptResult:
    """Run the model and say what became of it; `run` returns the new ids [rows, tokens]."""
    number, ids, seconds = measured(model, run)
    text = None if ids is None else tokenizer.decode(ids[0])
    tokens = 0 if ids is None else ids.shape[1]
    return PromptResult(number, prompt, text, tokens, seconds)


def measured(
    model: PreTrainedModel, run: Callable[[], torch.Tensor | None]
) -> tuple[int | None, torch.Tensor | None, float]:
    """Return the number of the run, None if it was not dumped, its new ids, and its seconds."""
    session = cast("DumpSession", model.dump)
    before = len(session.runs)
    start = perf_counter()
    ids = run()
    seconds = perf_counter() - start
    runs = session.runs[before:]
    return runs[0] if runs else None, ids, seconds


def generate_or_forward(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    generate_kwargs: Mapping[str, Any],
    on_token: Callable[[int], None] | None,
) -> torch.Tensor | None:
    """Return the new ids [rows, tokens]; None for a model that has no head to generate with."""
    if can_generate(model):
        return _generate(model, inputs, generate_kwargs, on_token)
    _forward(model, inputs)
    return None


def _forward(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    with torch.no_grad():
        model(**_on_device(model, inputs))


def _generate(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    generate_kwargs: Mapping[str, Any],
    on_token: Callable[[int], None] | None,
) -> torch.Tensor:
    """Return the ids [rows, tokens] that were generated."""
    kwargs = dict(generate_kwargs)
    if on_token is not None:
        given = kwargs.pop("stopping_criteria", None) or ()
        kwargs["stopping_criteria"] = StoppingCriteriaList([*given, _Counter(on_token)])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    ids = generate(**_on_device(model, inputs), **kwargs)
    # A decoder's prompt is its own start token, not the encoder's input.
    is_pair = getattr(model.config, "is_encoder_decoder", False)
    return ids[:, 1 if is_pair else inputs["input_ids"].shape[1] :]


def _follow(
    model: PreTrainedModel,
    wanted: GoldenRun,
    ids: torch.Tensor,
    golden: str,
    on_token: Callable[[int], None] | None,
) -> torch.Tensor:
    """Generate the golden's tokens, `ids` [rows, tokens], and return them."""
    if not can_generate(model):
        msg = f"A {type(model).__name__} cannot generate, but run {wanted.run} of {golden!r} does."
        raise PromptError(msg)
    session = cast("DumpSession", model.dump)
    # The session's own comes first, so that the scores it records are those of this model.
    processors = [*session.logits_processor, FollowRun(ids, golden, wanted.run)]
    kwargs = {**wanted.options, "logits_processor": LogitsProcessorList(processors)}
    taken = _generate(model, wanted.inputs, kwargs, on_token)
    if not torch.equal(taken.cpu(), ids):
        msg = f"The model did not take the tokens of run {wanted.run} of {golden!r}."
        raise CaptureError(msg)
    return taken


def _check_vocabulary(model: PreTrainedModel, wanted: GoldenRun, golden: DumpReader) -> None:
    embeddings = model.get_input_embeddings()
    known = getattr(embeddings, "num_embeddings", None)
    if known is not None and wanted.largest_id >= known:
        msg = (
            f"Run {wanted.run} of '{golden.path}' has token id {wanted.largest_id}, and this model "
            f"knows {known} ids: it is not the golden's model, or has another tokenizer."
        )
        raise PromptError(msg)


def _on_device(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v.to(model.device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


def _told(on_progress: OnToken | None, index: int) -> Callable[[int], None] | None:
    return None if on_progress is None else lambda tokens: on_progress(index, tokens)


class _Counter(StoppingCriteria):
    """Tells how many tokens there are so far; never stops."""

    stops = False

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
