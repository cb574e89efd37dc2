"""Which row of the candidate is which row of the golden dump.

A row is known by its prompt, padding left out: batches, the order of runs and padding do not
matter. Equal prompts are matched in order. Rows without ids (a model fed with embeddings, images)
are matched by run and row number.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_dumper.compare.records import Rec, RunRecords, Side
from hf_dumper.core.types import ROOT

Ids = tuple[int, ...]

NEVER = 1 << 30
"""A position that no row reaches."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of one run: what went in and what was generated.

    `prompt` are the ids without padding, None where none were recorded. `generated` are the chosen
    ids, None where they are not known (beam search: the rows of a forward are beams). `start` is
    the position that the first generated token has as an input.
    """

    run: int
    row: int
    prompt: Ids | None
    generated: Ids | None
    start: int


@dataclass(frozen=True, slots=True)
class Match:
    """Two rows of one prompt; from position `end` on their inputs differ, or may.

    `reason` says why, where `end` is not `NEVER`. `token` is the index of the first generated token
    that differs, None where none does.
    """

    golden: Row
    candidate: Row
    end: int
    token: int | None
    reason: str


def rows_of(side: Side) -> list[Row]:
    """Return the rows of all runs, in order."""
    return [row for run in side.runs for row in _rows(side, run)]


def match_rows(
    golden: Sequence[Row], candidate: Sequence[Row]
) -> tuple[list[Match], list[Row], list[Row]]:
    """Return the matches, then the rows of either side that have no partner."""
    waiting: dict[object, deque[Row]] = defaultdict(deque)
    for row in candidate:
        waiting[_identity(row)].append(row)
    matches, alone = [], []
    for row in golden:
        partners = waiting[_identity(row)]
        if partners:
            matches.append(_match(row, partners.popleft()))
        else:
            alone.append(row)
    return matches, alone, [row for rest in waiting.values() for row in rest]


def _identity(row: Row) -> object:
    return row.prompt if row.prompt is not None else ("without ids", row.run, row.row)


def _match(golden: Row, candidate: Row) -> Match:
    if golden.generated is None or candidate.generated is None:
        # Bare forwards have no tokens after the prompt, so that nothing is cut off there.
        reason = "what the rows of the forwards generated is not known"
        return Match(golden, candidate, golden.start, None, reason)
    pairs = zip(golden.generated, candidate.generated, strict=False)
    token = next((t for t, (g, c) in enumerate(pairs) if g != c), None)
    if token is None:
        return Match(golden, candidate, NEVER, None, "")
    reason = f"token {token} differs, so that what comes after it had other inputs"
    return Match(golden, candidate, golden.start + token, token, reason)


def _rows(side: Side, run: int) -> Iterator[Row]:
    info = side.info(run)
    records = side.records(run)
    prompts = _prompts(info.get("prompt") or {})
    generated = _generated(side, info, records)
    count = _row_count(info, records, prompts)
    copies = count // len(prompts) if prompts and count % len(prompts) == 0 else 1
    is_pair = bool((side.reader.manifest.get("config") or {}).get("is_encoder_decoder"))
    for row in range(count):
        prompt = prompts[row // copies] if prompts and row // copies < len(prompts) else None
        ids = generated[row] if generated is not None and len(generated) == count else None
        counted = _prefill_length(records, row) - _accepted_at_first(side, run)
        known = prompt is not None and not is_pair
        start = len(prompt) if known and prompt is not None else counted
        yield Row(run, row, prompt, ids, start)


def _row_count(info: Mapping[str, Any], records: RunRecords, prompts: Sequence[Ids] | None) -> int:
    for layout in records.layouts.values():
        return layout.rows
    known = (info.get("inputs") or {}).get("rows")
    return int(known) if known else len(prompts or ((),))


def _prompts(facts: Mapping[str, Any]) -> list[Ids] | None:
    ids, mask = facts.get("input_ids"), facts.get("attention_mask")
    if not ids:
        return None
    if not mask or [len(row) for row in mask] != [len(row) for row in ids]:
        return [tuple(row) for row in ids]
    return [
        tuple(i for i, keep in zip(row, kept, strict=True) if keep)
        for row, kept in zip(ids, mask, strict=True)
    ]


def _prefill_length(records: RunRecords, row: int) -> int:
    """Return the number of positions that the forwards of token 0 hold of a row."""
    ends = [
        int(layout.positions[row].max()) + 1
        for layout in records.layouts.values()
        if layout.token == 0 and row < layout.rows and layout.cols
    ]
    return max(ends, default=0)


def _accepted_at_first(side: Side, run: int) -> int:
    """Return how many drafts the forward of token 0 accepted, which come after the prompt."""
    return next((v.accepted for v in side.verified(run) or () if v.token == 0), 0)


def _generated(side: Side, info: Mapping[str, Any], records: RunRecords) -> list[Ids] | None:
    """Return the ids that were chosen for each row, None where they are not those of the rows."""
    if info.get("kind") == "forward":
        return [()] * _row_count(info, records, None)
    if int((info.get("generation_config") or {}).get("num_beams") or 1) > 1:
        return None
    ids = info.get("generated_ids")
    if ids is not None:
        return [tuple(row) for row in ids]
    return _chosen(side, records)


def _chosen(side: Side, records: RunRecords) -> list[Ids] | None:
    """Return the chosen ids from the records of a run that was cut off."""
    found: dict[int, Rec] = {
        record.token: record
        for record in records.records
        if record.module == ROOT and record.slot == "token_ids" and record.has_values
    }
    if sorted(found) != list(range(len(found))) or not found:
        return None
    columns = [side.tensor(found[token]).tolist() for token in range(len(found))]
    if len({len(column) for column in columns}) != 1:
        return None
    return [tuple(row) for row in np.asarray(columns).T.tolist()]
