"""Loading by name: joined prompts, rows, errors that help, runs that were cut off."""

import json
import os
import random
import shutil
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import DumpError, DumpFormatError, KeyNotFoundError
from hf_dumper.store import DirectorySink, NativeReader
from hf_dumper.store.describe import fill_statistics
from tests.batches import BatchMaker

MANIFEST = {"identity": {"model": "Tiny<b>"}}


class Dump:
    """A dump under construction: `forward` adds one, `reader` commits and opens."""

    def __init__(self, path, **options):
        self.path = path
        self.sink = DirectorySink(path, MANIFEST, **options)
        self.maker = BatchMaker()
        self.is_open = False

    def forward(self, forward, token, *tensors, rows=1, cols=1):
        """Add a forward; a tensor is (module, tensor, axes) or with fields of its record."""
        if not self.is_open:
            self.sink.open_run(RunInfo(-1, "generate"))
            self.is_open = True
        self.maker.begin(forward, token, rows=rows, cols=cols)
        for module, tensor, axes, *fields in tensors:
            self.maker.add(module, tensor, axes=axes, **dict(*fields))
        self.sink.write(self.maker.end())
        return self

    def commit(self):
        self.sink.commit_run(RunResult({}, {}))
        self.is_open = False
        return self

    def reader(self):
        if self.is_open:
            self.commit()
        return NativeReader(self.path)


def column(reader, name, **filters):
    return [getattr(key, name) for key in reader.keys(**filters)]


@pytest.fixture
def dump(tmp_path):
    return Dump(tmp_path / "dump")


@pytest.fixture
def chunked(dump):
    """Return the reader of a prompt of 2 rows and 5 columns that came in three forwards."""
    x = torch.arange(20.0).reshape(2, 5, 2)
    for forward, (start, stop) in enumerate([(0, 2), (2, 4), (4, 5)]):
        part = x[:, start:stop].contiguous()
        dump.forward(
            forward,
            0,
            ("hidden", part, "row,pos,-"),
            ("flat", part.flatten(0, 1), "row*pos,-"),
            ("scores", part[:, :, None], "row,pos,pos,-"),
            ("unknown", part, ""),
            ("logits", part[:, -1:].clone(), "row,pos,-"),
            ("cache", x[:, :stop].clone(), "row,pos,-"),
            rows=2,
            cols=stop - start,
        )
    return dump.reader(), x


class TestJoin:
    def test_a_prompt_in_chunks_is_joined_along_positions(self, chunked):
        reader, x = chunked
        assert torch.equal(reader.load("hidden"), x)

    def test_rows_and_positions_in_one_axis_are_joined_row_by_row(self, chunked):
        reader, x = chunked
        assert torch.equal(reader.load("flat"), x.flatten(0, 1))

    def test_a_tensor_of_the_last_columns_only_is_that_of_the_last_forward(self, dump):
        for forward in range(2):
            dump.forward(
                forward, 0, ("logits", torch.full((1, 1, 2), forward), "row,pos,-"), cols=3
            )
        assert dump.reader().load("logits").unique().tolist() == [1]

    def test_a_tensor_that_covers_the_cache_is_that_of_the_last_forward(self, chunked):
        reader, x = chunked
        assert torch.equal(reader.load("cache"), x)

    @pytest.mark.parametrize("module", ["scores", "unknown"])
    def test_without_one_position_axis_a_forward_must_be_chosen(self, chunked, module):
        reader, x = chunked
        with pytest.raises(KeyNotFoundError, match=r"forwards 0, 1, 2 .*forward="):
            reader.load(module)
        assert reader.load(module, forward=2).flatten().tolist() == x[:, 4:].flatten().tolist()

    def test_a_row_is_picked_after_joining(self, chunked):
        reader, x = chunked
        assert torch.equal(reader.load("hidden", row=1), x[1])
        assert torch.equal(reader.load("flat", row=1), x[1])

    def test_parts_that_do_not_fit_ask_for_a_forward(self, dump):
        for forward in range(2):
            dump.forward(forward, 0, ("a", torch.ones(1, 1, 2 + forward), "row,pos,-"))
        with pytest.raises(KeyNotFoundError, match="forward="):
            dump.reader().load("a")


