"""What is checked of every way of generating; each function is one column of the table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_dumper import DumpConfig, compare, open_dump, register_hook
from tests.generation.modes import MODES, Mode, Witness, generate, witnessed

TOLERANCE = 2e-4
"""Largest difference of a logit between a step with cache and a replay without, float32."""


class Case(NamedTuple):
    """One dumped generation, and what the witness saw of the same one without the package."""

    model: Any
    inputs: dict[str, torch.Tensor]
    mode: Mode
    plain: Any
    dumped: Any
    witness: Witness
    path: Path
    hooks: list[object]


def hooks_of(model: Any) -> list[object]:
    """Return every hook of a model; transformers sets some itself."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    modules = model.modules()
    return [hook for m in modules for kind in kinds for hook in getattr(m, kind).values()]


def made(model: Any, inputs: dict[str, torch.Tensor], name: str, path: Path) -> Case:
    """Generate plainly and dumped."""
    mode = MODES[name]
    plain, witness = witnessed(model, inputs, mode)
    hooks = hooks_of(model)
    with register_hook(model, DumpConfig(path, "all", dump_kv_cache=True)):
        dumped = generate(model, inputs, mode)
    return Case(model, inputs, mode, plain, dumped, witness, path, hooks)


def same_bits(case: Case) -> None:
    """Tokens and logits are those of the plain model, and nothing of ours is left on it."""
    assert torch.equal(case.plain.sequences, case.dumped.sequences)
    assert len(case.plain.logits) == len(case.dumped.logits)
    assert all(map(torch.equal, case.plain.logits, case.dumped.logits))
    assert hooks_of(case.model) == case.hooks
    assert "generate" not in case.model.__dict__


def token_and_phase(case: Case) -> None:
    """Every forward has the token and the phase that the witness saw it at."""
    with open_dump(case.path) as dump:
        table = dump.index().select(["forward", "token", "phase"]).to_pylist()
    found = {(row["forward"], row["token"], row["phase"]) for row in table}
    expected = set()
    for number, seen in enumerate(case.witness.forwards):
        phase = "guidance" if seen.beside else "decode" if seen.token else "prefill"
        expected.add((number, seen.token, phase))
    assert found == expected


def positions(case: Case) -> None:
    """The position of each column is the number of real tokens before it in its row."""
    with open_dump(case.path) as dump:
        table = dump.positions().to_pylist()
    found = {(r["forward"], r["row"], r["column"]): r["position"] for r in table}
    assert found == expected_positions(case)


