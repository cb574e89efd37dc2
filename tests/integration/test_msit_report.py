"""msit's comparison table, of two dumps of a real model."""

import csv
from pathlib import Path

import pytest
import torch

from hf_dumper.comparison import compare
from hf_dumper.config import DumpConfig
from hf_dumper.core.verdicts import Verdict
from hf_dumper.errors import DumpNotFoundError
from hf_dumper.model import register_hook
from hf_dumper.report.reporters import write_report
from hf_dumper.store import open_dump
from tests.comparisons import compared, pair, token

HEADER = (
    "token_id,data_id,golden_data_path,golden_dtype,golden_shape,golden_max_value,"
    "golden_min_value,golden_mean_value,my_data_path,my_dtype,my_shape,my_max_value,my_min_value,"
    "my_mean_value,cosine_similarity,max_relative_error,mean_relative_error,max_absolute_error,"
    "mean_absolute_error,kl_divergence,relative_euclidean_distance,cmp_fail_reason"
)
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def table(tiny_llama, tmp_path):
    """Return a function that writes pairs of a dump, one chunked, as (header, rows)."""
    for name, options in (("golden", {}), ("candidate", {"prefill_chunk_size": 2})):
        model = tiny_llama().to(torch.float64 if options else torch.float32)
        with register_hook(model, DumpConfig(tmp_path / name, "all")):
            model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=2, **options)

    def write(*pairs, **more):
        paths = {name: str(tmp_path / name) for name in ("golden", "candidate")}
        found = compared(Verdict.FAIL, pairs, **{**paths, **more})
        write_report(found, tmp_path / "r.msit.csv")
        text = (tmp_path / "r.msit.csv").read_text()
        return text.splitlines()[0], list(csv.DictReader(text.splitlines()))

    return write


def test_the_columns_are_those_of_msit_in_their_order(table):
    assert table()[0] == HEADER


def test_statistics_of_both_sides_are_of_the_dumps(table, tmp_path):
    _, (row,) = table(pair("model.norm"))
    golden = open_dump(tmp_path / "golden").load("model.norm").double()
    assert float(row["golden_max_value"]) == golden.max().item()
    assert float(row["golden_mean_value"]) == pytest.approx(golden.mean().item())
    assert row["golden_shape"] == "[1, 5, 64]"
    assert (row["golden_dtype"], row["my_dtype"]) == ("torch.float32", "torch.float64")


def test_a_token_of_several_forwards_has_the_statistics_of_all(table, tmp_path):
    _, (row,) = table(pair("model.norm"))
    candidate = open_dump(tmp_path / "candidate").load("model.norm")
    assert float(row["my_min_value"]) == candidate.min().item()
    assert float(row["my_mean_value"]) == pytest.approx(candidate.mean().item())
    assert row["my_shape"] == "[1, 2, 64]; [1, 2, 64]; [1, 1, 64]"


def test_a_path_names_the_shard_and_the_tensor(table, tmp_path):
    _, (row,) = table(pair("model.norm"))
    shard = f"{tmp_path}/golden/runs/000000/rank-0/shard-00000.safetensors"
    assert row["golden_data_path"] == f"{shard}:0/model.norm:output:0"


def test_a_path_in_the_layout_of_msit_is_that_of_the_file(tiny_llama, tmp_path):
    for name, layout in (("golden", "msit"), ("candidate", "native")):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / name, layout=layout)):
            for ids in (IDS, IDS + 20):
                model(ids, attention_mask=ids > 0)
    write_report(compare(tmp_path / "golden", tmp_path / "candidate"), tmp_path / "r.msit.csv")
    with (tmp_path / "r.msit.csv").open() as file:
        paths = [row["golden_data_path"] for row in csv.DictReader(file)]
    assert len(set(paths)) == len(paths) > 0
    assert all(Path(path).is_file() for path in paths)


def test_metrics_have_the_names_of_msit(table):
    values = {"cosine": 0.5, "max_rel": 2.0, "mean_rel": 3.0, "max_abs": 4.0, "mean_abs": 5.0}
    _, (row,) = table(pair("model.norm", rel_l2=6.0, **values))
    names = HEADER.split(",")[14:]
    assert [row[n] for n in names] == ["0.5", "2.0", "3.0", "4.0", "5.0", "", "6.0", ""]


def test_the_kl_divergence_is_given_for_logits_only(table):
    pairs = [pair("root", "output.logits"), pair("model.norm")]
    _, rows = table(*pairs, tokens=[token(0, kl=0.25), token(0, row=1, kl=0.75)])
    assert [row["kl_divergence"] for row in rows] == ["0.5", ""]


def test_a_metric_that_cannot_be_computed_is_empty_and_the_reason_is_told(table):
    bad = pair("model.norm", verdict=Verdict.NON_FINITE, cosine=None, reason="1 NaN")
    _, (row,) = table(bad)
    assert (row["cosine_similarity"], row["cmp_fail_reason"]) == ("", "non-finite: 1 NaN")


def test_tensors_of_other_shapes_have_no_numbers(table):
    _, (row,) = table(pair("model.norm", verdict=Verdict.SHAPE, reason="[2, 3] and [3, 2]"))
    assert row["max_absolute_error"] == ""
    assert row["cmp_fail_reason"] == "shape: [2, 3] and [3, 2]"


def test_a_record_of_one_side_has_that_side_only(table):
    place = {"run": 0, "forward": 0, "token": 0, "module": "model.norm", "slot": "output"}
    alone = {"side": "golden", **place, "call": 0, "op": "", "verdict": "unmatched", "reason": "x"}
    _, (row,) = table(unmatched=[alone])
    assert row["golden_shape"] == "[1, 5, 64]"
    assert (row["my_shape"], row["cmp_fail_reason"]) == ("", "unmatched: x")


def test_runs_in_another_order_are_told_apart(tiny_llama, tmp_path):
    ids = {"golden": (IDS, IDS + 20), "candidate": (IDS + 20, IDS)}
    for name, prompts in ids.items():
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / name)):
            for prompt in prompts:
                model(prompt, attention_mask=prompt > 0)
    write_report(compare(tmp_path / "golden", tmp_path / "candidate"), tmp_path / "r.msit.csv")
    with (tmp_path / "r.msit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["golden_data_path"].split("/runs/")[1][:6] for row in rows} == {"000000", "000001"}
    assert all(row["golden_mean_value"] == row["my_mean_value"] for row in rows)


def test_a_dump_that_is_gone_is_an_error(table, tmp_path):
    with pytest.raises(DumpNotFoundError, match="There is no dump at"):
        table(pair("model.norm"), candidate=str(tmp_path / "gone"))
