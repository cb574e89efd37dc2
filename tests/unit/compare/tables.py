"""Tables of results and tokens made by hand, for what judges them."""

from typing import Any

import pyarrow as pa

from hf_dumper.core.verdicts import RESULT_SCHEMA, TOKEN_SCHEMA

PLAIN = {
    **{"run": 0, "forward": 0, "token": 0, "phase": "prefill", "class": "M", "param": ""},
    **{"call": 0, "op": "", "axes": "row,pos,-", "dtype": "float32", "candidate_dtype": "float32"},
    **{"shape": [1, 8, 4], "candidate_shape": [1, 8, 4], "elements": 32, "truncated": 0},
    **{"max_abs": 0.0, "rel_l2": 0.0, "token_rel_l2": 0.0, "channel_rel_l2": 0.0},
    **{"fraction_outside": 0.0, "mask_mismatches": 0, "extra": {}, "rule": "", "reason": ""},
}


def result(module: str, slot: str = "output", error: float = 0.0, **fields: Any) -> dict[str, Any]:
    """Return a row of the results whose three relative errors are `error`."""
    errors = {"max_abs": error, **dict.fromkeys(("rel_l2", "token_rel_l2"), error)}
    return {**PLAIN, "module": module, "slot": slot, **errors, **fields}


def results(*rows: dict[str, Any]) -> pa.Table:
    """Return rows as results; calls without numbers are numbered as if each followed the last."""
    numbered = [{"seq_in": 2 * i, "seq_out": 2 * i + 1, **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered, RESULT_SCHEMA)


def tokens(*rows: dict[str, Any]) -> pa.Table:
    """Return rows as tokens."""
    plain = {"run": 0, "row": 0, "position": 0, "golden_id": 1, "candidate_id": 1}
    numbered = [{**plain, "token": i, **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered, TOKEN_SCHEMA)