class TestRow:
    def test_a_row_in_a_flat_axis_is_found_by_the_number_of_rows(self, dump):
        dump.forward(0, 0, ("a", torch.arange(12).reshape(6, 2), "row*pos,-"), rows=3, cols=2)
        assert dump.reader().load("a", row=2).tolist() == [[8, 9], [10, 11]]

    def test_without_a_row_axis_there_is_no_row(self, dump):
        dump.forward(0, 0, ("a", torch.ones(3, 2), "pos,-"))
        with pytest.raises(KeyNotFoundError, match="no row axis"):
            dump.reader().load("a", row=0)

    @pytest.mark.parametrize("row", [-1, 3])
    def test_a_row_outside_of_the_batch_is_an_error(self, dump, row):
        dump.forward(0, 0, ("a", torch.ones(3, 2), "row,-"), rows=3)
        with pytest.raises(KeyNotFoundError, match="rows 0 to 2"):
            dump.reader().load("a", row=row)


class TestLoad:
    def test_names_may_begin_with_root(self, dump):
        dump.forward(0, 0, ("model.norm", torch.ones(1), ""))
        assert dump.reader().load("root.model.norm").tolist() == [1]

    def test_an_aligned_tensor_is_not_copied(self, dump):
        dump.forward(0, 0, ("a", torch.ones(4), ""))
        reader = dump.reader()
        assert reader.load("a").data_ptr() == reader.load("a").data_ptr()

    def test_a_tensor_that_is_not_aligned_is_copied_to_where_it_is(self, dump):
        values = torch.randn(3, dtype=torch.float64)
        dump.forward(0, 0, ("a", torch.ones(3, dtype=torch.bool), ""), ("b", values, ""))
        tensor = dump.reader().load("b")
        assert torch.equal(tensor, values)
        assert tensor.data_ptr() % 8 == 0

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.empty(0, 3),
            torch.tensor(7),
            torch.randn(3).bfloat16(),
            torch.randn(2, dtype=torch.complex64),
            torch.randn(2, dtype=torch.complex128),
            torch.randn(5).to(torch.float8_e4m3fn),
            torch.tensor([2**64 - 1], dtype=torch.uint64),
        ],
        ids=str,
    )
    def test_every_kind_of_tensor_comes_back(self, dump, tensor):
        dump.forward(0, 0, ("a", tensor, ""))
        found = dump.reader().load("a")
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.reshape(-1).view(torch.uint8).tolist() == (
            tensor.reshape(-1).view(torch.uint8).tolist()
        )

    def test_calls_of_one_module_are_apart(self, dump):
        dump.forward(0, 0, *(("a", torch.tensor(i), "", {"call": i}) for i in range(3)))
        assert [int(dump.reader().load("a", call=i)) for i in range(3)] == [0, 1, 2]

    def test_functions_are_loaded_by_key(self, dump):
        dump.forward(0, 0, ("a", torch.tensor(5), "", {"op": "silu.0"}))
        reader = dump.reader()
        with pytest.raises(KeyNotFoundError, match=r"inside functions only.*'silu\.0'"):
            reader.load("a")
        assert [int(reader.load_key(key)) for key in reader.keys(op="silu.0")] == [5]

    def test_without_a_run_number_there_must_be_one_run(self, dump):
        for _ in range(2):
            dump.forward(0, 0, ("a", torch.ones(1), "")).commit()
        with pytest.raises(KeyNotFoundError, match="2 runs: 0, 1"):
            dump.reader().load("a")
        assert dump.reader().load("a", run=1).tolist() == [1]

    def test_values_that_were_not_kept_are_told_of(self, tmp_path):
        dump = Dump(tmp_path / "d", tensors=False, statistics=True)
        dump.forward(0, 0, ("a", torch.ones(1), ""))
        with pytest.raises(KeyNotFoundError, match="values were not stored"):
            dump.reader().load("a")

    def test_a_skipped_tensor_gives_its_reason(self, dump):
        dump.forward(0, 0)
        dump.maker.begin(1).skip("a", "sparse layout")
        dump.sink.write(dump.maker.end())
        with pytest.raises(KeyNotFoundError, match="sparse layout"):
            dump.reader().load("a")


