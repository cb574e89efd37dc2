"""Streams with torn tails, and damaged tables."""

import random
from contextlib import suppress

import pyarrow as pa
import pytest

from hf_dumper.errors import DumpFormatError
from hf_dumper.store.tables import TableStream, read_parquet, read_stream, write_parquet

SCHEMA = pa.schema([("number", pa.int32()), ("word", pa.utf8())])


def batch(i):
    return pa.record_batch([[i, i + 1], [f"word {i}", None]], schema=SCHEMA)


@pytest.fixture
def stream(tmp_path):
    """Return the path of a stream of three batches, and its length before each of them."""
    path = tmp_path / "t.partial"
    table = TableStream(path, SCHEMA)
    lengths = []
    for i in range(3):
        lengths.append(path.stat().st_size)
        table.append(batch(i))
    table.close()
    return path, lengths


def test_a_stream_holds_every_batch(stream):
    path, _ = stream
    assert read_stream(path, SCHEMA).column("number").to_pylist() == [0, 1, 1, 2, 2, 3]


def test_a_stream_without_batches_is_an_empty_table(tmp_path):
    TableStream(tmp_path / "t.partial", SCHEMA).close()
    assert read_stream(tmp_path / "t.partial", SCHEMA).num_rows == 0


def test_a_torn_tail_costs_one_batch_wherever_it_is_cut(stream):
    path, lengths = stream
    whole = path.read_bytes()
    for end in range(lengths[2], len(whole)):
        path.write_bytes(whole[:end])
        assert read_stream(path, SCHEMA).num_rows == 4, end


def test_a_damaged_stream_never_raises_anything_else_and_never_crashes(stream):
    path, lengths = stream
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(lengths[0], len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with suppress(DumpFormatError):
            read_stream(path, SCHEMA).to_pylist()


def test_a_stream_of_other_columns_is_refused(stream):
    path, _ = stream
    with pytest.raises(DumpFormatError, match="'word'"):
        read_stream(path, pa.schema([("number", pa.int32()), ("word", pa.int64())]))


@pytest.mark.parametrize("data", [b"", b"no arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_file_that_is_no_stream_is_refused(tmp_path, data):
    (tmp_path / "t.partial").write_bytes(data)
    with pytest.raises(DumpFormatError, match=r"t\.partial is damaged"):
        read_stream(tmp_path / "t.partial", SCHEMA)


def test_parquet_keeps_types_and_values(tmp_path):
    table = pa.Table.from_batches([batch(0), batch(1)])
    write_parquet(tmp_path / "t.parquet", table)
    assert read_parquet(tmp_path / "t.parquet", SCHEMA).equals(table)


def test_columns_come_in_the_order_asked_for(tmp_path):
    write_parquet(tmp_path / "t.parquet", pa.Table.from_batches([batch(0)]))
    table = read_parquet(tmp_path / "t.parquet", SCHEMA, ["word", "number"])
    assert table.column_names == ["word", "number"]


def test_damaged_parquet_names_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    write_parquet(path, pa.Table.from_batches([batch(0)]))
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], b"x" * len(whole)):
        path.write_bytes(data)
        with pytest.raises(DumpFormatError, match=r"t\.parquet"):
            read_parquet(path, SCHEMA)


def test_parquet_of_other_columns_is_refused(tmp_path):
    write_parquet(tmp_path / "t.parquet", pa.table({"number": [1]}))
    with pytest.raises(DumpFormatError, match="'number', 'word'"):
        read_parquet(tmp_path / "t.parquet", SCHEMA)
