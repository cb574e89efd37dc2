"""The tables of a run on disk: an Arrow stream while it grows, a Parquet file once committed.

A stream is read up to its last whole message, so a kill costs at most the message in flight.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from hf_dumper.errors import DumpError, DumpFormatError
from hf_dumper.store.durable import publish
from hf_dumper.store.files import GrowingFile, temporary

_STRINGS: Final = ("phase", "module", "class", "slot", "param", "op", "axes", "dtype", "device")
_DICTIONARY: Final = (*_STRINGS, "shard", "status", "reason", "shape.list.element", "nbytes", "run")
_ENCODINGS: Final = {
    "seq_in": "DELTA_BINARY_PACKED",
    "seq_out": "DELTA_BINARY_PACKED",
    "offset": "DELTA_BINARY_PACKED",
    "column": "DELTA_BINARY_PACKED",
    "position": "DELTA_BINARY_PACKED",
    "tensor": "DELTA_BYTE_ARRAY",
}


class TableStream:
    """A table that grows by whole batches and survives a kill between any two of them."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Create the file, schema included, in one step."""
        unfinished = temporary(path)
        self._file = GrowingFile(unfinished, schema.serialize().to_pybytes())
        unfinished.rename(path)

    def append(self, batch: pa.RecordBatch) -> None:
        """Append a batch; it is in the file when this returns."""
        self._file.append(memoryview(batch.serialize()))

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


def write_parquet(path: Path, table: pa.Table, *, durable: bool = False) -> None:
    """Replace a Parquet file in one step."""
    unfinished = temporary(path)
    names = table.column_names
    try:
        pq.write_table(
            table,
            unfinished,
            compression="zstd",
            compression_level=3,
            use_dictionary=[name for name in _DICTIONARY if name.partition(".")[0] in names],
            column_encoding={name: how for name, how in _ENCODINGS.items() if name in names},
        )
    except BaseException:
        unfinished.unlink(missing_ok=True)  # what it takes of a full disk, others need
        raise
    publish(unfinished, path, durable=durable)


def read_stream(path: Path, schema: pa.Schema, *, trusted: bool = False) -> pa.Table:
    """Read the whole batches of a stream; a torn one at the end is left out.

    `trusted` is for a stream that this process has just written.

    Raises:
        FileNotFoundError: there is no such file.
        DumpFormatError: the stream is damaged, or is no table of this schema.
    """
    batches = []
    with _reading(path), pa.memory_map(str(path)) as file:
        _check(path, pa.ipc.read_schema(file), schema)
        while (message := _next_message(file)) is not None:
            batch = pa.ipc.read_record_batch(message, schema)
            if not trusted:
                batch.validate(full=True)
            batches.append(batch)
    return pa.Table.from_batches(batches, schema)


def read_parquet(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    encoded: Sequence[str] = (),
) -> pa.Table:
    """Read the named columns, or all, of a Parquet file.

    Those `encoded` come as dictionaries, as they are in the file: repeated text is not spelt out.

    Raises:
        FileNotFoundError: there is no such file.
        DumpFormatError: the file is damaged, or is no table of this schema.
    """
    with _reading(path), pq.ParquetFile(path, memory_map=True, read_dictionary=encoded) as file:
        _check(path, file.schema_arrow, _encoded_schema(schema, encoded))
        table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
    return table


def encode(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the table with the named columns as dictionaries."""
    for name in names:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(place).dictionary_encode())
    return table


def _encoded_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    for name in names:
        kind = pa.dictionary(pa.int32(), schema.field(name).type)
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    return schema


def _next_message(file: pa.NativeFile) -> pa.ipc.Message | None:
    try:
        return pa.ipc.read_message(file)
    except (EOFError, OSError, pa.ArrowInvalid):
        # The end, or a message that the end of the file cuts: the writer was stopped inside it.
        return None


def _check(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if not found.equals(expected):
        names = [f.name for f in expected if f.name not in found.names or f != found.field(f.name)]
        msg = f"{path} is no table of this format: columns {names or found.names} differ."
        raise DumpFormatError(msg)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises about a damaged file, of whatever kind, into an error of ours."""
    try:
        yield
    except (DumpError, FileNotFoundError):
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        msg = f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise DumpFormatError(msg) from error