class TestUnknownNames:
    @pytest.fixture
    def reader(self, dump):
        return dump.forward(3, 2, ("model.layers.0.mlp", torch.ones(1), "")).reader()

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ({"module": "model.layer.0.mlp"}, "Did you mean 'model.layers.0.mlp'|Known: 'model"),
            ({"slot": "outputs"}, "has no slot 'outputs'.*'output'"),
            ({"token": 5}, "has no token 5 .*Recorded: 2"),
            ({"call": 1}, "has no call 1 .*Recorded: 0"),
            ({"forward": 2}, "has no forward 2 .*Recorded: 3"),
            ({"run": 8}, "No run 8 .*Runs: 0"),
        ],
    )
    def test_the_message_says_which_part_and_what_there_is(self, reader, key, message):
        with pytest.raises(KeyNotFoundError, match=message):
            reader.load(**{"module": "model.layers.0.mlp", "token": 2} | key)

    def test_names_keep_their_case_in_messages(self, dump):
        reader = dump.forward(0, 0, ("Model.Norm", torch.ones(1), "")).reader()
        with pytest.raises(KeyNotFoundError, match=r"Module 'Model\.Norm' has no slot"):
            reader.load("Model.Norm", "input.0")


class TestKeys:
    def test_skipped_records_are_left_out_unless_asked_for(self, dump):
        dump.forward(0, 0, ("a", torch.ones(1), ""))
        dump.maker.begin(1).skip("b", "why")
        dump.sink.write(dump.maker.end())
        reader = dump.reader()
        assert column(reader, "module") == ["a"]
        assert column(reader, "module", status="skipped") == ["b"]

    def test_keys_go_over_all_runs(self, dump):
        for _ in range(2):
            dump.forward(0, 0, ("a", torch.ones(1), "")).commit()
        assert column(dump.reader(), "run") == [0, 1]
        assert column(dump.reader(), "run", run=1) == [1]

    def test_the_root_has_its_two_names_here_too(self, dump):
        reader = dump.forward(0, 0, ("root", torch.ones(1), "")).reader()
        assert column(reader, "module", module="") == ["root"]

    @pytest.mark.parametrize("filters", [{"token": "x"}, {"token": 2**40}, {"shape": [1]}])
    def test_a_value_that_the_column_cannot_hold_is_an_error(self, dump, filters):
        with pytest.raises(KeyNotFoundError, match="Column"):
            dump.reader().keys(**filters)

    def test_none_finds_what_is_absent(self, dump):
        reader = dump.forward(0, 0, ("a", torch.ones(1), "")).reader()
        assert len(list(reader.keys(count=None))) == 1


