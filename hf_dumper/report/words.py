"""What a comparison says, in words; where it is said to a person or to a script."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.verdicts import BAD, Comparison, Divergence, Finding, Verdict
from hf_dumper.report.numbers import plural

KINDS: Final = {
    "source": "its inputs agree and its output does not, so it is the source",
    "functional": "its inputs and its children agree, so the fault is in its own forward",
    "inputs": "the inputs of the two models are not the same",
    "weights": "its weights are not the same",
    "first failing": "its inputs were not checked, so the fault may lie before it",
    "below floor": "the difference is smaller than what harmless changes make",
}
"""Kind of a divergence -> how sure it is."""

_OPENINGS: Final = {
    Verdict.IDENTICAL: "every tensor that was compared is the same, bit for bit or in value",
    Verdict.PASS: "all that was compared agrees within the limits",
    Verdict.WARN: "within what is possible, but beyond what is usual",
    Verdict.UNMATCHED: "nothing that was compared is wrong, but not all could be compared",
    Verdict.NOT_COMPUTABLE: "nothing that was compared is wrong, but not all could be compared",
    Verdict.TRUNCATED: "nothing is wrong up to the first token that differs",
    Verdict.INPUTS: "the models were not given the same, so nothing after that tells anything",
    Verdict.NOTHING: "the two dumps have nothing in common that could be compared",
}

_MOST, _FINDINGS = 60, 4


def opening(comparison: Comparison) -> str:
    """Return the sentence after the verdict."""
    divergence = comparison.divergence
    if comparison.verdict in _OPENINGS and comparison.verdict is not Verdict.INPUTS:
        alone = comparison.unmatched.num_rows
        partly = f"; {plural(alone, 'record')} could not be compared" if alone else ""
        return f"{_OPENINGS[comparison.verdict]}{partly}"
    if comparison.inputs:
        subjects = list(dict.fromkeys(finding.subject for finding in comparison.inputs))
        return f"{_OPENINGS[Verdict.INPUTS]}: {_first(subjects, 2)}"
    if divergence is None:
        return "the tensors agree, but what was made of them does not"
    return f"first at {divergence.module} {divergence.slot}, token {divergence.token}"


def facts(comparison: Comparison) -> dict[str, list[str]]:
    """Return the facts under the sentence, each with one line or several."""
    found = {"golden": [comparison.golden], "candidate": [comparison.candidate]}
    found["differs"] = _findings(comparison.inputs)
    divergence = comparison.divergence
    if divergence is not None:
        found |= _divergence_facts(comparison, divergence)
    found["setting"] = _findings(comparison.regime)
    found["compared"] = [_counts(comparison), *_left_out(comparison)]
    found["tokens"] = [token_line(comparison.tokens)]
    return {name: lines for name, lines in found.items() if lines}


def message(comparison: Comparison) -> str:
    """Return all that is to be said as plain text, for an error or a log."""
    lines = [f"{comparison.verdict.upper()}: {opening(comparison)}."]
    for name, values in facts(comparison).items():
        lines += [f"  {name if i == 0 else '':<10} {value}" for i, value in enumerate(values)]
    if comparison.divergence is not None and comparison.divergence.snippet:
        lines += ["", comparison.divergence.snippet.rstrip()]
    return "\n".join(lines)


def find(comparison: Comparison, divergence: Divergence) -> int | None:
    """Return the number of the row of `results` that a divergence is about, None if it has none."""
    table = comparison.results
    same = pc.and_(
        pc.and_(
            pc.equal(table.column("module"), divergence.module),
            pc.equal(table.column("slot"), divergence.slot),
        ),
        pc.equal(table.column("token"), divergence.token),
    )
    places = pc.indices_nonzero(pc.fill_null(same, fill_value=False)).to_pylist()
    verdicts = table.column("verdict")
    bad = (place for place in places if verdicts[place].as_py() in BAD)
    return next(bad, places[0] if places else None)


def why(row: Mapping[str, Any]) -> str:
    """Return the rule or the reason that a row of `results` or `unmatched` has."""
    return str(row.get("rule") or row.get("reason") or row["verdict"])


def tally(column: pa.ChunkedArray) -> str:
    """Return "5 identical, 1 fail" for a column of verdicts."""
    counted = Counter(column.to_pylist())
    order = [verdict.value for verdict in Verdict]
    names = sorted(counted, key=lambda v: order.index(v) if v in order else len(order))
    return ", ".join(f"{counted[name]:,} {name}" for name in names)


def token_line(tokens: pa.Table) -> str:
    """Return what became of the generated tokens."""
    if not tokens.num_rows:
        return "no logits were compared"
    line = f"{plural(tokens.num_rows, 'token')}: {tally(tokens.column('verdict'))}"
    largest = pc.max(tokens.column("kl")).as_py()
    return line if largest is None else f"{line}; largest KL {largest:.2g} nats"


def _divergence_facts(comparison: Comparison, divergence: Divergence) -> dict[str, list[str]]:
    row = find(comparison, divergence)
    found: dict[str, list[str]] = {}
    if row is not None:
        found["where"] = [_where(divergence, comparison, row)]
    found["how sure"] = [f"{divergence.kind}: {KINDS.get(divergence.kind, 'see the table')}"]
    if divergence.unchecked:
        left = plural(divergence.unchecked, "record")
        found["how sure"].append(f"first among those checked: {left} before it could not be")
    if row is not None:
        found["why"] = [why(comparison.results.slice(row, 1).to_pylist()[0])]
    found["evidence"] = [line for line in divergence.evidence if line not in found.get("why", ())]
    found["suspects"] = list(divergence.suspects[:3])
    if len(divergence.suspects) > 3:
        found["suspects"].append(f"and {len(divergence.suspects) - 3} more with a warning")
    return found


def _where(divergence: Divergence, comparison: Comparison, row: int) -> str:
    parts = [f"run {comparison.results.column('run')[row].as_py()}", f"token {divergence.token}"]
    named = (("row", divergence.row), ("position", divergence.position))
    return ", ".join([*parts, *(f"{name} {value}" for name, value in named if value is not None)])


def _findings(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each of the first findings, and how many more there are."""
    lines = [_finding(finding) for finding in findings[:_FINDINGS]]
    rest = len(findings) - len(lines)
    return [*lines, f"and {rest} more"] if rest else lines


def _first(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _finding(finding: Finding) -> str:
    values = f"{_short(finding.golden)} / {_short(finding.candidate)}"
    return f"{finding.subject}: {values}" + (f" ({finding.meaning})" if finding.meaning else "")


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def _counts(comparison: Comparison) -> str:
    results = comparison.results
    if not results.num_rows:
        return "no pair of tensors"
    return f"{plural(results.num_rows, 'pair')}: {tally(results.column('verdict'))}"


def _left_out(comparison: Comparison) -> list[str]:
    """Return what no pair covers, by side, verdict and reason, the most frequent first."""
    table = comparison.unmatched
    names = ("side", "verdict", "reason")
    counted = Counter(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    lines = [
        f"{plural(n, 'record')} of the {side} {verdict}" + (f": {reason}" if reason else "")
        for (side, verdict, reason), n in counted.most_common(3)
    ]
    rest = sum(counted.values()) - sum(n for _, n in counted.most_common(3))
    return [*lines, f"and {plural(rest, 'record')} more"] if rest else lines
