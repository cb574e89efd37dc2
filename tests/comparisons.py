"""Comparisons made by hand, of any verdict."""

import pyarrow as pa

from hf_dumper.core.verdicts import (
    METRICS,
    RESULT_SCHEMA,
    TOKEN_SCHEMA,
    UNMATCHED_SCHEMA,
    Comparison,
    Divergence,
    Finding,
    Verdict,
)


def table(schema, rows):
    """Return a table in which what is not given is null."""
    return pa.Table.from_pylist(
        [{name: row.get(name) for name in schema.names} for row in rows], schema
    )


def pair(module, slot="output", verdict=Verdict.PASS, **columns):
    """Return a row of `results`."""
    values = dict.fromkeys(METRICS, 0.001) | {"cosine": 1.0}
    fixed = {"run": 0, "forward": 0, "token": 0, "phase": "prefill", "call": 0, "op": ""}
    described = {"class": "Linear", "param": "", "axes": "row,pos,-", "dtype": "float32"}
    sizes = {"shape": [1, 9, 64], "candidate_shape": [1, 9, 64], "elements": 576, "truncated": 0}
    named = {"module": module, "slot": slot, "verdict": str(verdict), "reason": ""}
    counts = dict.fromkeys(("golden_nonfinite", "candidate_nonfinite", "mask_mismatches"), 0)
    more = {"candidate_dtype": "float32", "rule": "", "extra": []}
    return {**fixed, **described, **sizes, **values, **counts, **named, **more, **columns}


def token(number, golden=5, candidate=5, verdict="identical", **columns):
    """Return a row of `tokens`."""
    place = {"run": 0, "row": 0, "token": number, "position": 8 + number}
    ids = {"golden_id": golden, "candidate_id": candidate, "top1_equal": golden == candidate}
    return {**place, **ids, "verdict": verdict, "reason": "", "margin": 1.5, "kl": 1e-6, **columns}


def compared(verdict, pairs=(), tokens=(), unmatched=(), **fields):
    """Return a comparison of the rows; the order of pairs is that of completion."""
    rows = [{"seq_in": 2 * i, "seq_out": 2 * i + 1, **row} for i, row in enumerate(pairs)]
    coverage = {"pairs": len(rows)}
    given = {"divergence": None, "coverage": coverage, "golden": "g", "candidate": "c", **fields}
    return Comparison(
        verdict=verdict,
        results=table(RESULT_SCHEMA, rows),
        unmatched=table(UNMATCHED_SCHEMA, unmatched),
        tokens=table(TOKEN_SCHEMA, tokens),
        **given,
    )


def passed():
    """Return a comparison in which all agrees."""
    pairs = [pair("model.norm"), pair("lm_head", verdict=Verdict.IDENTICAL, rel_l2=0.0)]
    setting = (Finding("dtype", "float32", "bfloat16", "rounds differently"),)
    return compared(Verdict.PASS, pairs, [token(0), token(1)], regime=setting)


SNIPPET = """\
from hf_dumper import open_dump
golden, candidate = open_dump("g"), open_dump("c")
g = golden.load("model.layers.1.self_attn", "output.0", 0, run=0)
c = candidate.load("model.layers.1.self_attn", "output.0", 0, run=0)
print((c - g).abs().max())
"""


def failed():
    """Return a comparison with a fault in the attention of layer 1."""
    inside = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    fault = pair(
        "model.layers.1.self_attn",
        "output.0",
        Verdict.FAIL,
        rel_l2=0.31,
        rule="rel_l2 0.31 > 0.00001 (fp32)",
    )
    pairs = [*(pair(name) for name in inside), fault, pair("model.layers.1", verdict=Verdict.FAIL)]
    divergence = Divergence(
        "model.layers.1.self_attn",
        "output.0",
        0,
        3,
        0,
        "functional",
        ("channels 64..127 negated at position 3",),
        suspects=("model.layers.0.mlp",),
        unchecked=2,
        snippet=SNIPPET,
    )
    tokens = [token(0), token(1, 5, 7, "diverged", golden_text=" a", candidate_text=" b\n")]
    left = [
        {"side": "golden", "module": "model.norm", "verdict": "unmatched", "reason": "not there"}
    ]
    return compared(Verdict.FAIL, pairs, tokens, left, divergence=divergence)