class TestStatistics:
    def test_they_are_made_of_the_bytes_when_the_capture_made_none(self, dump):
        maker = dump.maker
        dump.forward(0, 0, ("a", torch.tensor([1.0, 3.0]), ""), ("c", torch.tensor([1j]), ""))
        owner = maker.begin(1, 1).add("a", torch.tensor([5.0]))
        maker.alias("b", owner)
        maker.skip("s", "why")
        dump.sink.write(maker.end())
        reader = dump.reader()
        assert reader.statistics().column("mean").to_pylist() == [2.0, None, 5.0, 5.0, None]
        assert reader.statistics().schema == reader.index().schema

    def test_they_equal_those_of_the_capture(self, tmp_path):
        tensors = [("a", torch.randn(50), ""), ("b", torch.arange(9), "")]
        late = Dump(tmp_path / "late").forward(0, 0, *tensors).reader()
        soon = Dump(tmp_path / "soon", statistics=True).forward(0, 0, *tensors).reader()
        assert late.statistics().to_pylist() == soon.statistics().to_pylist()

    def test_types_shapes_and_empty_tensors_side_by_side(self, tmp_path):
        tensors = [
            ("a", torch.randn(3, 5), ""),
            ("b", torch.randn(7).bfloat16(), ""),
            ("c", torch.empty(0, 4), ""),
            ("d", torch.tensor(True), ""),
            ("e", torch.randn(2, 2, dtype=torch.float64), ""),
            ("f", torch.tensor([torch.inf, torch.nan, 1.0]), ""),
            ("g", torch.randint(-9, 9, (5,), dtype=torch.int8), ""),
            ("h", torch.full((3,), 1e6), ""),
        ]
        late = Dump(tmp_path / "late").forward(0, 0, *tensors).forward(1, 1, *tensors[::-1])
        soon = Dump(tmp_path / "soon", statistics=True).forward(0, 0, *tensors)
        soon.forward(1, 1, *tensors[::-1])
        assert late.reader().statistics().equals(soon.reader().statistics())
        assert late.reader().index().column("count").null_count == 2 * len(tensors)

    @pytest.mark.parametrize("damage", [{"shape": [5]}, {"shape": None}, {"offset": -4}])
    def test_a_row_that_contradicts_itself_is_an_error(self, dump, damage):
        reader = dump.forward(0, 0, ("a", torch.ones(4), ""), ("b", torch.ones(2), "")).reader()
        index = reader.index()
        for name, value in damage.items():
            place, values = index.schema.get_field_index(name), index.column(name).to_pylist()
            values[1] = value
            array = pa.array(values, index.schema.field(name).type)
            index = index.set_column(place, index.schema.field(name), array)
        rows = [row for row in index.to_pylist() if row["module"] == "b"]
        assert [rows[0][name] for name in damage] == list(damage.values())
        with pytest.raises(DumpFormatError, match="damaged"):
            fill_statistics(index, lambda row: reader._values(reader._run(0), row))


class TestCutOff:
    def test_an_open_run_is_read_up_to_its_last_forward(self, dump):
        dump.forward(0, 0, ("a", torch.ones(2), "")).forward(1, 1, ("a", torch.zeros(2), ""))
        reader = NativeReader(dump.path)
        assert [reader.load("a", token=i).tolist() for i in (0, 1)] == [[1, 1], [0, 0]]
        assert reader.run_info()["complete"] is False

    def test_a_torn_index_costs_the_torn_forward(self, dump):
        dump.forward(0, 0, ("a", torch.ones(2), "")).forward(1, 1, ("a", torch.zeros(2), ""))
        index = dump.path / "runs/000000/rank-0/index.partial"
        index.write_bytes(index.read_bytes()[:-100])
        reader = NativeReader(dump.path)
        assert column(reader, "forward") == [0]

    def test_a_run_folder_without_anything_has_no_records(self, dump):
        (dump.path / "runs" / "000003").mkdir(parents=True)
        reader = NativeReader(dump.path)
        assert reader.runs() == (3,)
        assert reader.run_info()["complete"] is False
        assert (list(reader.keys()), reader.index().num_rows) == ([], 0)
        assert reader.positions().num_rows == 0
        assert reader.statistics().num_rows == 0
        with pytest.raises(KeyNotFoundError):
            reader.load("a")

    def test_a_dump_without_runs_has_none(self, dump):
        reader = dump.reader()
        assert (reader.runs(), list(reader.keys())) == ((), [])
        with pytest.raises(KeyNotFoundError, match="0 runs: none"):
            reader.load("a")

    def test_a_mapped_shard_that_grew_is_mapped_again(self, dump):
        dump.forward(0, 0, ("a", torch.ones(2), ""))
        reader = NativeReader(dump.path)
        first = reader.load("a")
        dump.forward(1, 1, ("a", torch.zeros(2000), ""))
        reader._runs.clear()
        assert reader.load("a", token=1).sum() == 0
        assert first.tolist() == [1, 1]


