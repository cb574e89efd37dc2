"""Streams with torn tails, and damaged tables."""

import gc
import os
import random
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_dumper.errors import DumpFormatError
from hf_dumper.store import tables
from hf_dumper.store.tables import (
    GrowingTable,
    TableStream,
    read_parquet,
    read_stream,
    write_parquet,
)

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


class TestGrowingTable:
    """A Parquet file that is encoded in groups while its table grows."""

    @pytest.fixture
    def groups(self, monkeypatch):
        monkeypatch.setattr(tables, "_LEAST_ROWS", 6)
        monkeypatch.setattr(tables, "_BUFFER", 1)

    def grown(self, folder, batches=20):
        table = GrowingTable(folder, "t", SCHEMA)
        for i in range(batches):
            table.append(batch(i))
        return table

    def want(self, batches=20):
        return pa.Table.from_batches([batch(i) for i in range(batches)], SCHEMA)

    def test_it_holds_what_its_stream_holds(self, tmp_path, groups):
        table = self.grown(tmp_path)
        stream = read_stream(tmp_path / "t.partial", SCHEMA)
        table.finish()
        table.remove_stream()
        file = pq.ParquetFile(tmp_path / "t.parquet")
        assert file.metadata.row_group(0).num_rows == 6
        assert file.num_row_groups > 3
        assert read_parquet(tmp_path / "t.parquet", SCHEMA).equals(stream)
        assert stream.equals(self.want())
        assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]

    def test_groups_grow_with_the_table(self, tmp_path, groups):
        table = self.grown(tmp_path, 400)
        table.finish()
        file = pq.ParquetFile(tmp_path / "t.parquet")
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert sum(rows) == 800
        assert max(rows) <= 800 // 8 + 2
        assert len(rows) < 40

    def test_columns_of_several_groups_come_as_dictionaries(self, tmp_path, groups):
        self.grown(tmp_path).finish()
        table = read_parquet(tmp_path / "t.parquet", SCHEMA, encoded=["word"])
        assert table.column("word").to_pylist() == self.want().column("word").to_pylist()

    def test_a_table_without_rows_has_its_columns(self, tmp_path):
        GrowingTable(tmp_path, "t", SCHEMA).finish()
        assert read_parquet(tmp_path / "t.parquet", SCHEMA).num_rows == 0

    def test_what_cannot_be_encoded_early_is_encoded_at_the_end(
        self, tmp_path, groups, monkeypatch
    ):
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(28, "No space left on device")

            patch.setattr("hf_dumper.store.tables._Spool.write", full)
            table = self.grown(tmp_path)
        table.finish()
        assert read_parquet(tmp_path / "t.parquet", SCHEMA).equals(self.want())

    def test_one_that_is_closed_before_its_end_leaves_the_stream_alone(self, tmp_path, groups):
        table = self.grown(tmp_path)
        table.close()
        table.close()
        assert [path.name for path in tmp_path.iterdir()] == ["t.partial"]
        assert read_stream(tmp_path / "t.partial", SCHEMA).equals(self.want())

    def test_a_small_table_is_in_no_file_before_its_end(self, tmp_path):
        table = self.grown(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["t.partial"]
        table.close()

    def test_a_forked_process_writes_nothing_into_it(self, tmp_path, groups):
        table = self.grown(tmp_path)
        wait, tell = os.pipe()
        if not (child := os.fork()):
            try:
                os.read(wait, 1)
                del table  # Arrow writes what it holds when it is destroyed
                gc.collect()
            finally:
                os._exit(0)
        table.append(batch(20))
        table.finish()
        os.write(tell, b"!")
        assert os.waitpid(child, 0)[1] == 0
        assert read_parquet(tmp_path / "t.parquet", SCHEMA).equals(self.want(21))
