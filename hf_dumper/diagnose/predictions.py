"""What a model predicts at every position of a prompt: one forward beside the dump's runs."""

from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from hf_dumper.capture.candidates import rank_candidates
from hf_dumper.capture.inputs import parameter_names
from hf_dumper.errors import ModelError, PromptError
from hf_dumper.session import DumpSession
from hf_dumper.store import open_dump
from hf_dumper.store.kept import write_predictions
from hf_dumper.store.trace import PREDICTIONS_SCHEMA


def predict_run(session: DumpSession, model: PreTrainedModel, run: int) -> pa.Table:
    """Predict inside the prompt of a run of a session's dump, and keep the table beside it.

    The session is paused for the forward, so it is no run, and the random number generators are as
    they were before.

    Raises:
        PromptError: the run has no prompt ids.
        ModelError: the model gives no logits for each position of a prompt.
    """
    with open_dump(session.path) as reader:
        prompt = reader.run_info(run)["prompt"]
    if prompt["input_ids"] is None:
        msg = f"Run {run} has no prompt ids, so there is nothing to predict inside its prompt."
        raise PromptError(msg)
    ids = torch.tensor(prompt["input_ids"])
    mask = torch.tensor(prompt["attention_mask"] or [[1] * ids.shape[1]] * len(ids))
    with session.pause():
        table = predict_prompt(model, ids, mask)
    write_predictions(session.path, run, table)
    return table


def predict_prompt(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> pa.Table:
    """Return what follows each token of a prompt by the model: a row per unmasked token.

    Args:
        model: A decoder whose forward returns logits of all positions.
        ids: Token ids [rows, columns].
        mask: 1 for tokens, 0 for padding [rows, columns].

    Raises:
        ModelError: the model gives no such logits.
    """
    check_predictable(model)
    logits = _logits(model, ids, mask)
    rows = [row for r in range(len(ids)) for row in _rows(r, ids[r], mask[r], logits[r])]
    return pa.Table.from_pylist(rows, PREDICTIONS_SCHEMA)


def check_predictable(model: PreTrainedModel) -> None:
    """Make sure that a model goes on from its prompt.

    Raises:
        ModelError: it encodes its prompt.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        msg = f"A {type(model).__name__} does not go on from its prompt, it encodes it."
        raise ModelError(msg)


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return logits [rows, columns, vocabulary] on the CPU."""
    given = {"input_ids": ids, "attention_mask": mask}
    names = parameter_names(model)
    if "position_ids" in names:  # as generate() makes them; padding may have any
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {"use_cache": False} if "use_cache" in names else {}
    on_device = {n: tensor.to(model.device) for n, tensor in given.items()}
    kind = model.device.type
    own = {"devices": []} if kind == "cpu" else {"devices": [model.device], "device_type": kind}
    with torch.random.fork_rng(**own), torch.no_grad():
        logits = getattr(model(**on_device, **extra), "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape:
        msg = f"A {type(model).__name__} gives no logits for each position of a prompt."
        raise ModelError(msg)
    return logits.cpu()


def _rows(
    row: int, ids: torch.Tensor, mask: torch.Tensor, logits: torch.Tensor
) -> Iterator[dict[str, Any]]:
    columns = mask.nonzero().flatten()
    known = ids[columns].tolist()
    following = [*known[1:], -1]  # of the last one nothing is known
    found = rank_candidates(cast("Any", logits[columns].float().numpy()), following)
    for i, column in enumerate(columns.tolist()):
        is_last = i == len(known) - 1
        yield {
            "row": row,
            "column": column,
            "position": i,
            "id": known[i],
            "top_ids": found.ids[i].tolist(),
            "top_probabilities": found.probabilities[i].tolist(),
            "margin": found.margin[i].item(),
            "next_id": None if is_last else known[i + 1],
            "next_probability": None if is_last else found.chosen_probability[i].item(),
            "next_rank": None if is_last else found.chosen_rank[i].item(),
        }