class TestDamage:
    """A dump may come from anywhere: what it claims is checked before it is believed."""

    @pytest.fixture
    def committed(self, dump):
        return dump.forward(0, 0, ("a", torch.arange(4.0), "row")).commit().path

    def change(self, path, **columns):
        index = path / "runs/000000/rank-0/index.parquet"
        table = pq.read_table(index)
        for name, value in columns.items():
            field = table.schema.field(name)
            values = pa.array([value], field.type)
            table = table.set_column(table.schema.get_field_index(name), field, values)
        pq.write_table(table, index)
        return NativeReader(path)

    @pytest.mark.parametrize(
        "shard",
        [
            "../shard-00000.safetensors",
            "/etc/passwd",
            "..",
            "",
            "a/b.safetensors",
            "shard\x00.safetensors",
            ".hidden.safetensors",
            "missing.safetensors",
        ],
    )
    def test_a_shard_is_a_plain_name_in_its_folder(self, committed, shard):
        with pytest.raises(DumpFormatError):
            self.change(committed, shard=shard).load("a")

    def test_a_shard_is_no_link_out_of_the_dump(self, committed, tmp_path):
        (tmp_path / "secret").write_bytes(b"x" * 8192)
        shard = committed / "runs/000000/rank-0/shard-00000.safetensors"
        shard.unlink()
        shard.symlink_to(tmp_path / "secret")
        with pytest.raises(DumpFormatError, match="leaves the dump"):
            NativeReader(committed).load("a")

    def test_a_shard_is_a_regular_file(self, committed):
        shard = committed / "runs/000000/rank-0/shard-00000.safetensors"
        shard.unlink()
        os.mkfifo(shard)
        with pytest.raises(DumpFormatError, match="no regular file"):
            NativeReader(committed).load("a")

    @pytest.mark.parametrize(
        "columns",
        [
            {"offset": -1},
            {"offset": None},
            {"offset": 2**62},
            {"offset": 4097},
            {"nbytes": 2**62},
            {"nbytes": -16},
            {"nbytes": None},
            {"shape": None},
            {"shape": [5]},
            {"shape": [-2, -2]},
            {"shape": [None]},
            {"shape": [2**62, 2**62]},
            {"shape": [0, 2**62, 4], "nbytes": 0},
            {"dtype": "float64"},
            {"dtype": "quint8", "nbytes": 4},
            {"dtype": "Tensor"},
            {"dtype": None},
        ],
        ids=str,
    )
    def test_numbers_that_contradict_each_other_are_refused(self, committed, columns):
        with pytest.raises(DumpFormatError):
            self.change(committed, **columns).load("a")

    @pytest.mark.parametrize("column", ["module", "slot", "op", "token", "forward", "rank"])
    def test_a_key_without_a_value_is_refused(self, committed, column):
        with pytest.raises(DumpFormatError, match=column):
            self.change(committed, **{column: None}).load("a")

    @pytest.mark.parametrize("axes", [None, "row,row,row,row", ",,,", "nonsense"])
    def test_axes_that_do_not_fit_are_no_crash(self, committed, axes):
        reader = self.change(committed, axes=axes)
        assert reader.load("a").shape == (4,)
        if axes != "row,row,row,row":
            with pytest.raises(KeyNotFoundError):
                reader.load("a", row=0)

    @pytest.mark.parametrize("size", [0, 10, 4095, 4100])
    def test_a_shard_that_is_too_short_is_named(self, committed, size):
        shard = committed / "runs/000000/rank-0/shard-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:size])
        with pytest.raises(DumpFormatError, match="shard-00000"):
            NativeReader(committed).load("a")

    def test_a_missing_shard_is_named(self, committed):
        (committed / "runs/000000/rank-0/shard-00000.safetensors").unlink()
        with pytest.raises(DumpFormatError, match=r"shard-00000\.safetensors is missing"):
            NativeReader(committed).load("a")

    @pytest.mark.parametrize("name", ["index.parquet", "positions.parquet"])
    def test_damaged_tables_are_named(self, committed, name):
        (committed / "runs/000000/rank-0" / name).write_bytes(b"PAR1 no PAR1")
        reader = NativeReader(committed)
        with pytest.raises(DumpFormatError, match=name):
            reader.load("a", row=0)

    @pytest.mark.parametrize("open_run", [False, True])
    def test_a_flipped_bit_anywhere_gives_a_value_or_an_error_of_ours(self, dump, open_run):
        dump.forward(0, 0, ("a", torch.arange(4.0), "row"), ("b", torch.ones(1), ""))
        path = dump.path if open_run else dump.commit().path
        chance = random.Random(0)
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            whole = file.read_bytes()
            for _ in range(100):
                data = bytearray(whole)
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                file.write_bytes(data)
                with suppress(DumpError):
                    self.use(path)
            file.write_bytes(whole)
        self.use(path)

    def use(self, path):
        with NativeReader(path) as reader:
            reader.run_info(0)
            reader.statistics(0).to_pylist()
            reader.positions(0).to_pylist()
            for key in reader.keys(run=0):
                reader.load_key(key)
                reader.load(key.module, run=0, row=0) if key.module == "a" else None

    def test_damaged_run_facts_are_named(self, committed):
        (committed / "runs/000000/run.json").write_text("{")
        with pytest.raises(DumpFormatError, match=r"run\.json is damaged"):
            NativeReader(committed).run_info()

    @pytest.mark.parametrize("version", [0, 2, "1", None])
    def test_an_unknown_version_is_refused(self, committed, version):
        manifest = json.loads((committed / "manifest.json").read_text())
        (committed / "manifest.json").write_text(json.dumps(manifest | {"format_version": version}))
        with pytest.raises(DumpFormatError, match="format_version"):
            NativeReader(committed)


