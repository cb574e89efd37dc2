"""analyze=True: a table of every tensor of a run, in both layouts."""

import csv

import pytest
import torch

from hf_dumper import DumpConfig, open_dump, register_hook

IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("layout", ["native", "msit"])
def test_the_table_has_the_numbers_of_every_tensor(tiny_llama, tmp_path, layout, mode):
    config = DumpConfig(tmp_path, "all", layout=layout, analyze=True, dump_statistics_mode=mode)
    model = tiny_llama()
    with register_hook(model, config):
        model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=2)
    (path,) = tmp_path.rglob("tensor_analyze.csv")
    assert path.parent.parent == (tmp_path / "runs" if layout == "native" else tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    with open_dump(tmp_path) as reader:
        table = reader.statistics().to_pylist()
    assert len(rows) == len(table) > 0
    for row, want in zip(rows, table, strict=True):
        assert row["Node Name"].removeprefix("root.") == want["module"]
        assert row["Node Type"] == want["class"]
        assert [float(row[n]) for n in ("max", "min", "mean")] == [
            want[n] for n in ("max", "min", "mean")
        ]
        assert float(row["variance"]) == want["std"] ** 2


def test_the_variance_is_that_of_torch_over_the_population(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path, analyze=True, layer_name="model.norm")):
        model(IDS)
    (path,) = tmp_path.rglob("tensor_analyze.csv")
    row = list(csv.DictReader(path.read_text().splitlines()))[-1]
    with open_dump(tmp_path) as reader:
        values = reader.load("model.norm").double()
    assert float(row["variance"]) == pytest.approx(values.var(correction=0).item())


def test_there_is_no_table_unless_asked(tiny_llama, tmp_path):
    for layout in ("native", "msit"):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / layout, layout=layout)):
            model(IDS)
    assert not list(tmp_path.rglob("*.csv"))