def expected_positions(case: Case) -> dict[tuple[int, int, int], int]:
    """Work positions out from what went in: how many columns there were, and which are padding."""
    mask = case.inputs["attention_mask"]
    cached, expected = {False: 0, True: 0}, {}
    keeps = case.mode.options.get("use_cache", True)
    for number, seen in enumerate(case.witness.forwards):
        rows, cols = seen.ids.shape
        start = cached[seen.beside] if keeps else 0
        for row in range(rows):
            own = [1] * (start + cols)
            if not seen.beside:
                real = mask[row // (rows // len(mask))].tolist()
                own[: len(real)] = real[: len(own)]
            for column in range(start, start + cols):
                place = sum(own[:column]) if own[column] else -1
                expected[number, row, column - start] = place
        cached[seen.beside] = start + cols
    return expected


def row_identity(case: Case) -> None:
    """Every row of every token continues the ids that processors were shown for it."""
    with open_dump(case.path) as dump:
        found = prefixes(dump)
        trace = dump.trace().to_pylist()
    prompt = case.inputs["input_ids"].shape[1]
    for token, sequences in enumerate(case.witness.sequences):
        assert found[token] == [tuple(ids) for ids in sequences[:, prompt:].tolist()]
    assert len(found) == len(case.witness.sequences)
    mains = [seen for seen in case.witness.forwards if not seen.beside]
    for row in (r for r in trace if r["token"]):
        ids = next(s.ids for s in mains if s.token == row["token"])
        assert row["input_ids"] == ids[row["row"]].tolist()


def prefixes(dump: Any) -> list[list[tuple[int, ...]]]:
    """Return, per token, the generated ids that each row continues, as the trace tells them."""
    rows: dict[int, dict[int, tuple[int, ...]]] = {}
    for row in dump.trace().to_pylist():
        token, number = row["token"], row["row"]
        parent = row.get("parent", number)
        before = rows[token - 1][parent] if token else ()
        own = (row["input_ids"][-1],) if token else ()
        rows.setdefault(token, {})[number] = (*before, *own)
    return [[rows[token][number] for number in sorted(rows[token])] for token in sorted(rows)]


def values(case: Case) -> None:
    """Recorded logits are those of `generate()`, bit by bit, and of a replay without cache."""
    prompt = case.inputs["input_ids"].shape[1]
    with open_dump(case.path) as dump:
        for token, logits in enumerate(case.plain.logits):
            recorded = dump.load("root", "output.logits", token)
            assert torch.equal(recorded[:, -1], logits)
            if case.mode.replayed:
                sequences = case.witness.sequences[token]
                hidden = dump.load("model", "output.last_hidden_state", token)
                _replay(case, sequences, prompt, (recorded, hidden))


def _replay(
    case: Case, sequences: torch.Tensor, prompt: int, recorded: tuple[torch.Tensor, ...]
) -> None:
    mask = case.inputs["attention_mask"]
    copies = len(sequences) // len(mask)
    for row, ids in enumerate(sequences):
        real = mask[row // copies].bool()
        alone = torch.cat([ids[:prompt][real], ids[prompt:]])[None]
        with torch.no_grad():
            out = case.model(alone, use_cache=False, output_hidden_states=True)
        replayed = out.logits[0, -1], out.hidden_states[-1][0, -1]
        for ours, theirs in zip(recorded, replayed, strict=True):
            assert (ours[row, -1] - theirs).abs().max() < TOLERANCE


def beside(case: Case) -> None:
    """A forward of guidance gives what the model gives for its ids alone."""
    fed: list[torch.Tensor] = []
    with open_dump(case.path) as dump:
        for number, seen in enumerate(case.witness.forwards):
            if not seen.beside:
                continue
            keeps = case.mode.options.get("use_cache", True)
            fed = [*fed, seen.ids] if keeps else [seen.ids]
            recorded = dump.load("root", "output.logits", seen.token, forward=number)
            with torch.no_grad():
                out = case.model(torch.cat(fed, dim=1), use_cache=False)
            assert (recorded[:, -1] - out.logits[:, -1]).abs().max() < TOLERANCE
    assert bool(fed) == (case.mode.options.get("guidance_scale", 1.0) != 1.0)


def returned_ids(case: Case) -> None:
    """run.json has the ids that were returned, and for beams their rows and scores."""
    prompt = case.inputs["input_ids"].shape[1]
    with open_dump(case.path) as dump:
        info, found = dump.run_info(), prefixes(dump)
    new = case.plain.sequences[:, prompt:].tolist()
    assert info["complete"]
    assert info["generated_ids"] == new
    assert info["auto_compile"] == "disabled by hf_dumper"
    for ids, path in zip(new, (info.get("beams") or {}).get("rows", ()), strict=False):
        assert [found[token][row] for token, row in enumerate(path)] == [
            tuple(ids[:token]) for token in range(len(path))
        ]
        assert len(path) == len(ids)


def aligned(case: Case) -> None:
    """A dump agrees with itself, and one of the greedy tokens with that of plain greedy search."""
    assert compare(case.path, case.path).verdict == "identical"
    if not case.mode.greedy:
        return
    path = case.path / "plain"
    with register_hook(case.model, DumpConfig(path, "all")):
        greedy = generate(case.model, case.inputs, MODES["greedy"])
    assert torch.equal(greedy.sequences, case.dumped.sequences)
    found = compare(path, case.path)
    assert found.verdict in ("identical", "pass"), found.divergence
    assert found.coverage["rows"] == len(case.inputs["input_ids"])
    assert found.coverage.get("positions missing") == 0


CHECKS: dict[str, Callable[[Case], None]] = {
    "same bits": same_bits,
    "token, phase": token_and_phase,
    "positions": positions,
    "row = prefix": row_identity,
    "values": values,
    "beside": beside,
    "returned ids": returned_ids,
    "aligned": aligned,
}
