"""Which row of the candidate is which row of the golden dump.

A row is known by its prompt, padding left out: batches, the order of runs and padding do not
matter. Equal prompts are matched in order. Rows without ids (a model fed with embeddings, images)
are matched by run and row number.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_dumper.compare.prefixes import PrefixTree, prefix_trees
from hf_dumper.compare.records import Rec, RunRecords, Side
from hf_dumper.core.types import ROOT
from hf_dumper.errors import KeyNotFoundError

Ids = tuple[int, ...]

NEVER = 1 << 30
"""A position that no row reaches."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of one run: what went in and what was generated.

    `prompt` are the ids without padding, None where none were recorded. `generated` are the chosen
    ids, None where they are not known. `start` is the position that the first generated token has
    as an input.

    `at` maps forwards to the row that this one has in them, None where it has one number in all.
    With beams a row is a sequence of tokens, `generated` are those that went in, and `tree` are all
    sequences of the prompt. `is_guidance` tells a row of the forwards beside the sequence.
    """

    run: int
    row: int
    prompt: Ids | None
    generated: Ids | None
    start: int
    at: Mapping[int, int] | None = None
    tree: PrefixTree | None = None
    is_guidance: bool = False

    def place(self, forward: int, rows: int) -> int | None:
        """Return the row that this one has in a forward of so many, None where it has none."""
        row = self.row if self.at is None else self.at.get(forward)
        return row if row is not None and row < rows else None

    def fed(self) -> Mapping[int, int]:
        """Return, with beams, the row of each forward that its sequence went through."""
        if self.tree is None or self.generated is None:
            return {}
        return self.tree.follow(self.generated, self.row)[0]


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
        waiting[_identity(row), row.tree is not None].append(row)
    matches, alone, taken = [], [], set()
    for row in golden:
        has_beams = row.tree is not None
        alike, others = (waiting[_identity(row), kind] for kind in (has_beams, not has_beams))
        if not (alike or others):
            alone.append(row)
        elif alike and not has_beams:
            matches.append(_match(row, alike.popleft()))
        else:  # one sequence of the other side may be the partner of several
            match = _match_sequences(row, alike or others)
            matches.append(match)
            taken |= _sequences_in(match.candidate)
    rest = [row for rest in waiting.values() for row in rest]
    return matches, alone, [row for row in rest if _sequence(row) not in taken]


def _identity(row: Row) -> object:
    known = row.prompt if row.prompt is not None else ("without ids", row.run, row.row)
    return known, row.is_guidance


def _sequence(row: Row) -> object:
    """Return what tells the sequence of a row from others: its tree and ids, or its number."""
    return (row.run, row.row) if row.tree is None else (id(row.tree), row.generated)


def _sequences_in(row: Row) -> set[object]:
    """Return the sequence of a row and its beginnings."""
    if row.tree is None or row.generated is None:
        return {_sequence(row)}
    return {(id(row.tree), row.generated[:n]) for n in range(len(row.generated) + 1)}


def _match_sequences(golden: Row, candidates: Iterable[Row]) -> Match:
    """Match a row with the sequence that shares most of its tokens, of the same run if possible."""
    found = (_as_sequence(golden, row) for row in candidates)
    return max(found, key=lambda match: (match.end, match.candidate.run == golden.run))


def _as_sequence(golden: Row, candidate: Row) -> Match:
    if candidate.tree is None or golden.generated is None:
        return _match(golden, candidate)
    held, known = candidate.tree.follow(golden.generated, golden.row)
    followed = replace(candidate, at=held, generated=golden.generated[:known])
    if known is None:
        return Match(golden, followed, NEVER, None, "")
    reason = f"no row of the candidate goes on with token {known}"
    return Match(golden, followed, golden.start + known, known, reason)


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
    trees = _trees(side, info, records)
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
        found = Row(run, row, prompt, ids, start, _forwards_of(records, row))
        if trees is None:
            yield found
        elif row % (count // len(trees)) == 0:
            yield from _sequences(found, trees[row // (count // len(trees))])
    yield from _guidance_rows(info, records, prompts)


def _trees(
    side: Side, info: Mapping[str, Any], records: RunRecords
) -> tuple[PrefixTree, ...] | None:
    """Return the sequences of a run with beams, None for any other, or where they are not known."""
    beams = _beams(info)
    if beams < 2:
        return None
    tokens = {f: t for f, t in records.forwards.items() if f not in records.guidance}
    try:
        return prefix_trees(side.reader.trace(info["run"]), tokens, beams)
    except KeyNotFoundError:  # cut off
        return None


def _sequences(row: Row, tree: PrefixTree) -> Iterator[Row]:
    """Yield one row for each sequence; together they hold every row of every forward."""
    for ids, held in tree.branches():
        yield replace(
            row, row=max(held.items(), default=(0, row.row))[1], generated=ids, at=held, tree=tree
        )


def _guidance_rows(
    info: Mapping[str, Any], records: RunRecords, prompts: Sequence[Ids] | None
) -> Iterator[Row]:
    """Yield the rows of the forwards beside the sequence: those without the prompt."""
    layouts = {f: records.layouts[f] for f in sorted(records.guidance) if f in records.layouts}
    if not layouts or _beams(info) > 1:
        return
    first = next(iter(layouts.values()))
    generated = info.get("generated_ids")
    for row in range(first.rows):
        prompt = prompts[row] if prompts is not None and len(prompts) == first.rows else None
        ids = tuple(generated[row]) if generated and len(generated) == first.rows else None
        start = int(first.positions[row].max()) + 1
        at = dict.fromkeys(layouts, row)
        yield Row(info["run"], row, prompt, ids, start, at, is_guidance=True)


def _forwards_of(records: RunRecords, row: int) -> Mapping[int, int] | None:
    """Return the forwards of the sequence where there are others, None where all are its own."""
    if not records.guidance:
        return None
    return {f: row for f in records.layouts if f not in records.guidance}


def _beams(info: Mapping[str, Any]) -> int:
    return int((info.get("generation_config") or {}).get("num_beams") or 1)


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
        if layout.token == 0 and row < layout.rows and layout.cols and not layout.is_guidance
    ]
    return max(ends, default=0)


def _accepted_at_first(side: Side, run: int) -> int:
    """Return how many drafts the forward of token 0 accepted, which come after the prompt."""
    return next((v.accepted for v in side.verified(run) or () if v.token == 0), 0)


def _generated(side: Side, info: Mapping[str, Any], records: RunRecords) -> list[Ids] | None:
    """Return the ids that were chosen for each row, None where they are not those of the rows."""
    if info.get("kind") == "forward":
        return [()] * _row_count(info, records, None)
    if _beams(info) > 1:
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
