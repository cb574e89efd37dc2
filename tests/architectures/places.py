"""Columns and positions of a run, worked out from the call and from what a witness saw."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from hf_dumper import open_dump
from tests.architectures.witness import Witness

_IDS = ("input.decoder_input_ids", "input.input_ids", "input.0")


def columns(witness: Witness, prompt: int, again: int = 0) -> list[tuple[int, int]]:
    """Return the columns of the sequence, of `prompt` ids at first, that each forward took in.

    A forward is fed what the cache lacks, or all from the beginning: its size tells. Of what was
    fed before, the last `again` columns are fed once more.
    """
    found: list[tuple[int, int]] = []
    known = 0
    widths = (_width(witness, forward) for forward in itertools.count())
    for width in itertools.takewhile(lambda width: width is not None, widths):
        start = 0 if known >= prompt and width > known else max(0, known - again)
        found.append((start, start + width))
        known = start + width
    return found


def _width(witness: Witness, forward: int) -> int | None:
    places = ((forward, "root", slot, 0) for slot in _IDS)
    ids = next((witness.seen[p] for p in places if p in witness.seen), None)
    return None if ids is None or ids.ndim != 2 else ids.shape[1]


def is_masked(witness: Witness) -> bool:
    """Tell whether any forward was told what is padding; the others take it for real tokens."""
    return any(place[1] == "root" and "attention_mask" in place[2] for place in witness.seen)


def expected(spans: list[tuple[int, int]], mask: torch.Tensor) -> dict[tuple[int, int, int], int]:
    """Return (forward, row, column) -> number of real tokens before it, -1 for padding."""
    end = max(stop for _, stop in spans)
    rows, width = mask.shape
    full = torch.cat([mask, mask.new_ones(rows, max(0, end - width))], dim=1)
    counted = torch.where(full > 0, full.cumsum(1) - 1, -1)
    return {
        (forward, row, column - start): int(counted[row, column])
        for forward, (start, stop) in enumerate(spans)
        for row in range(rows)
        for column in range(start, stop)
    }


def misplaced(path: Path, wanted: dict[tuple[int, int, int], int]) -> Iterator[str]:
    """Yield where the recorded positions are others."""
    with open_dump(path) as reader:
        table = reader.positions(0).to_pydict()
    places = zip(table["forward"], table["row"], table["column"], strict=True)
    found = dict(zip(places, table["position"], strict=True))
    for place in sorted(wanted.keys() | found.keys()):
        if found.get(place) != wanted.get(place):
            yield f"{found.get(place)} instead of {wanted.get(place)} at {place}"
