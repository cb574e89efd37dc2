"""The sheets of statistics, row by row."""

import csv
from collections import Counter

import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.store import DirectorySink, MsitSink
from hf_dumper.store.budget import Budget
from hf_dumper.store.sheets import ANALYSIS, ANALYSIS_COLUMNS, STATISTICS_COLUMNS
from tests.batches import BatchMaker

VALUES = torch.tensor([[1.0, 2.0], [3.0, 6.0]])


def write(sink):
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker().begin(0, 0, rows=2, cols=2)
    owner = maker.add("a", VALUES, "input.x.0")
    maker.alias("b", owner, "output", call=1)
    maker.add("b", torch.tensor([float("nan")]), "output.0")
    maker.add("root", torch.tensor([1 + 1j]), "output")
    maker.skip("c", "sparse layout")
    sink.write(maker.end())
    sink.commit_run(RunResult({}, {}))


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_analysis_of_a_native_run_names_shard_and_tensor(tmp_path):
    write(DirectorySink(tmp_path, {}, analyze=True))
    shard = "rank-0/shard-00000.safetensors:0"
    numbers = ["6.0", "1.0", "3.5", "3.0"]
    assert read(tmp_path / "runs" / "000000" / ANALYSIS) == [
        list(ANALYSIS_COLUMNS),
        ["root.a", "Linear", f"{shard}/a:input.x.0:0", "torch.float32", "[2, 2]", *numbers],
        ["root.b", "Linear", f"{shard}/a:input.x.0:0", "torch.float32", "[2, 2]", *numbers],
        ["root.b", "Linear", f"{shard}/b:output.0:0", "torch.float32", "[1]", "", "", "", ""],
        ["root", "Linear", f"{shard}/root:output:0", "torch.complex64", "[1]", "", "", "", ""],
    ]


def test_the_analysis_of_a_msit_run_names_files(tmp_path):
    write(MsitSink(tmp_path, {}, analyze=True))
    (folder,) = tmp_path.iterdir()
    paths = [row[2] for row in read(folder / ANALYSIS)[1:]]
    assert len(set(paths)) == 4
    assert all((folder / path).is_file() for path in paths)


def test_without_values_the_analysis_names_no_file(tmp_path):
    write(MsitSink(tmp_path, {}, tensors=False, analyze=True))
    (folder,) = tmp_path.iterdir()
    assert {row[2] for row in read(folder / ANALYSIS)[1:]} == {""}
    assert not list(folder.rglob("statistics.csv"))


@pytest.mark.parametrize("kind", [DirectorySink, MsitSink])
def test_sheets_are_claimed_from_the_bound_to_the_byte(tmp_path, kind, monkeypatch):
    claimed = []
    monkeypatch.setattr(Budget, "claim", lambda _self, nbytes: claimed.append(nbytes))
    write(kind(tmp_path, {}, tensors=False, statistics=True, analyze=True))
    (sheet,) = tmp_path.rglob(ANALYSIS)
    lines = sheet.read_bytes().splitlines(keepends=True)
    sizes = [len(lines[0]), len(b"".join(lines[1:]))]
    sizes += [path.stat().st_size for path in tmp_path.rglob("statistics.csv")]
    assert not Counter(sizes) - Counter(claimed)


def test_a_sheet_of_statistics_tells_slots_apart(tmp_path):
    write(MsitSink(tmp_path, {}, statistics=True))
    sheets = {path.parent.name: read(path) for path in tmp_path.rglob("statistics.csv")}
    assert sheets.keys() == {"root", "root.a", "root.b", "root.b~1"}
    l2 = repr(50**0.5)
    assert sheets["root.a"] == [
        list(STATISTICS_COLUMNS),
        [
            *("root.a", "Linear", "input", "x.0", "torch.float32", "[2, 2]"),
            *("6.0", "1.0", "3.0", l2),
        ],
    ]
    assert sheets["root.b~1"][1][2:4] == ["output", ""]
    assert sheets["root.b"][1][2:4] == ["output", "0"]
    assert sheets["root.b"][1][6:] == ["", "", "", "0.0"]
