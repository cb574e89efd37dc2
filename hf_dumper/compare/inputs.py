"""What must be equal before numbers mean anything, and what may vary and explain small ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hf_dumper.compare.adapters import Adapted, adapter_findings
from hf_dumper.compare.cut import DEPTHS, common_depth, depths
from hf_dumper.compare.records import Side
from hf_dumper.compare.rows import Match, Row
from hf_dumper.core.verdicts import Finding

INCOMPLETE: Final = "incomplete run"
"""Subject of the finding of a run that was cut off: such a comparison never passes."""

_FREE: Final = frozenset(
    {"dtype", "torch_dtype", "architectures", "use_cache", "return_dict", "output_attentions"}
    | {"output_hidden_states", "id2label", "label2id", "problem_type", "pretraining_tp"}
)
"""Keys of a configuration that change no number, or whose effect is a regime."""
_MOST: Final = 8
_NOT_CHECKED: Final = "not checked"


def input_findings(
    golden: Side,
    candidate: Side,
    matches: Sequence[Match],
    alone: tuple[Sequence[Row], Sequence[Row]],
) -> tuple[Finding, ...]:
    """Return the differences of model, weights and prompts that make the rest pointless."""
    ours, theirs = golden.reader.manifest, candidate.reader.manifest
    found = [*_class(ours, theirs), *_config(ours, theirs), *_weights(ours, theirs)]
    return (*found, *_prompts(matches, alone))


def regime_findings(golden: Side, candidate: Side, matches: Sequence[Match]) -> tuple[Finding, ...]:
    """Return what differs and may, once each, and what could not be checked."""
    ours, theirs = golden.reader.manifest, candidate.reader.manifest
    return (
        *_incomplete(golden),
        *_incomplete(candidate),
        *_cut(ours, theirs),
        *_identity(ours, theirs),
        *adapter_findings(ours, theirs),
        *_unchecked_weights(ours, theirs),
        *_versions(ours, theirs),
        *_runs(golden, candidate, matches),
    )


def _class(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = (side.get("identity", {}).get("class") for side in (ours, theirs))
    values = golden, candidate
    if golden != candidate:
        yield Finding("model class", *values, f"{values[0]} against {values[1]}")


def _config(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = ours.get("config") or {}, theirs.get("config") or {}
    if not golden or not candidate:
        return
    for key in sorted(golden.keys() | candidate.keys()):
        values = golden.get(key), candidate.get(key)
        if values[0] == values[1] or key in _FREE or key.startswith("_"):
            continue
        if key in (*DEPTHS, "layer_types") and depths(ours, theirs) is not None:
            continue
        meaning = f"{key} is {_short(values[0])} against {_short(values[1])}"
        yield Finding(f"config {key}", *values, meaning)


def _cut(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    layers = depths(ours, theirs)
    if layers is not None:
        yield Finding("layers", layers[0], layers[1], common_depth(layers))


def _weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = ours.get("weights") or {}, theirs.get("weights") or {}
    adapted = Adapted(ours, theirs)
    for name in golden:
        first, second = golden[name], candidate.get(name)
        if second is None or adapted.holds(name):
            continue
        if list(first["shape"]) != list(second["shape"]):
            shapes = list(first["shape"]), list(second["shape"])
            yield Finding(f"weight {name}", *shapes, f"shape {shapes[0]} against {shapes[1]}")
        elif first["dtype"] == second["dtype"] and _differ(first["hash"], second["hash"]):
            hashes = first["hash"], second["hash"]
            yield Finding(f"weight {name}", *hashes, "its bytes are not the same")


def _differ(first: str | None, second: str | None) -> bool:
    return None not in (first, second) and first != second


def _unchecked_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = ours.get("weights"), theirs.get("weights")
    if not golden or not candidate:
        sides = ["hashes" if side else "no hashes" for side in (golden, candidate)]
        meaning = "the weights were not checked: a side has no hashes"
        yield Finding("weights", sides[0], sides[1], meaning)
        return
    both = [name for name in golden if name in candidate]
    kinds = {name: (golden[name]["dtype"], candidate[name]["dtype"]) for name in both}
    converted = [name for name, (first, second) in kinds.items() if first != second]
    if converted:
        first, second = kinds[converted[0]]
        meaning = f"{len(converted)} weights are {first} against {second}: their values not checked"
        yield Finding("weights", first, second, meaning)
    hidden = [n for n in both if None in (golden[n]["hash"], candidate[n]["hash"])]
    if hidden:
        meaning = f"{len(hidden)} weights have no hash (offloaded): not checked"
        yield Finding("weights", _NOT_CHECKED, _NOT_CHECKED, meaning)
    single = [sorted(one.keys() - other.keys()) for one, other in _both_ways(golden, candidate)]
    if any(single):
        meaning = f"weights on one side only: {_short(single[0])} and {_short(single[1])}"
        yield Finding("weights", len(single[0]), len(single[1]), meaning)


def _both_ways(golden: Any, candidate: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (golden, candidate), (candidate, golden)


def _prompts(
    matches: Sequence[Match], alone: tuple[Sequence[Row], Sequence[Row]]
) -> Iterator[Finding]:
    golden, candidate = alone
    if golden and candidate:
        # Prompts without a partner on both sides: not a selection, but other ids.
        for ours, theirs in zip(golden[:_MOST], candidate[:_MOST], strict=False):
            yield _other_prompt(ours, theirs)
    elif not matches:
        counts = len(golden), len(candidate)
        yield Finding(
            "prompts", counts[0], counts[1], f"{counts[0]} rows against {counts[1]}: none in common"
        )


def _other_prompt(ours: Row, theirs: Row) -> Finding:
    subject = f"prompt of run {ours.run}, row {ours.row}"
    if ours.prompt is None or theirs.prompt is None:
        kinds = ["none" if row.prompt is None else "ids" for row in (ours, theirs)]
        return Finding(subject, kinds[0], kinds[1], "one side has no ids to match by")
    pairs = zip(ours.prompt, theirs.prompt, strict=False)
    first = next((i for i, (g, c) in enumerate(pairs) if g != c), None)
    if first is None:
        lengths = len(ours.prompt), len(theirs.prompt)
        return Finding(subject, *lengths, f"{lengths[0]} ids against {lengths[1]}")
    values = ours.prompt[first], theirs.prompt[first]
    return Finding(subject, *values, f"id {first} is {values[0]} against {values[1]}")


def _incomplete(side: Side) -> Iterator[Finding]:
    for run in side.runs:
        info = side.info(run)
        if not info.get("complete", True):
            reason = info.get("incomplete") or "no reason is recorded"
            ours, theirs = (reason, None) if side.word == "golden" else (None, reason)
            meaning = f"run {run} of the {side.word} dump: {reason}"
            yield Finding(INCOMPLETE, ours, theirs, meaning)


def _identity(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = ours.get("identity", {}), theirs.get("identity", {})
    for key in ("dtype", "attn_implementation", "experts_implementation", "device_map"):
        values = golden.get(key), candidate.get(key)
        if values[0] != values[1]:
            yield Finding(key, *values, f"{_short(values[0])} against {_short(values[1])}")


def _versions(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Finding]:
    golden, candidate = ours.get("versions") or {}, theirs.get("versions") or {}
    for name in sorted(golden.keys() | candidate.keys()):
        values = golden.get(name), candidate.get(name)
        if values[0] != values[1]:
            meaning = f"{name} {values[0] or 'absent'} against {values[1] or 'absent'}"
            yield Finding(f"version of {name}", *values, meaning)


def _runs(golden: Side, candidate: Side, matches: Sequence[Match]) -> Iterator[Finding]:
    """Yield what differs between the runs of matched rows, each fact once."""
    seen: set[str] = set()
    for match in matches:
        ours, theirs = golden.info(match.golden.run), candidate.info(match.candidate.run)
        for subject, values in _regime(ours, theirs):
            if subject not in seen and values[0] != values[1]:
                seen.add(subject)
                yield Finding(subject, *values, f"{_short(values[0])} against {_short(values[1])}")
    if any(match.golden.prompt is None for match in matches):
        meaning = "rows without ids were matched by run and row number"
        yield Finding("rows", _NOT_CHECKED, _NOT_CHECKED, meaning)


def _regime(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    inputs = ours.get("inputs") or {}, theirs.get("inputs") or {}
    for name, word in (("rows", "batch"), ("padded", "padding"), ("cache", "cache")):
        yield word, (inputs[0].get(name), inputs[1].get(name))
    options = [info.get("generation_config") or {} for info in (ours, theirs)]
    for name in ("prefill_chunk_size", "do_sample", "followed"):
        yield name, (options[0].get(name), options[1].get(name))
    prompts = ours.get("prompt") or {}, theirs.get("prompt") or {}
    yield "speculation", (prompts[0].get("drafter"), prompts[1].get("drafter"))
    facts = ours.get("regime") or {}, theirs.get("regime") or {}
    for name in sorted(facts[0].keys() | facts[1].keys()):
        yield name, (facts[0].get(name), facts[1].get(name))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
