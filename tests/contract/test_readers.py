"""What every reader promises; a new one is one more factory of a dump and its reader."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hf_dumper.core.protocols import DumpReader
from hf_dumper.core.types import RunInfo, RunResult, TensorKey
from hf_dumper.errors import DumpFormatError, DumpNotFoundError, KeyNotFoundError
from hf_dumper.store import DirectorySink, MsitReader, MsitSink, NativeReader
from tests.batches import BatchMaker

MANIFEST = {"identity": {"model": "synthetic"}}
VALUES = torch.arange(6.0).reshape(2, 3)


def native(path: Path) -> type[NativeReader]:
    """Write a dump: one run, tokens 0 and 1, "root" and "layer.0", VALUES + token."""
    write(DirectorySink(path, MANIFEST))
    return NativeReader


def msit(path: Path) -> type[MsitReader]:
    """Write the same in msit's layout."""
    write(MsitSink(path, MANIFEST))
    return MsitReader


def write(sink: DirectorySink | MsitSink) -> None:
    sink.open_run(RunInfo(0, "generate"))
    maker = BatchMaker()
    for token in range(2):
        maker.begin(token, token, rows=2, cols=1)
        maker.add("root", VALUES + token, axes="row,-")
        maker.add("layer.0", VALUES + token, axes="row,-")
        sink.write(maker.end())
    sink.commit_run(RunResult({}, {}))


DUMPS: dict[str, Callable[[Path], type[NativeReader]]] = {"native": native, "msit": msit}


@pytest.fixture(params=DUMPS)
def reader(request, tmp_path) -> Iterator[DumpReader]:
    with DUMPS[request.param](tmp_path / "dump")(tmp_path / "dump") as reader:
        yield reader


class TestReader:
    def test_it_is_a_dump_reader(self, reader):
        assert isinstance(reader, DumpReader)

    def test_it_recognises_its_own_dump(self, reader):
        assert type(reader).detect(reader.path)

    def test_it_does_not_recognise_an_empty_folder(self, reader, tmp_path):
        (tmp_path / "empty").mkdir()
        assert not type(reader).detect(tmp_path / "empty")

    def test_it_does_not_recognise_a_path_that_is_missing(self, reader, tmp_path):
        assert not type(reader).detect(tmp_path / "missing")

    def test_it_refuses_a_folder_that_is_no_dump(self, reader, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises((DumpFormatError, DumpNotFoundError)):
            type(reader)(tmp_path / "empty")

    def test_runs_ascend(self, reader):
        assert list(reader.runs()) == [0]

    def test_keys_name_every_tensor(self, reader):
        keys = list(reader.keys())
        assert {(key.module, key.forward) for key in keys} == {
            (module, forward) for module in ("root", "layer.0") for forward in (0, 1)
        }
        assert all(isinstance(key, TensorKey) for key in keys)

    def test_keys_are_filtered_by_columns(self, reader):
        assert [key.forward for key in reader.keys(module="layer.0", token=1)] == [1]

    def test_an_unknown_filter_names_the_nearest(self, reader):
        with pytest.raises(KeyNotFoundError, match="'module'"):
            reader.keys(modul="layer.0")

    def test_a_tensor_is_loaded_by_name_and_token(self, reader):
        assert torch.equal(reader.load("layer.0", token=1), VALUES + 1)

    @pytest.mark.parametrize("name", ["", "root"])
    def test_the_outermost_module_has_two_names(self, reader, name):
        assert torch.equal(reader.load(name), VALUES)

    def test_one_row_is_picked(self, reader):
        assert torch.equal(reader.load("layer.0", row=1), VALUES[1])

    def test_a_loaded_tensor_may_be_written_without_harm_to_the_dump(self, reader):
        reader.load("layer.0").zero_()
        with type(reader)(reader.path) as again:
            assert torch.equal(again.load("layer.0"), VALUES)

    @pytest.mark.parametrize(
        "key",
        [
            {"module": "layer.1"},
            {"module": "layer.0", "slot": "input.7"},
            {"module": "layer.0", "token": 9},
            {"module": "layer.0", "call": 3},
            {"module": "layer.0", "forward": 5},
            {"module": "layer.0", "run": 4},
            {"module": "layer.0", "row": 2},
        ],
    )
    def test_an_unknown_part_of_a_key_is_an_error(self, reader, key):
        with pytest.raises(KeyNotFoundError):
            reader.load(**key)

    def test_statistics_have_one_row_per_record(self, reader):
        table = reader.statistics()
        assert table.num_rows == 4
        assert table.column("max").to_pylist() == [5.0, 5.0, 6.0, 6.0]

    def test_a_tensor_outlives_its_reader(self, reader):
        tensor = reader.load("layer.0")
        reader.close()
        assert torch.equal(tensor, VALUES)

    def test_close_may_be_called_twice(self, reader):
        reader.close()
        reader.close()
