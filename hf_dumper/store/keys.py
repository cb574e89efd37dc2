"""Filters rows of the index and makes keys of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_dumper.core.names import near
from hf_dumper.core.types import SKIPPED, TensorKey
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store.layout import INDEX_SCHEMA
from hf_dumper.store.run_reader import RunReader


def check_filters(filters: Mapping[str, Any]) -> None:
    """Make sure that each filter is a column of the index and has a value of its type.

    Raises:
        KeyNotFoundError: one is not; the message names the nearest columns.
    """
    for name, value in filters.items():
        if name not in INDEX_SCHEMA.names:
            msg = f"The index has no column {name!r}.{near(name, INDEX_SCHEMA.names)}"
            raise KeyNotFoundError(msg)
        _scalar(name, value)


def matching_keys(run: RunReader, filters: Mapping[str, Any]) -> Iterator[TensorKey]:
    """Yield the keys of a run whose columns equal the filters, in order of capture.

    Skipped records, which have no tensor, are left out unless `status` is a filter.
    """
    table = run.index(list(dict.fromkeys((*TensorKey._fields, "status", *filters))))
    if "status" not in filters:
        table = table.filter(pc.not_equal(table.column("status"), SKIPPED))
    for name, value in filters.items():
        column = table.column(name)
        table = table.filter(
            pc.is_null(column) if value is None else pc.equal(column, _scalar(name, value))
        )
    columns = (table.column(name).to_pylist() for name in TensorKey._fields)
    return map(TensorKey._make, zip(*columns, strict=True))


def _scalar(name: str, value: Any) -> pa.Scalar:
    kind = INDEX_SCHEMA.field(name).type
    try:
        if not pa.types.is_nested(kind):
            return pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        msg = f"Column {name!r} of the index holds {kind}, so it cannot equal {value!r}."
        raise KeyNotFoundError(msg) from error
    msg = f"Column {name!r} of the index holds {kind}, which is no filter."
    raise KeyNotFoundError(msg)
