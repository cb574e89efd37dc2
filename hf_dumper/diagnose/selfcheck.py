"""Proof, on the user's own model, that dumping changes neither tokens nor logits."""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_dumper.capture.seeding import seeded
from hf_dumper.config import DumpConfig
from hf_dumper.core.slots import leaves
from hf_dumper.errors import CaptureError, EmptyDumpError, TokenNeverReachedWarning
from hf_dumper.session import DumpSession

Outcome = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What came of running a model twice, without and with dumping.

    `identical` means that every byte of what was compared is the same. `tokens` is the number of
    tokens the plain model generated, 0 for a bare forward. `first_difference` is None when
    identical. `compared` says what was held against each other. `repeatable` tells whether the
    plain model repeats itself; it is only tried when something differs, and True otherwise.
    """

    identical: bool
    tokens: int
    first_difference: str | None
    compared: str
    repeatable: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, for the manifest."""
        return asdict(self)


def self_check(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    config: DumpConfig,
    **generate_kwargs: Any,
) -> SelfCheck:
    """Run a plain model without any hook, then dumped as `config` says, and compare bit for bit.

    Both runs start from the same state of the random number generators, which is put back at the
    end, or from `config.seed`. They are `generate()` with `inputs` and `generate_kwargs`, or bare
    forwards of a model that cannot generate. The dump goes to a temporary folder and is removed.

    Raises:
        CaptureError: the model is being dumped already, so that it is not plain.
    """
    session = model.__dict__.get("dump")
    if isinstance(session, DumpSession) and not session.closed:
        msg = "The self-check needs the plain model. Close model.dump first."
        raise CaptureError(msg)

    def produce() -> Outcome:
        with _same_start(config.seed, model.device):
            return _produce(model, inputs, generate_kwargs)

    plain = produce()
    with _dumped(model, config):
        dumped = produce()
    difference = first_difference(plain, dumped)
    repeatable = True
    if difference is not None:
        repeatable = first_difference(plain, produce()) is None
    tokens = sum(name.startswith("logits of token") for name in plain)
    return SelfCheck(difference is None, tokens, difference, _compared(plain), repeatable)


def first_difference(golden: Outcome, candidate: Outcome) -> str | None:
    """Say where two outcomes differ first in their bytes, in order of computation; None if nowhere.

    Bytes tell NaN from NaN of another payload, and 0.0 from -0.0.
    """
    for name in dict.fromkeys((*golden, *candidate)):
        if name not in golden or name not in candidate:
            return f"{name}: only {'without' if name in golden else 'with'} dumping"
        difference = _difference(golden[name], candidate[name])
        if difference:
            return f"{name}: {difference}"
    return None


def _difference(golden: torch.Tensor, candidate: torch.Tensor) -> str | None:
    ours, theirs = _described(golden), _described(candidate)
    if ours != theirs:
        return f"{ours} without dumping and {theirs} with"
    unequal = (_bytes(golden) != _bytes(candidate)).any(dim=1).nonzero()
    if not len(unequal):
        return None
    first = int(unequal[0])
    at = list(map(int, np.unravel_index(first, golden.shape))) if golden.ndim else []
    values = golden.reshape(-1)[first].item(), candidate.reshape(-1)[first].item()
    return (
        f"{len(unequal)} of {golden.numel()} values differ, first at {at}: "
        f"{values[0]!r} without dumping and {values[1]!r} with"
    )


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return uint8 [elements, bytes of an element]."""
    flat = tensor.detach().cpu().contiguous().reshape(-1, 1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_zeros((0, 1), dtype=torch.uint8)


def _produce(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], options: Mapping[str, Any]
) -> Outcome:
    """Run the model once; returns named tensors in the order in which they came to be."""
    if not (hasattr(model, "can_generate") and model.can_generate()):
        with torch.no_grad():
            found = leaves("output", model(**inputs))
            return {slot: value for slot, value in found if isinstance(value, torch.Tensor)}
    asked = {"output_logits": True, "return_dict_in_generate": True, "disable_compile": True}
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]
    result = generate(**inputs, **{**options, **asked})
    logits = {f"logits of token {t}": step for t, step in enumerate(result.logits)}
    return {**logits, "token ids": result.sequences}


def _compared(outcome: Outcome) -> str:
    steps = [value for name, value in outcome.items() if name.startswith("logits of token")]
    if not steps:
        return f"{', '.join(outcome)} of one forward, byte for byte"
    noun = "token" if len(steps) == 1 else "tokens"
    return f"token ids and raw logits of {len(steps)} {noun}, byte for byte"


@contextmanager
def _dumped(model: PreTrainedModel, config: DumpConfig) -> Iterator[None]:
    """Dump into a folder that is gone afterwards; that it may be empty is no business of ours."""
    with TemporaryDirectory(prefix="hf_dumper_self_check_") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenNeverReachedWarning)
        aside = replace(config, dump_path=Path(folder) / "dump", hash_weights=False)
        before = {k: v for k, v in model.__dict__.items() if k == "dump"}
        try:
            with suppress(EmptyDumpError), DumpSession(model, aside):
                yield
        finally:  # a closed session stays on its model; this one was never the user's
            model.__dict__.pop("dump", None)
            model.__dict__.update(before)


@contextmanager
def _same_start(seed: int | None, device: torch.device) -> Iterator[None]:
    """Compute under `seeded(seed)`, or from the present state of the generators, put back after."""
    if seed is not None:
        with seeded(seed):
            yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(_beside(device), device_type=_kind(device)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _kind(device: torch.device) -> str:
    return "cuda" if device.type in ("cpu", "meta") else device.type


def _beside(device: torch.device) -> list[int]:
    """Return the accelerators of the model's kind; the generator of the CPU is always included."""
    if device.type in ("cpu", "meta"):
        return []
    return list(range(torch.get_device_module(device).device_count()))
