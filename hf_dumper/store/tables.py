"""The tables of a run on disk: an Arrow stream while it grows, a Parquet file once committed.

A stream is read up to its last whole message, so a kill costs at most the message in flight.
"""

import os
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


_LEAST_ROWS, _MOST_ROWS = 2048, 1 << 16
"""Rows of a group. A group costs some 10 KB and, however few rows it has, a millisecond."""

_BUFFER: Final = 1 << 20
"""Bytes that wait in memory: the tables of a small run are in no file before its end."""

_SHARE: Final = 8
"""A group has one row to so many that were written: what is left for the end stays a small part."""


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


class ParquetBuilder:
    """A Parquet file that is encoded while its table grows; nobody can read it before its end."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin a file that will be at `path`; nothing is written yet."""
        self._path = path
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._written = 0
        self._spool = _Spool(temporary(path))
        self._writer: pq.ParquetWriter | None = None

    def append(self, batch: pa.RecordBatch) -> None:
        """Take a batch; it is encoded once there are enough rows for a group."""
        self._open()
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= min(_MOST_ROWS, max(_LEAST_ROWS, self._written // _SHARE)):
            self._encode()

    def finish(self, *, durable: bool = False) -> None:
        """Encode what waits, and give the file its name, over what has it now."""
        try:
            writer = self._open()
            if self._waiting:
                self._encode()
            writer.close()
            self._output.close()
            self._spool.close()
            publish(self._spool.path, self._path, durable=durable)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Give the file up: what it takes of a full disk, others need."""
        self._spool.discard()

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            names = self._schema.names
            self._output = pa.BufferedOutputStream(pa.PythonFile(self._spool, "w"), _BUFFER)
            self._writer = pq.ParquetWriter(
                self._output,
                self._schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=[name for name in _DICTIONARY if name.partition(".")[0] in names],
                column_encoding={name: how for name, how in _ENCODINGS.items() if name in names},
            )
        return self._writer

    def _encode(self) -> None:
        group = pa.Table.from_batches(self._waiting, self._schema)
        self._open().write_table(group, row_group_size=max(1, self._rows))
        self._written += self._rows
        self._waiting, self._rows = [], 0


class _Spool:
    """A file under a temporary name, created when there is something to write.

    Arrow writes what it holds when it is destroyed, in a forked process, too: that goes nowhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._file: GrowingFile | None = None
        self._size = 0
        self._pid = os.getpid()

    def write(self, data: pa.Buffer) -> int:
        """Append bytes."""
        if not self.closed and self._pid == os.getpid():
            self._file = self._file or GrowingFile(self.path)
            self._file.append(memoryview(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Close the file; may be called twice."""
        self.closed = True
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Close the file and remove it; may be called twice."""
        self.close()
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file = None


def write_parquet(path: Path, table: pa.Table, *, durable: bool = False) -> None:
    """Replace a Parquet file in one step."""
    file = ParquetBuilder(path, table.schema)
    for batch in table.to_batches():
        file.append(batch)
    file.finish(durable=durable)


class GrowingTable:
    """A table of a run: a stream that readers see while it grows, a Parquet file at its end.

    The file is encoded along with the stream, so that little is left to do at the end. Should that
    go wrong, it is made of the stream.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        """Begin the stream `<name>.partial`; `<name>.parquet` comes at the end."""
        self._partial = folder / f"{name}.partial"
        self._path = folder / f"{name}.parquet"
        self._schema = schema
        self._stream = TableStream(self._partial, schema)
        self._file: ParquetBuilder | None = ParquetBuilder(self._path, schema)

    def append(self, batch: pa.RecordBatch) -> None:
        """Append a batch; it is in the stream when this returns."""
        self._stream.append(batch)
        if self._file is not None:
            try:
                self._file.append(batch)
            except (OSError, pa.ArrowException):
                self._drop_file()

    def finish(self, *, durable: bool = False) -> None:
        """Write the Parquet file; the stream is still there, and nothing is appended any more."""
        self._stream.close()
        if self._file is None:
            table = read_stream(self._partial, self._schema, trusted=True)
            write_parquet(self._path, table, durable=durable)
        else:
            self._file.finish(durable=durable)
            self._file = None

    def remove_stream(self) -> None:
        """Remove the stream, once its table has its name."""
        self._partial.unlink()

    def close(self) -> None:
        """Leave the files as they are; may be called twice."""
        self._stream.close()
        self._drop_file()

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None


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
