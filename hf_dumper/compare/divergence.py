"""Which module is at fault: the first whose inputs agree and whose output does not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.types import ROOT
from hf_dumper.core.verdicts import BAD, Divergence, Finding, Verdict

_MOST_SUSPECTS: Final = 8
_COLUMNS: Final = (
    *("run", "forward", "token", "seq_in", "seq_out", "module", "slot", "call", "op"),
    *("row", "position", "verdict", "rule"),
)
_SOUND: Final = frozenset({Verdict.IDENTICAL, Verdict.PASS, Verdict.WARN})

CallKey = tuple[int, int, str, int, str]
"""Run, forward, module, seq_in, op."""


@dataclass(slots=True)
class Call:
    """One call of a module: its judged inputs and outputs, as rows of the results."""

    key: CallKey
    call: int
    seq_out: int | None
    inputs: list[Mapping[str, Any]]
    outputs: list[Mapping[str, Any]]

    @property
    def first_bad(self) -> Mapping[str, Any] | None:
        """The first output that is a fault."""
        return next((row for row in self.outputs if row["verdict"] in BAD), None)


def find_divergence(results: pa.Table, unmatched: pa.Table) -> tuple[Divergence, int] | None:
    """Return the first divergence and its row of the results, None when nothing is bad.

    The order is that of completion, so children come before their parents. A call with a bad input
    only passes a fault on. The first call with a bad output that passes nothing on decides: it is
    the source when all its inputs were judged and are good; when they were not, it is the first
    failing one, and nothing more is known. Where it has children that are no source themselves, the
    fault is in what its own forward does between them. What went into the root before that was bad
    is no module's fault.
    """
    rows = _rows(results)
    calls = _calls(rows)
    given = next((row for row in rows if row["module"] == ROOT and _is_bad_input(row)), None)
    source = next((call for call in calls if _is_source(call)), None)
    bad = None if source is None else source.first_bad
    if given is not None and (bad is None or _forward(given) <= _forward(bad)):
        return _divergence(given, "inputs", rows), given["number"]
    if source is not None and bad is not None:
        kind, unseen = _kind(source, calls, unmatched)
        unseen += _only_in_candidate(bad, unmatched)
        return _divergence(bad, kind, rows, unseen), bad["number"]
    bad = next((row for row in rows if row["verdict"] in BAD), None)
    if bad is None:
        return None
    return _divergence(bad, "first failing", rows), bad["number"]


def from_findings(inputs: Sequence[Finding], results: pa.Table) -> Divergence | None:
    """Return the divergence that differing inputs are, None without any."""
    if not inputs:
        return None
    weights = [finding for finding in inputs if finding.subject.startswith("weight ")]
    if len(weights) < len(inputs):
        other = next(f for f in inputs if f not in weights)
        evidence = tuple(f"{f.subject}: {f.meaning}" for f in inputs[:_MOST_SUSPECTS])
        return Divergence(ROOT, other.subject, 0, None, None, "inputs", evidence)
    names = [finding.subject.removeprefix("weight ") for finding in weights]
    first = min(names, key=_order_of_use(results))
    module, _, parameter = first.rpartition(".")
    listed = ", ".join(names[:_MOST_SUSPECTS]) + (", ..." if len(names) > _MOST_SUSPECTS else "")
    evidence = (f"{len(names)} of the weights differ: {listed}",)
    return Divergence(module or ROOT, f"weight.{parameter}", 0, None, None, "weights", evidence)


def _order_of_use(results: pa.Table) -> Any:
    """Return a key that sorts names of weights by when their module was first entered."""
    entered: dict[str, int] = {}
    for module, seq_in in zip(
        results.column("module").to_pylist(), results.column("seq_in").to_pylist(), strict=True
    ):
        entered[module] = min(seq_in, entered.get(module, seq_in))
    last = len(results) * 2 + 1
    return lambda name: (entered.get(name.rpartition(".")[0], last), name)


def _rows(results: pa.Table) -> list[Mapping[str, Any]]:
    columns = [results.column(name).to_pylist() for name in _COLUMNS]
    names = (*_COLUMNS, "number")
    rows = zip(*columns, range(results.num_rows), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _calls(rows: Iterable[Mapping[str, Any]]) -> list[Call]:
    """Return the calls of modules in order of completion, which is that of the rows."""
    calls: dict[CallKey, Call] = {}
    for row in rows:
        if row["seq_in"] is None:
            continue
        # The same call has one seq_in; what is chosen after the root returned is another one.
        key = row["run"], row["forward"], row["module"], row["seq_in"], row["op"]
        call = calls.setdefault(key, Call(key, row["call"], row["seq_out"], [], []))
        (call.inputs if _is_input(row) else call.outputs).append(row)
    return list(calls.values())


def _is_source(call: Call) -> bool:
    return call.first_bad is not None and not any(_is_bad_input(row) for row in call.inputs)


def _kind(call: Call, calls: Sequence[Call], unmatched: pa.Table) -> tuple[str, list[str]]:
    """Return the kind of a source, and the slots of its inputs that were not judged."""
    unseen = [row["slot"] for row in call.inputs if row["verdict"] not in _SOUND]
    unseen += _unmatched_inputs(call, unmatched)
    if not call.inputs or unseen:
        return "first failing", unseen or ["all inputs"]
    return "functional" if any(_is_inside(other, call) for other in calls) else "source", []


def _unmatched_inputs(call: Call, unmatched: pa.Table) -> list[str]:
    run, forward, module, *_ = call.key
    wanted = {"side": "golden", "run": run, "forward": forward, "module": module}
    return _inputs_where(unmatched, wanted | {"call": call.call})


def _only_in_candidate(bad: Mapping[str, Any], unmatched: pa.Table) -> list[str]:
    """Return the inputs that only the candidate gave the module of a divergence: a mask, say."""
    wanted = {"side": "candidate", "module": bad["module"], "token": bad["token"]}
    slots = _inputs_where(unmatched, wanted)
    return [f"{slot} (of the candidate only)" for slot in dict.fromkeys(slots)]


def _inputs_where(unmatched: pa.Table, wanted: Mapping[str, Any]) -> list[str]:
    for name, value in wanted.items():
        unmatched = unmatched.filter(pc.equal(unmatched.column(name), value))
    slots: list[str] = unmatched.column("slot").to_pylist()
    return [slot for slot in slots if slot.startswith("input")]


def _is_inside(inner: Call, outer: Call) -> bool:
    if inner.key[0] != outer.key[0] or inner.seq_out is None or outer.seq_out is None:
        return False
    return outer.key[3] < inner.key[3] and inner.seq_out < outer.seq_out


def _divergence(
    bad: Mapping[str, Any],
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    unseen: Sequence[str] = (),
) -> Divergence:
    before = rows[: bad["number"]]
    suspects = dict.fromkeys(
        row["module"] for row in before if row["verdict"] == Verdict.WARN and not _is_input(row)
    )
    unchecked = sum(row["verdict"] == Verdict.NOT_COMPUTABLE for row in before)
    evidence = [bad["rule"]] if bad["rule"] else []
    evidence += [f"not checked: {', '.join(unseen)}"] if unseen else []
    return Divergence(
        module=bad["module"],
        slot=bad["slot"],
        token=bad["token"],
        position=bad["position"],
        row=bad["row"],
        kind=kind,
        evidence=tuple(evidence),
        suspects=tuple(suspects)[:_MOST_SUSPECTS],
        unchecked=unchecked,
    )


def _forward(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["run"], row["forward"]


def _is_input(row: Mapping[str, Any]) -> bool:
    return bool(row["slot"].startswith("input"))


def _is_bad_input(row: Mapping[str, Any]) -> bool:
    return _is_input(row) and row["verdict"] in BAD
