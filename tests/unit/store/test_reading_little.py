"""What opening and loading touch: counted, not timed, since machines differ and files do not."""

import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import DumpFormatError
from hf_dumper.store import DirectorySink, NativeReader, mapping, run_reader
from hf_dumper.store.layout import INDEX_SCHEMA
from hf_dumper.store.lookup import COLUMNS, TEXTS, Lookup
from hf_dumper.store.tables import encode
from tests.batches import BatchMaker

MODULES = [f"model.layers.{i}.mlp" for i in range(4)]


def write(path, forwards=3, modules=MODULES, **options):
    sink = DirectorySink(path, {"identity": {}}, **options)
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker()
    for forward in range(forwards):
        maker.begin(forward, forward, rows=1, cols=1)
        for i, module in enumerate(modules):
            maker.add(module, torch.randn(8) + i, call_index=i, axes="-")
        batch = maker.end()
        sink.write(batch)
        for chunk in batch.spent:
            maker.arena.release(chunk)
    sink.commit_run(RunResult({}, {}))
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "dump")


@pytest.fixture
def index(path):
    return path / "runs/000000/rank-0/index.parquet"


@pytest.fixture
def counted(monkeypatch):
    """Count the calls of what reads files, by name and file; keep the columns asked for."""
    calls, columns = Counter(), []

    def count(owner, name):
        function = getattr(owner, name)

        def counting(path, *rest):
            calls[name, path.name] += 1
            columns.extend(rest[1] if name == "read_parquet" else ())
            return function(path, *rest)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((mapping, "_map_file"), (run_reader, "read_parquet")):
        count(owner, name)
    return calls, columns


def test_opening_reads_the_manifest_only(path, counted):
    calls, _ = counted
    for file in (path / "runs/000000/rank-0").iterdir():
        file.unlink()
    with NativeReader(path) as reader:
        assert reader.runs() == (0,)
        assert reader.run_info()["complete"]
    assert not calls


def test_loading_by_name_maps_a_shard_once_and_reads_the_index_once(path, counted):
    calls, _ = counted
    with NativeReader(path) as reader:
        for module in MODULES:
            for token in range(3):
                reader.load(module, token=token)
    assert calls == {
        ("read_parquet", "index.parquet"): 1,
        ("_map_file", "shard-00000.safetensors"): 1,
    }


def test_loading_by_name_leaves_other_shards_alone(tmp_path, counted):
    calls, _ = counted
    path = write(tmp_path / "many", shard_bytes=40)
    shards = sorted(path.rglob("*.safetensors"))
    assert len(shards) == 12
    for shard in shards[1:]:
        shard.unlink()
    assert NativeReader(path).load(MODULES[0]).shape == (8,)
    assert calls["_map_file", "shard-00000.safetensors"] == 1


def test_loading_by_name_reads_the_columns_it_needs(path, counted):
    _, columns = counted
    NativeReader(path).load(MODULES[0])
    assert sorted(columns) == sorted(COLUMNS)
    assert len(columns) < len(INDEX_SCHEMA) / 2
    assert not {"tensor", "hash", "mean"} & set(columns)


def test_loading_by_name_makes_no_table_of_all_keys(path):
    reader = NativeReader(path)
    reader.load(MODULES[0])
    assert "_by_key" not in vars(reader._run(None).lookup)


def test_text_is_never_spelt_out_for_a_lookup(path):
    table = NativeReader(path)._run(None).lookup._table
    found = {field.name for field in table.schema if pa.types.is_dictionary(field.type)}
    assert found == {
        field.name for field in table.schema if not pa.types.is_integer(field.type)
    } - {"shape"}
    assert found == set(TEXTS)


def test_statistics_of_the_capture_are_read_without_a_shard(tmp_path, counted):
    calls, _ = counted
    path = write(tmp_path / "both", statistics=True)
    for shard in path.rglob("*.safetensors"):
        shard.unlink()
    assert NativeReader(path).statistics().column("mean").null_count == 0
    assert calls == {("read_parquet", "index.parquet"): 1}


def test_opening_and_loading_do_without_pandas(path):
    code = (
        "import sys\nfrom hf_dumper import open_dump\n"
        f"open_dump(sys.argv[1]).load({MODULES[0]!r})\nprint('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("options", [{"row_group_size": 1}, {"use_dictionary": False}], ids=str)
def test_every_name_is_found_however_the_index_is_laid_out(path, index, options):
    values = {
        (module, token): NativeReader(path).load(module, token=token)
        for module in MODULES
        for token in range(3)
    }
    pq.write_table(pq.read_table(index), index, **options)
    reader = NativeReader(path)
    for (module, token), value in values.items():
        assert torch.equal(reader.load(module, token=token), value)
    assert len(list(map(reader.load_key, reader.keys()))) == 12


def test_a_rank_that_is_committed_and_one_that_is_not_are_read_together(path, tmp_path):
    sink = DirectorySink(tmp_path / "other", {"identity": {}}, rank=1)
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker().begin(0, 0)
    maker.add("another", torch.ones(2))
    sink.write(maker.end())
    (tmp_path / "other/runs/000000/rank-1").rename(path / "runs/000000/rank-1")
    reader = NativeReader(path)
    assert [reader.load_key(key).tolist() for key in reader.keys(rank=1)] == [[1, 1]]
    assert reader.load(MODULES[0]).shape == (8,)


@pytest.mark.parametrize("column", ["module", "slot", "op"])
def test_a_dictionary_with_one_text_twice_is_damage(path, column):
    table = encode(NativeReader(path).index().select(list(COLUMNS)), TEXTS)
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 6, pa.int32()), ["a", "a"])
    with pytest.raises(DumpFormatError, match=f"{column!r} has one text twice"):
        Lookup(table.set_column(table.schema.get_field_index(column), column, twice), "run 0")


@pytest.mark.parametrize("statistics", [False, True])
def test_a_committed_record_takes_at_most_60_bytes(tmp_path, statistics):
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in range(100)]
    path = write(tmp_path / "large", 30, modules, statistics=statistics)
    index = path / "runs/000000/rank-0/index.parquet"
    assert index.stat().st_size <= 60 * pq.ParquetFile(index).metadata.num_rows