class TestWhole:
    def test_the_tree_comes_back(self, tmp_path):
        assert Dump(tmp_path / "d", tree={"name": "root"}).reader().tree() == {"name": "root"}

    def test_a_dump_without_a_tree_says_so(self, dump):
        with pytest.raises(KeyNotFoundError, match=r"model_tree\.json"):
            dump.reader().tree()

    def test_a_run_without_a_trace_says_so(self, dump):
        dump.forward(0, 0, ("a", torch.ones(1), ""))
        with pytest.raises(KeyNotFoundError, match=r"Run 0 of .* has no trace"):
            dump.reader().trace()

    def test_a_dump_without_weights_says_so(self, dump):
        with pytest.raises(KeyNotFoundError, match="dump_weight=True"):
            dump.reader().weights()

    def test_its_repr_is_one_short_line(self, dump):
        dump.forward(0, 0, ("a", torch.ones(250), ""), ("b", torch.ones(1), ""))
        text = repr(dump.reader())
        assert text.endswith("Tiny<b>, 1 run, 1 token, 2 records, 1 kB, complete>")

    def test_the_repr_of_an_open_run_counts_its_index(self, dump):
        dump.forward(0, 0, ("a", torch.ones(250), ""))
        assert "1 record, 1 kB, 1 incomplete" in repr(NativeReader(dump.path))

    def test_the_repr_of_a_damaged_dump_does_not_raise(self, dump):
        path = dump.forward(0, 0, ("a", torch.ones(1), "")).commit().path
        (path / "runs/000000/run.json").write_text("{")
        assert "damaged" in repr(NativeReader(path))

    def test_html_is_escaped(self, dump):
        assert "Tiny&lt;b&gt;" in dump.reader()._repr_html_()

    def test_a_dump_may_be_moved(self, dump, tmp_path):
        dump.forward(0, 0, ("a", torch.ones(1), "")).commit()
        shutil.move(dump.path, tmp_path / "elsewhere")
        assert NativeReader(tmp_path / "elsewhere").load("a").tolist() == [1]
