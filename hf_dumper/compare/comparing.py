"""The whole path: two readers in, one `Comparison` out, which can be judged again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from hf_dumper.compare.adapters import INSIDE
from hf_dumper.compare.asked import NOT_ASKED
from hf_dumper.compare.cut import depths, is_after_cut, other_logits
from hf_dumper.compare.divergence import find_divergence, from_findings
from hf_dumper.compare.inputs import INCOMPLETE, input_findings, regime_findings
from hf_dumper.compare.judge import judge_results, levels_of_runs, worst_of
from hf_dumper.compare.limits import Limits
from hf_dumper.compare.naming import describe
from hf_dumper.compare.pairing import Pairing
from hf_dumper.compare.pairs import Alone
from hf_dumper.compare.problems import SKIPPED_BY
from hf_dumper.compare.records import Side
from hf_dumper.compare.registry import Metric
from hf_dumper.compare.results import Measurer, as_table, measure_all
from hf_dumper.compare.rows import Match, match_rows, rows_of
from hf_dumper.compare.saved import SavableComparison
from hf_dumper.compare.tokens import (
    DIVERGED,
    SAMPLED,
    judge_logits,
    judge_tokens,
    judged_rows,
    token_rows,
)
from hf_dumper.compare.tokens import as_table as token_table
from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.verdicts import GOOD, UNMATCHED_SCHEMA, Comparison, Finding, Verdict

LOGITS: Final = "logits"
"""Subject of the finding that judges all tokens together."""


def compare_dumps(
    golden: DumpReader,
    candidate: DumpReader,
    limits: Limits,
    metrics: Mapping[str, Metric] | None = None,
) -> Comparison:
    """Compare two opened dumps.

    Raises:
        DumpFormatError: an index or a shard is damaged.
        ConfigError: a metric of the user's own fails.
    """
    ours, theirs = Side(golden, "golden"), Side(candidate, "candidate")
    matches, *alone = match_rows(rows_of(ours), rows_of(theirs))
    pairing = Pairing(ours, theirs, matches)
    measurer = Measurer(ours, theirs, metrics or {})
    results = as_table(measure_all(pairing.pairs(), measurer))
    unjudged = SavableComparison(
        verdict=Verdict.NOTHING,
        divergence=None,
        results=results,
        unmatched=_unmatched(pairing.alone),
        tokens=token_table(_tokens(ours, theirs, matches)),
        coverage={
            "rows": len(matches),
            "golden rows unmatched": len(alone[0]),
            "candidate rows unmatched": len(alone[1]),
            **pairing.counts,
        },
        inputs=input_findings(ours, theirs, matches, (alone[0], alone[1])),
        regime=regime_findings(ours, theirs, matches),
        golden=ours.name,
        candidate=theirs.name,
    )
    judged, number = _judge(unjudged, limits)
    if judged.divergence is None or number is None:
        return judged
    pair = pairing.pair_of(judged.results.slice(number, 1).to_pylist()[0])
    if pair is None:
        return judged
    return replace(judged, divergence=describe(judged.divergence, pair, ours, theirs))


def judge_comparison(comparison: Comparison, limits: Limits) -> Comparison:
    """Return a comparison as other limits judge it; no tensor is read.

    Evidence that was found in the tensors is kept where the divergence stays the same.
    """
    judged, _ = _judge(comparison, limits)
    before, after = comparison.divergence, judged.divergence
    if before and after and (before.module, before.slot) == (after.module, after.slot):
        same = replace(after, evidence=before.evidence, snippet=before.snippet)
        return replace(judged, divergence=same)
    return judged


def _judge(comparison: Comparison, limits: Limits) -> tuple[Comparison, int | None]:
    """Return the judged comparison and the row of the results that its divergence names."""
    levels = levels_of_runs(comparison.results)
    tokens = judge_tokens(comparison.tokens, levels, limits)
    results = judge_results(comparison.results, tokens, limits)
    regime = tuple(f for f in comparison.regime if f.subject != LOGITS)
    logits = judge_logits(tokens, levels, limits)
    if logits is not None and logits[0] != Verdict.PASS:
        regime += (Finding(LOGITS, logits[3], logits[2], logits[1]),)
    found = find_divergence(results, comparison.unmatched)
    divergence, number = (None, None) if found is None else found
    if comparison.inputs:
        divergence, number = from_findings(comparison.inputs, results), None
    judged = replace(
        comparison,
        divergence=divergence,
        results=results,
        tokens=tokens,
        coverage=_coverage(comparison.coverage, results),
        regime=regime,
        limits=dict(limits),
    )
    return replace(judged, verdict=_overall(judged, None if logits is None else logits[0])), number


def _overall(comparison: Comparison, logits: Verdict | None) -> Verdict:
    """Return the verdict of the whole: the first of these that holds. Nothing passes by absence."""
    counts = Counter(comparison.results.column("verdict").to_pylist())
    chosen = Counter(comparison.tokens.column("verdict").to_pylist())
    judged = _judged_pairs(comparison.results) or _judged_logits(comparison.tokens)
    divergence = comparison.divergence
    if comparison.inputs or (divergence is not None and divergence.kind == "inputs"):
        return Verdict.INPUTS
    if not judged:
        return Verdict.NOT_COMPUTABLE if counts[Verdict.NOT_COMPUTABLE] else Verdict.NOTHING
    worst = worst_of(counts)
    if worst not in (None, Verdict.WARN):
        return worst
    if chosen[Verdict.NON_FINITE]:
        return Verdict.NON_FINITE
    if Verdict.FAIL in (logits, *chosen) or _diverged(comparison.tokens):
        return Verdict.FAIL
    if worst or Verdict.WARN in (logits, *chosen):
        return Verdict.WARN
    if any(f.subject == INCOMPLETE for f in comparison.regime) or _unjudged(comparison.results):
        return Verdict.NOT_COMPUTABLE
    missing = ("golden rows unmatched", "positions missing in outputs")
    if any(map(comparison.coverage.get, missing)) or _absent(comparison):
        return Verdict.UNMATCHED
    if chosen[Verdict.TRUNCATED] or comparison.coverage.get("positions truncated"):
        return Verdict.TRUNCATED
    return Verdict.IDENTICAL if not counts.keys() - {Verdict.IDENTICAL} else Verdict.PASS


def _judged_pairs(results: pa.Table) -> int:
    """Count the pairs with a verdict on what was computed; the ids chosen last are not enough."""
    columns = (results.column(name).to_pylist() for name in ("verdict", "slot"))
    return sum(
        verdict != Verdict.NOT_COMPUTABLE and slot != "token_ids"
        for verdict, slot in zip(*columns, strict=True)
    )


def _judged_logits(tokens: pa.Table) -> int:
    """Count the tokens whose logits were judged, under whatever names the sides hold them."""
    return len(judged_rows(tokens))


def _tokens(golden: Side, candidate: Side, matches: Sequence[Match]) -> Iterator[dict[str, Any]]:
    """Return the rows of the tokens; those of a model of another depth are told, never judged."""
    layers = depths(golden.reader.manifest, candidate.reader.manifest)
    rows = token_rows(golden, candidate, matches)
    if layers is None:
        return rows
    told = {"verdict": Verdict.NOT_COMPUTABLE, "reason": other_logits(layers)}
    return (row | told for row in rows)


def _diverged(tokens: pa.Table) -> bool:
    """Tell whether a token differs for another reason than the dice."""
    columns = (tokens.column(name).to_pylist() for name in ("verdict", "reason"))
    return any(
        verdict == DIVERGED and reason != SAMPLED for verdict, reason in zip(*columns, strict=True)
    )


def _unjudged(results: pa.Table) -> bool:
    """Tell whether both sides hold an output that nothing vouches for.

    Values inside a module may have no order to align by, as those of experts: then the output of
    the module that holds them speaks for them, where it is good.
    """
    names = ("run", "forward", "module", "slot", "verdict", "reason")
    rows = list(zip(*(results.column(name).to_pylist() for name in names), strict=True))
    outputs = [row for row in rows if not row[3].startswith("input")]
    doubtful = {row[:3] for row in outputs if row[4] not in GOOD}
    sound = {row[:3] for row in outputs} - doubtful
    return any(
        verdict == Verdict.NOT_COMPUTABLE
        and SKIPPED_BY not in reason
        and (run, forward, module.rpartition(".")[0]) not in sound
        for run, forward, module, _, verdict, reason in outputs
    )


def _absent(comparison: Comparison) -> bool:
    """Tell whether the candidate lacks outputs of the golden that nothing else speaks for.

    A call of which another output was judged may have one less: another attention implementation
    returns no weights. What the candidate was not asked for, and layers that a shallower one cannot
    have, are no loss.
    """
    names = ("run", "token", "module", "slot", "verdict")
    columns = (comparison.results.column(name).to_pylist() for name in names)
    spoken_for = {
        (run, token, module)
        for run, token, module, slot, verdict in zip(*columns, strict=True)
        if verdict != Verdict.NOT_COMPUTABLE and not slot.startswith("input")
    }
    alone = comparison.unmatched
    columns = (alone.column(name).to_pylist() for name in ("side", *names, "reason"))
    return any(
        side == "golden"
        and verdict == Verdict.UNMATCHED
        and not slot.startswith("input")
        and reason not in (NOT_ASKED, INSIDE)
        and not is_after_cut(reason)
        and (run, token, module) not in spoken_for
        for side, run, token, module, slot, verdict, reason in zip(*columns, strict=True)
    )


def _coverage(counts: Mapping[str, int], results: pa.Table) -> dict[str, int]:
    """Return the counts with the pairs of each verdict."""
    kept = {name: n for name, n in counts.items() if not name.startswith("pairs ")}
    verdicts = Counter(results.column("verdict").to_pylist())
    return kept | {f"pairs {verdict}": verdicts[verdict] for verdict in sorted(verdicts)}


def _unmatched(alone: Iterable[Alone]) -> pa.Table:
    names = ("run", "forward", "token", "module", "slot", "call", "op")
    rows = [
        {
            "side": one.side,
            "verdict": one.verdict,
            "reason": one.reason,
            **{name: getattr(one.record, name) for name in names},
        }
        for one in alone
    ]
    return pa.Table.from_pylist(rows, UNMATCHED_SCHEMA)
