"""What a dump of a model would hold, learnt from forwards on the meta device that compute nothing.

The forwards are those of `generate()` with a cache: the prefill, which keeps the last logits only,
and one decoded token.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from hf_dumper.capture.fake_inputs import fake_inputs
from hf_dumper.capture.hooks import input_slot
from hf_dumper.capture.inputs import CACHES, parameter_names
from hf_dumper.core.footprint import Footprint, Piece
from hf_dumper.core.slots import leaves
from hf_dumper.core.types import ROOT
from hf_dumper.errors import ModelError


def footprints(
    model: nn.Module, *, rows: int, tokens: int
) -> tuple[Footprint | None, Footprint | None, str]:
    """Return the records of the prefill of `tokens` tokens, those of one decoded token, and a note.

    A model that does not generate has one forward and no decoded token. What cannot be learnt is
    None, and the note says why; it is "" otherwise. The model's kernels may be changed by this.
    """
    failure = ""
    for change in (_as_it_is, _batched_experts, _eager_attention):
        try:
            change(model)
            return (*_learn(model, rows, tokens), "")
        except ModelError as error:
            return None, None, str(error)
        except Exception as error:  # code of others meets tensors without values: anything
            told = " ".join(str(error).split())[:160]
            failure = failure or f"{type(error).__name__}: {told}"
    return None, None, f"a forward without values is not possible: {failure}"


def _as_it_is(_model: Any) -> None:
    pass


def _batched_experts(model: Any) -> None:
    model.set_experts_implementation("batched_mm")


def _eager_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def _learn(model: Any, rows: int, tokens: int) -> tuple[Footprint, Footprint | None]:
    model.eval()
    claim = getattr(model, "can_generate", None)
    with torch.no_grad(), _watched(model) as seen:
        if not (callable(claim) and claim()):
            model(**fake_inputs(model, rows, tokens))
            return seen.take(None), None
        if getattr(model.config, "is_encoder_decoder", False):
            given = fake_inputs(model, rows, tokens)
            given.pop("decoder_input_ids", None)
            held = {"encoder_outputs": model.get_encoder()(**given)}
            first, ids, past = 1, "decoder_input_ids", 0
        else:
            held, first, ids, past = {}, tokens, "input_ids", tokens
        output = model(**held, **_step(model, ids, rows, first, 0))
        prefill = seen.take(output.logits)
        kept = ((name, getattr(output, name, None)) for name in CACHES)
        cached = {name: cache for name, cache in kept if cache is not None}
        output = model(**held, **cached, **_step(model, ids, rows, 1, past or first))
        return prefill, seen.take(output.logits)


def _step(model: nn.Module, ids: str, rows: int, tokens: int, past: int) -> dict[str, Any]:
    """Return what `generate()` gives a forward, as far as the model takes it."""
    names = parameter_names(model)
    with torch.device("meta"):
        given = {
            ids: torch.zeros(rows, tokens, dtype=torch.int64),
            "position_ids": torch.arange(past, past + tokens)[None].expand(rows, -1).contiguous(),
            "logits_to_keep": 1,
            "use_cache": True,
        }
    kept = {name: value for name, value in given.items() if name in names or name == ids}
    return kept | ({"use_cache": True} if "use_cache" not in kept else {})


@dataclass(slots=True)
class _Seen:
    """What passed since the last `take`; tensors are held, so that no storage is used twice."""

    pieces: list[Piece] = field(default_factory=list)
    held: list[torch.Tensor] = field(default_factory=list)
    known: set[tuple[Any, ...]] = field(default_factory=set)

    def record(self, module: str, found: Iterator[tuple[str, Any]]) -> None:
        for slot, tensor in found:
            if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                continue
            storage = tensor.untyped_storage()._cdata
            key = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
            is_new = key not in self.known
            self.known.add(key)
            self.held.append(tensor)
            nbytes = tensor.numel() * tensor.element_size()
            name = str(tensor.dtype).removeprefix("torch.")
            self.pieces.append(Piece(module, slot, name, tuple(tensor.shape), nbytes, is_new))

    def take(self, logits: torch.Tensor | None) -> Footprint:
        """Return what passed, and forget it. `logits` are those of the forward."""
        last = logits[:, -1].numel() if logits is not None else 0
        width = logits.element_size() if logits is not None else 0
        rows = len(logits) if logits is not None else 0
        found = Footprint(tuple(self.pieces), rows, last, width)
        self.pieces, self.held, self.known = [], [], set()
        return found


class _watched:
    """Watch the modules of a model while the block runs."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = ExitStack()

    def __enter__(self) -> _Seen:
        seen = _Seen()
        for name, module in self._model.named_modules():
            before, after = _hooks(seen, name or ROOT)
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            self._stack.enter_context(handle)
            self._stack.enter_context(module.register_forward_hook(after))
        return seen

    def __exit__(self, *_error: object) -> None:
        self._stack.close()


def _hooks(seen: _Seen, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for key, value in chain(enumerate(args), kwargs.items()):
            seen.record(name, leaves(input_slot(key), value))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.record(name, leaves("output", output))

    return before, after
