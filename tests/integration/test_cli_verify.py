"""`hf-dumper verify`: its verdicts, exit statuses and output, on dumps of a model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from tests.commands import run_tiny

SHARD = "runs/000000/rank-0/shard-00000.safetensors"


@pytest.fixture
def dump(place, cli):
    assert cli(*run_tiny("--token-range", "all", "--statistics", "both"))[0] == DONE
    return place / "d"


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_intact_dump_passes(dump, cli):
    status, out, err = cli("verify", "d")
    assert (status, err) == (DONE, "")
    assert out.startswith("INTACT  ")
    assert "hashed: 162 of 162 records in 1 run" in out


def test_a_damaged_dump_fails_with_a_line_per_problem(dump, cli):
    flip(dump / SHARD)
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert out.startswith("DAMAGED  1 problem\n")
    assert out.splitlines()[1].startswith(f"{SHARD}: '1/")


def test_json_lists_problems(dump, cli):
    (dump / SHARD).unlink()
    status, out, _ = cli("verify", "d", "--json")
    facts = json.loads(out)
    assert (status, facts["verdict"], facts["hashed"]) == (FAILED, "damaged", 0)
    (problem,) = facts["problems"]
    assert (problem["file"], problem["what"]) == (SHARD, "the file is missing")
    assert "0/model.norm:output:0" in problem["tensors"]


def test_last_logits_are_verified(place, cli):
    assert cli(*run_tiny("--dump-last-logits"))[0] == DONE
    status, out, _ = cli("verify", "d")
    assert status == DONE
    assert "hashed: 3 of 3 records" in out


def test_statistics_alone_could_not_be_checked(place, cli):
    assert cli(*run_tiny("--statistics", "statistics"))[0] == DONE
    status, out, _ = cli("verify", "d")
    assert status == IMPOSSIBLE
    assert out.startswith("UNCHECKED  ")
    assert "hashed: 0 of 81 records" in out
    assert "not checked: 81: only statistics were kept, no values" in out


def test_an_incomplete_dump_fails(dump, cli):
    (dump / "runs/000000/run.json").unlink()
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert out.startswith("INCOMPLETE  what is there is intact\n")
    assert "run 0 is incomplete: it was cut off before its end" in out


def test_no_dump_could_not_be_verified(place, cli):
    status, _, err = cli("verify", "tiny")
    assert status == IMPOSSIBLE
    assert "is no dump that a reader recognises" in err


def test_dumped_weights_are_held_against_the_manifest(dump, cli, tiny_llama):
    (dump / "weights").mkdir()
    weights = {n: t.clone() for n, t in tiny_llama().state_dict().items()}
    save_file(weights, dump / "weights/model.safetensors")
    status, out, _ = cli("verify", "d")
    assert status == DONE
    assert f"weights: {len(weights)} hashed" in out
    save_file(weights | {"model.norm.weight": torch.ones(64)}, dump / "weights/model.safetensors")
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/model.safetensors: 'model.norm.weight': its bytes do not have" in out
