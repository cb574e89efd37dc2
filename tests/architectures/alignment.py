"""The same prompts padded, alone and in chunks: their dumps must agree where the model does."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_dumper import DumpConfig, compare, register_hook
from tests.architectures.models import CHUNK, IDS, LEFT, PAD, Task, text

LIMITS = {"float32": {"rel_l2": 1e-3, "token_rel_l2": 1e-2, "channel_rel_l2": 1e-2}}
"""What is put together wrongly differs by its own size, what comes in another order hardly."""

ALONE = ((IDS[:1, PAD:], LEFT[:1, PAD:]), (IDS[1:], LEFT[1:]))
BAD = ("fail", "shape", "non-finite")


def against_alone(model: nn.Module, plain: Any, folder: Path) -> str:
    """Compare the dump in `golden` with one run for each row, not padded."""
    tasks = [Task(text(*row), generates=True) for row in ALONE]
    logits = [torch.cat(task(model).logits) for task in tasks]
    apart = max(
        _apart(torch.stack([step[row] for step in plain.logits]), own)
        for row, own in enumerate(logits)
    )
    if apart > 1e-3:
        return "the plain model's logits depend on the padding"
    with register_hook(model, DumpConfig(folder / "alone", "all", hash_weights=False)):
        for task in tasks:
            task(model)
    return _agreement(folder / "golden", folder / "alone")


def in_chunks(model: nn.Module, task: Task, plain: Any, folder: Path) -> str:
    """Compare the dump in `golden` with one whose prompt went in by chunks."""
    try:
        chunked = task(model, prefill_chunk_size=CHUNK)
    except Exception as error:
        return f"transformers cannot: {type(error).__name__}"
    pairs = zip(plain.logits, chunked.logits, strict=True)
    if max(_apart(whole, part) for whole, part in pairs) > 1e-3:
        return "the plain model's logits depend on the chunks"
    with register_hook(model, DumpConfig(folder / "chunks", "all", hash_weights=False)):
        task(model, prefill_chunk_size=CHUNK)
    return _agreement(folder / "golden", folder / "chunks")


def _apart(golden: torch.Tensor, candidate: torch.Tensor) -> float:
    return float((golden - candidate).abs().max() / golden.abs().max())


def _agreement(golden: Path, candidate: Path) -> str:
    """Return "" when all agrees, "all but ..." for outputs of no known axes, else what differs."""
    comparison = compare(golden, candidate, limits=LIMITS)
    rows = comparison.results.to_pylist()
    wrong = next((row for row in rows if row["verdict"] in BAD), None)
    if wrong is not None:
        where = f"{wrong['module']} {wrong['slot']} at token {wrong['token']}"
        return f"{wrong['verdict']}: {where}: {_why(wrong)}"
    alone = comparison.unmatched.to_pylist()
    missing = next((row for row in alone if _is_output(row)), None)
    if missing is not None:
        return f"unmatched: {missing['module']} {missing['slot']}: {missing['reason']}"
    lost = Counter(
        row["module"].rpartition(".")[2]
        for row in rows
        if row["verdict"] == "not computable" and _is_output(row)
    )
    return f"all but {_counted(lost)}" if lost else ""


def _is_output(row: dict[str, Any]) -> bool:
    """Tell outputs from inputs, and from masks, which are there or not as the layout wants."""
    return row["slot"].startswith("output") and "mask" not in row["slot"]


def _why(row: dict[str, Any]) -> str:
    """Return which limit was broken, without its numbers, which vary from machine to machine."""
    rule, reason = row["rule"], row["reason"]
    return "integers differ" if "integers" in rule else rule.partition(" ")[0] or reason


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} of {name}" for name, n in sorted(counts.items()))
