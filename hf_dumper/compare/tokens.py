"""What each side chose at every generated token, and how far apart the logits were."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from hf_dumper.compare.limits import Limits, section
from hf_dumper.compare.logits import LogitsMeasurement, measure_logits
from hf_dumper.compare.plans import last_position
from hf_dumper.compare.records import NameKey, Rec, Side
from hf_dumper.compare.rows import Match, Row
from hf_dumper.compare.views import by_position, by_row, shape_of
from hf_dumper.core.types import ROOT
from hf_dumper.core.verdicts import TOKEN_SCHEMA, Verdict
from hf_dumper.core.verified import covering

IDENTICAL, TIE, DIVERGED = "identical", "tie", "diverged"
SAMPLED = "both sides agree on the first choice, but another was sampled"
_NUMBERS: Final = (
    *("margin", "margin_ulp", "kl", "js", "delta_logprob", "top5_jaccard", "top10_jaccard"),
    "top1_equal",
)
_FACTS: Final = (IDENTICAL, Verdict.TRUNCATED, Verdict.NON_FINITE, Verdict.NOT_COMPUTABLE)
"""Verdicts that no limit changes."""
_SOURCES: Final[Sequence[NameKey]] = (
    (0, ROOT, "logits", 0, ""),
    (0, ROOT, "output.logits", 0, ""),
    (0, "lm_head", "output", 0, ""),
)
"""Where the logits of a token are looked for, in this order."""


def token_rows(golden: Side, candidate: Side, matches: Sequence[Match]) -> Iterator[dict[str, Any]]:
    """Yield one row of TOKEN_SCHEMA per generated token; verdicts only where no limit matters."""
    for match in matches:
        if match.golden.generated is None or match.candidate.generated is None:
            continue
        if match.golden.is_guidance:  # which chooses nothing
            continue
        both = zip(match.golden.generated, match.candidate.generated, strict=False)
        sources = _Logits(golden, match.golden), _Logits(candidate, match.candidate)
        for token, (ours, theirs) in enumerate(both):
            position = match.golden.start + token - 1
            row = {
                **{"run": match.golden.run, "row": match.golden.row, "token": token},
                **{"position": position, "golden_id": ours, "candidate_id": theirs},
            }
            if match.golden.at is not None and not sources[0].holds(token):
                continue  # beams: another sequence has this token's row
            if match.token is not None and token > match.token:
                yield row | {"verdict": Verdict.TRUNCATED, "reason": match.reason}
            elif sources[0].is_padding(position):
                return
            else:
                found = _compared(sources[0].at(token), sources[1].at(token), ours)
                if ours != theirs and found.get("verdict") == IDENTICAL:
                    del found["verdict"]  # equal logits, and still another choice
                yield row | found


def as_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table of TOKEN_SCHEMA."""
    return pa.Table.from_pylist(list(rows), TOKEN_SCHEMA)


def judge_tokens(tokens: pa.Table, levels: Mapping[int, int], limits: Limits) -> pa.Table:
    """Return the tokens with their verdicts; `levels` are the coarsest types of the runs."""
    rows = tokens.to_pylist()
    for row in rows:
        if row["verdict"] not in _FACTS:
            level = max(levels.get(row["run"], 0), 0)
            row["verdict"], row["reason"] = _judged(row, section(level), limits)
    return pa.Table.from_pylist(rows, TOKEN_SCHEMA)


def judged_rows(tokens: pa.Table) -> list[dict[str, Any]]:
    """Return the tokens with logits that can be judged: those of another depth cannot."""
    measured = (row for row in tokens.to_pylist() if row["kl"] is not None)
    return [row for row in measured if row["verdict"] != Verdict.NOT_COMPUTABLE]


def judge_logits(
    tokens: pa.Table, levels: Mapping[int, int], limits: Limits
) -> tuple[Verdict, str, float, float] | None:
    """Return verdict, rule, value and limit of the worst sum over all tokens; None without any."""
    compared = judged_rows(tokens)
    if not compared:
        return None
    level = max(max(levels.get(row["run"], 0), 0) for row in compared)
    table, dtype = limits[section(level)], section(level)
    shifts = [row["delta_logprob"] for row in compared if row["delta_logprob"] is not None]
    agreed = [row["top1_equal"] or _is_tie(row, limits) for row in compared]
    # A mean over few tokens is uncertain: divergences have a long tail, shifts are near normal.
    few = max(1.0, limits["one_token"] / math.sqrt(len(compared)))
    spread = 1 + 3 / math.sqrt(2 * max(1, len(shifts)))
    found = [
        ("mean KL", float(np.mean([row["kl"] for row in compared])), table["kl"] * few),
        ("top-1 disagreement", 1 - float(np.mean(agreed)), 1 - table["top1"]),
    ]
    if shifts:
        rms = math.sqrt(float(np.mean(np.square(shifts))))
        found.append(("RMS delta logprob", rms, table["delta_logprob"] * spread))
    name, value, limit = max(found, key=lambda f: f[1] / f[2] if f[2] else math.inf * bool(f[1]))
    ratio = value / limit if limit else (math.inf if value else 0.0)
    rule = f"{name} {value:.3g} {'<=' if ratio <= 1 else '>'} {limit:.3g} ({dtype})"
    if ratio <= 1:
        return Verdict.PASS, rule, value, limit
    return (Verdict.WARN if ratio <= limits["warn"] else Verdict.FAIL), rule, value, limit


