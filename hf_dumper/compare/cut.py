"""Two models of different depth: what comes after the last common layer has other inputs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hf_dumper.compare.records import Rec, RunRecords

DEPTHS: Final = ("num_hidden_layers", "n_layer", "num_layers")
"""Keys of a configuration that count layers."""
AFTER_CUT: Final = "after the cut: {} of {} layers are common"
_LAYER: Final = re.compile(r"(.*\.)?(\d+)")


def depths(golden: Mapping[str, Any], candidate: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the numbers of layers of two manifests, None where they are equal or unknown."""
    ours, theirs = golden.get("config") or {}, candidate.get("config") or {}
    for key in DEPTHS:
        values = ours.get(key), theirs.get(key)
        if isinstance(values[0], int) and isinstance(values[1], int) and values[0] != values[1]:
            return values[0], values[1]
    return None


class Cut:
    """Tells which records of a golden run come after the last layer that both sides have."""

    def __init__(self, records: RunRecords, layers: tuple[int, int] | None) -> None:
        """Find when the last common layer of each forward was done."""
        self.reason = "" if layers is None else AFTER_CUT.format(min(layers), max(layers))
        self._ends: dict[int, int] = {}
        if layers is None:
            return
        last = min(layers) - 1
        for record in records.records:
            found = _LAYER.fullmatch(record.module)
            if found and int(found[2]) == last and record.seq_out is not None:
                end = max(record.seq_out, self._ends.get(record.forward, -1))
                self._ends[record.forward] = end

    def comes_after(self, record: Rec) -> bool:
        """Tell whether what a record holds was made after the cut."""
        end = self._ends.get(record.forward)
        if end is None:
            return False
        made = record.seq_in if record.slot.startswith("input") else record.seq_out
        return made is None or made > end


def is_after_cut(reason: str) -> bool:
    """Tell whether a record is unmatched because it comes after the cut."""
    return reason.startswith(AFTER_CUT.partition(":")[0])


def other_logits(layers: Sequence[int]) -> str:
    """Return why the logits of two depths are measured, but not judged."""
    few, many = min(layers), max(layers)
    return f"one side has {few} of {many} layers, so that its logits are others by nature"


def common_depth(layers: Sequence[int]) -> str:
    """Return a sentence about two depths."""
    return f"one side has {min(layers)} of {max(layers)} layers; the common ones are compared"
