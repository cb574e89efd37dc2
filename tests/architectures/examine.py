"""All checks of one architecture, as a JSON-ready table."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_dumper import DumpConfig, register_hook
from tests.architectures import alignment, places, routing
from tests.architectures.checks import belongings, differences, unlike
from tests.architectures.models import LEFT, Architecture, NotBuilt, Task, prepared
from tests.architectures.overrides import GENERATES_WITH
from tests.architectures.witness import Witness

_FED_AGAIN = {"xlnet": 2}
"""Columns that `generate()` feeds to a type of model a second time, of those before."""


def examine(architecture: Architecture, folder: Path) -> dict[str, Any]:
    """Return what became of each check: "" passed, None does not apply, else what was seen.

    Dumps are written into `folder`. A class that cannot be built has the reason alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about sizes that nobody would choose
        try:
            model, task, plain = prepared(architecture)
        except NotBuilt as error:
            return {"class": architecture.name, "not built": str(error)}
        witness, found = _watched(architecture, model, task, plain, folder / "golden")
        aligned = _aligned(architecture, model, task, plain, folder)
    facts = {"class": architecture.name, "run": _run(task), "records": len(witness.seen)}
    return facts | found | aligned | {"experts": routing.recorded(model, witness)}


def _watched(
    architecture: Architecture, model: nn.Module, task: Task, plain: Any, path: Path
) -> tuple[Witness, dict[str, str | None]]:
    """Dump one run under the eyes of a witness."""
    before = belongings(model)
    part = GENERATES_WITH.get(architecture.type, "root") if task.generates else "root"
    witness = Witness(model, part)
    with register_hook(model, DumpConfig(path, "all", hash_weights=False)):
        dumped = task(model)
    witness.leave()
    return witness, {
        "outputs": next(differences(plain, dumped), ""),
        "witness": next(unlike(witness, path), ""),
        "left behind": ", ".join(f"{kind} {name}" for kind, name in belongings(model) ^ before),
        "positions": _positions(model, task, witness, path),
    }


def _positions(model: nn.Module, task: Task, witness: Witness, path: Path) -> str | None:
    given = task.arguments
    ids = given.get("input_ids")
    is_pair = any(place[2].startswith("input.decoder_") for place in witness.seen)
    mask = None if is_pair else given.get("attention_mask")
    again = _FED_AGAIN.get(model.config.model_type, 0)
    spans = places.columns(witness, 1 if is_pair or ids is None else ids.shape[1], again)
    if not spans:
        return None
    rows = next(iter(given.values())).shape[0]
    if mask is None or not places.is_masked(witness):
        mask = torch.ones(rows, spans[0][1], dtype=torch.int64)
    return next(places.misplaced(path, places.expected(spans, mask)), "")


def _aligned(
    architecture: Architecture, model: nn.Module, task: Task, plain: Any, folder: Path
) -> dict[str, str | None]:
    """Compare with other layouts of the same prompts, where there are prompts alone."""
    is_text = task.arguments.get("attention_mask") is LEFT and task.generates
    if not is_text or model.config.is_encoder_decoder:
        return {"padded": None, "chunked": None}
    return {
        "padded": alignment.against_alone(model, plain, folder),
        "chunked": alignment.in_chunks(model, task, plain, folder),
    }


def _run(task: Task) -> str:
    return task.note or ("generate()" if task.generates else "a bare forward")
