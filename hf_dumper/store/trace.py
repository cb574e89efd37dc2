"""The trace of a generation on disk: one row per generated token and row of the batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from hf_dumper.core.trace import TokenTrace
from hf_dumper.errors import DumpFormatError, KeyNotFoundError
from hf_dumper.store.tables import read_parquet, write_parquet

TRACE: Final = "trace.parquet"

_INTS: Final = pa.list_(pa.int64())

TRACE_SCHEMA: Final = pa.schema(
    [
        ("token", pa.int32()),
        ("row", pa.int32()),
        ("forward", pa.int32()),
        ("phase", pa.utf8()),
        ("input_ids", _INTS),
        ("position_ids", _INTS),
        ("mask", pa.list_(pa.int8())),
        ("positions", pa.list_(pa.int32())),
        ("cache", pa.utf8()),
        ("cache_length", pa.int64()),
        ("use_cache", pa.bool_()),
        ("logits_shape", _INTS),
        ("top_ids", _INTS),
        ("top_probabilities", pa.list_(pa.float64())),
        ("margin", pa.float64()),
        ("chosen_id", pa.int64()),
        ("chosen_probability", pa.float64()),
        ("chosen_rank", pa.int64()),
        ("drafted", pa.int32()),
        ("accepted", pa.int32()),
    ]
)

_BEFORE_DRAFTS: Final = pa.schema(list(TRACE_SCHEMA)[:-2])
"""The columns of traces that were written before speculative decoding was followed."""
PARENT: Final = "parent"

BEAM_SCHEMA: Final = TRACE_SCHEMA.append(pa.field(PARENT, pa.int32()))
"""With beams, a row says which row of the token before it continues."""

PREDICTIONS: Final = "prompt_predictions.parquet"

PREDICTIONS_SCHEMA: Final = pa.schema(
    [
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("position", pa.int32()),
        ("id", pa.int64()),
        ("top_ids", _INTS),
        ("top_probabilities", pa.list_(pa.float64())),
        ("margin", pa.float64()),
        ("next_id", pa.int64()),
        ("next_probability", pa.float64()),
        ("next_rank", pa.int64()),
    ]
)

_OF_CHOSEN: Final = ("chosen_id", "chosen_probability", "chosen_rank")

_PER_ROW: Final = ("input_ids", "position_ids", "mask", "positions")


def trace_table(tokens: Sequence[TokenTrace | Mapping[str, Any]]) -> pa.Table:
    """Return the trace of a run, of tokens or of rows that were read."""
    rows = [
        row for token in tokens for row in ([token] if isinstance(token, Mapping) else _rows(token))
    ]
    has_beams = any(row.get(PARENT) is not None for row in rows)
    return pa.Table.from_pylist(rows, BEAM_SCHEMA if has_beams else TRACE_SCHEMA)


def write_trace(folder: Path, table: pa.Table, *, durable: bool = False) -> None:
    """Write the trace of a run into its folder."""
    write_parquet(folder / TRACE, table, durable=durable)


def read_trace(folder: Path, what: str) -> pa.Table:
    """Read the trace of a run; `what` names the run in an error.

    Raises:
        KeyNotFoundError: the run has none.
        DumpFormatError: the file is damaged.
    """
    try:
        return _read_trace(folder / TRACE)
    except FileNotFoundError as error:
        msg = (
            f"{what} has no trace: it is no generate() that went on to its end, or an older "
            "release wrote it. Its run_info() has the ids of prompt and result."
        )
        raise KeyNotFoundError(msg) from error


def _read_trace(file: Path) -> pa.Table:
    """Read a trace with whichever columns its run has."""
    for schema in (TRACE_SCHEMA, BEAM_SCHEMA):
        with suppress(DumpFormatError):
            return read_parquet(file, schema)
    return _with_drafts(read_parquet(file, _BEFORE_DRAFTS))


def _with_drafts(table: pa.Table) -> pa.Table:
    for name in ("drafted", "accepted"):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.int32()))
    return table


def _rows(trace: TokenTrace) -> Iterator[dict[str, Any]]:
    shared = {
        "token": trace.token,
        "forward": trace.forward,
        "phase": trace.phase,
        "cache": trace.cache,
        "cache_length": trace.cache_length,
        "use_cache": trace.use_cache,
        "logits_shape": trace.logits_shape,
        "drafted": trace.drafted,
        "accepted": trace.accepted,
    }
    known = {name: getattr(trace, name) for name in _PER_ROW}
    arrays = {name: array.tolist() for name, array in known.items() if array is not None}
    for row, chosen in enumerate(trace.chosen.tolist()):
        own = {name: lists[row] for name, lists in arrays.items()}
        own |= {"row": row, "chosen_id": chosen, **_choice(trace, row)}
        if trace.parents is not None:
            own |= {PARENT: int(trace.parents[row]), **dict.fromkeys(_OF_CHOSEN)}
        yield {**shared, **own}


def _choice(trace: TokenTrace, row: int) -> dict[str, Any]:
    found = trace.candidates
    if found is None:
        return {}
    return {
        "top_ids": found.ids[row].tolist(),
        "top_probabilities": found.probabilities[row].tolist(),
        "margin": found.margin[row].item(),
        "chosen_probability": found.chosen_probability[row].item(),
        "chosen_rank": found.chosen_rank[row].item(),
    }


def read_predictions(folder: Path) -> pa.Table | None:
    """Read what the model predicts inside the prompt of a run, None where nobody asked for it.

    Raises:
        DumpFormatError: the file is damaged.
    """
    try:
        return read_parquet(folder / PREDICTIONS, PREDICTIONS_SCHEMA)
    except FileNotFoundError:
        return None