def _is_tie(row: Mapping[str, Any], limits: Limits) -> bool:
    """Tell whether another first choice is none, also where the tokens were given to the model."""
    ulp = row["margin_ulp"]
    return row["verdict"] == TIE or (ulp is not None and ulp <= limits["tie_ulp"])


def _judged(row: Mapping[str, Any], dtype: str, limits: Limits) -> tuple[str, str]:
    same = row["golden_id"] == row["candidate_id"]
    kl, ulp = row["kl"], row["margin_ulp"]
    if kl is None:
        if same:
            return Verdict.PASS, "the ids agree; there are no logits to compare"
        return DIVERGED, "there are no logits that could explain it"
    limit = limits[dtype]["kl"] * limits["one_token"]
    if same:
        if kl <= limit:
            return Verdict.PASS, f"KL {kl:.3g} <= {limit:.3g} ({dtype})"
        word = Verdict.WARN if kl <= limit * limits["warn"] else Verdict.FAIL
        return word, f"KL {kl:.3g} > {limit:.3g} ({dtype})"
    if ulp is not None and ulp <= limits["tie_ulp"]:
        return TIE, f"the golden margin is {ulp:.3g} ULP, up to {limits['tie_ulp']:.3g} are a tie"
    if row["top1_equal"] and kl <= limit:
        return DIVERGED, SAMPLED
    if kl <= limit:
        return TIE, f"the logits agree: KL {kl:.3g} <= {limit:.3g} ({dtype})"
    return DIVERGED, f"KL {kl:.3g} > {limit:.3g} ({dtype}), golden margin {row['margin']:.3g}"


def _compared(
    golden: torch.Tensor | None, candidate: torch.Tensor | None, chosen: int
) -> dict[str, Any]:
    if golden is None or candidate is None or golden.shape != candidate.shape:
        return {}
    found: LogitsMeasurement = measure_logits(golden, candidate, torch.tensor([chosen]))[0]
    row: dict[str, Any] = {name: getattr(found, name) for name in _NUMBERS}
    if found.kl is None:
        reason = "logits are not finite"
        return row | {"verdict": Verdict.NON_FINITE, "reason": reason}
    if golden.dtype == candidate.dtype and torch.equal(golden, candidate):
        return row | {"verdict": IDENTICAL, "reason": "the logits are equal"}
    return row


class _Logits:
    """The logits of one row, found token by token."""

    def __init__(self, side: Side, row: Row) -> None:
        self._side, self._row = side, row
        self._records = side.records(row.run)
        self._verified = side.verified(row.run)
        self._forwards: dict[int, int] = {}
        for forward, token in self._records.forwards.items():
            if forward in self._records.guidance:
                continue
            self._forwards[token] = max(forward, self._forwards.get(token, -1))

    def is_padding(self, position: int) -> bool:
        """Tell whether the row had ended before a position was reached."""
        places = (
            (layout, self._row.place(forward, layout.rows))
            for forward, layout in self._records.layouts.items()
        )
        held = [layout.positions[row] for layout, row in places if row is not None]
        last = max((int(positions.max()) for positions in held), default=position)
        return position > last

    def holds(self, token: int) -> bool:
        """Tell whether the row has a place in the forward of a token."""
        forward = self._forwards.get(token, -1)
        layout = self._records.layouts.get(forward)
        return layout is not None and self._row.place(forward, layout.rows) is not None

    def at(self, token: int) -> torch.Tensor | None:
        """Return [1, vocabulary] of the column that decides a token, None where there is none."""
        if self._verified is not None:
            found = covering(self._verified, token)
            return None if found is None else self._of(found.forward, found.columns_after(token))
        return self._of(self._forwards.get(token), None)

    def _of(self, forward: int | None, after: int | None) -> torch.Tensor | None:
        """Return those of a forward, at its last position or before its last `after` columns."""
        layout = None if forward is None else self._records.layouts.get(forward)
        if forward is None or layout is None:
            return None
        for name in _SOURCES:
            record = self._records.by_forward[forward].get(name)
            if record is not None and record.has_values:
                return self._view(record, after)
        return None

    def _view(self, record: Rec, after: int | None) -> torch.Tensor | None:
        layout = self._records.layouts[record.forward]
        shape = shape_of(record, layout)
        row = self._row.place(record.forward, layout.rows)
        if row is None:
            return None
        held = layout.positions[row]
        position = last_position(layout, row)
        if after is not None:
            position = int(held[layout.cols - 1 - after])
        if position < 0 or len(shape.channels) != 1 or shape.kind == "whole":
            return None
        tensor = self._side.tensor(record)
        if shape.kind == "row":
            return by_row(tensor, row)
        column = int(np.flatnonzero(held == position)[0])
        if column < shape.offset:
            return None
        return by_position(tensor, record, layout, row, slice(column, column + 1))
