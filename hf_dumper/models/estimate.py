"""What a dump of a model would take on disk, before there is one.

Tensors are counted exactly, from forwards without values. The tables beside them are compressed, so
their bytes per record are means over dumps of Llama, Mixtral, GPT-2, Gemma 3 and T5; a test holds
the sums to real dumps within a tenth.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from hf_dumper.capture.footprint import footprints
from hf_dumper.capture.manifest import describe_model, module_tree
from hf_dumper.core.footprint import Footprint

_RUN_FACTS: Final = 3_150
"""Bytes of run.json without the ids."""

_ID: Final = 8
"""Bytes of an id of the prompt in run.json."""

_TABLES: Final = 6_240 + 1_150 + 8_540
"""Bytes of the trace, the positions and the index before they have any record."""

_HASH: Final = len('"0123456789abcdef"') - len("null")
"""A model without values has no hashes of its weights; its manifest is shorter by that."""

_TAKEN: Final = 8
"""Bytes of the id of a chosen token."""

_HEAD_PER_MODULE, _PAGE, _MOST_HEAD = 480, 4096, 1 << 20
"""Bytes of a shard's header that are reserved for each module and token, rounded up to pages."""

_INDEX: Final = {"tensors": (40, 22), "statistics": (93, 61), "both": (106, 70)}
"""Bytes of the index for each stored tensor: of the prefill, and of a decoded token."""

_LOGITS_ROW: Final = 30
"""Bytes of the index for each record of last logits."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of one way of dumping.

    Attributes:
        once: What every dump has, whatever its tokens: facts, the tree, and tables as such.
        prefill: What the prefill adds.
        token: What each decoded token adds; None for a model that does not generate.
    """

    once: int
    prefill: int
    token: int | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes of a dump of one run; None where `why` says why they are not known.

    `records` are those of the prefill, and of a decoded token. Where there are sizes, `why` says
    what they leave out, "" for nothing.
    """

    tokens: int
    rows: int
    records: tuple[int, int | None] | None
    sizes: dict[str, Size] | None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def estimate(
    model: torch.nn.Module, options: dict[str, Any], *, tokens: int, rows: int
) -> Estimate:
    """Return what a dump of every module would take, for a prompt of `tokens` tokens.

    Args:
        model: On the meta device. Its kernels may be changed by this.
        options: Values of the DumpConfig, which the manifest repeats.
        tokens: Tokens of the prompt in each row.
        rows: Rows of the batch.
    """
    once = _once(model, options) + _ID * tokens * rows
    prefill, decode, why = footprints(model, rows=rows, tokens=tokens)
    if prefill is None:
        return Estimate(tokens, rows, None, None, why)
    modules = len(list(model.modules()))
    kinds = {kind: _of_records(kind, once, prefill, decode, modules) for kind in _INDEX}
    if prefill.logits:
        kinds["last_logits"] = _of_logits(once, prefill, decode)
    counts = len(prefill.pieces) + 1, decode and len(decode.pieces) + 1
    return Estimate(tokens, rows, counts, kinds, _left_out(model))


def _left_out(model: Any) -> str:
    parts = ("vision_config", "audio_config")
    has_more = any(getattr(model.config, name, None) is not None for name in parts)
    return "of text alone: what an image or sound adds is not counted" if has_more else ""


def _once(model: torch.nn.Module, options: dict[str, Any]) -> int:
    manifest = describe_model(model, options)
    hashes = _HASH * (len(manifest["weights"] or ()))
    return _json(manifest) + hashes + _json(module_tree(model)) + _RUN_FACTS + _TABLES


def _json(value: Any) -> int:
    return len(json.dumps(value, indent=1, ensure_ascii=False, default=str).encode())


def _of_records(
    kind: str, once: int, prefill: Footprint, decode: Footprint | None, modules: int
) -> Size:
    first, later = _INDEX[kind]
    head = 0 if kind == "statistics" else min(_HEAD_PER_MODULE * modules, _MOST_HEAD)
    is_kept = kind != "statistics"
    return Size(
        once,
        -(-head // _PAGE) * _PAGE + _records(prefill, first, is_kept=is_kept),
        None if decode is None else head + _records(decode, later, is_kept=is_kept),
    )


def _records(footprint: Footprint, row: int, *, is_kept: bool) -> int:
    stored = [piece.nbytes for piece in footprint.pieces if piece.is_new]
    return row * len(stored) + is_kept * (sum(stored) + _TAKEN * footprint.rows)


def _of_logits(once: int, prefill: Footprint, decode: Footprint | None) -> Size:
    def added(found: Footprint) -> int:
        # Scores are float32, so without processors those of float32 logits are the same bytes.
        widths = {found.logit_bytes, torch.float32.itemsize}
        return found.logits * sum(widths) + _TAKEN * found.rows + _LOGITS_ROW

    return Size(once, _PAGE + added(prefill), None if decode is None else added(decode))
