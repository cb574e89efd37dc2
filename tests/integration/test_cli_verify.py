"""`hf-dumper verify`: its verdicts, exit statuses and output, on dumps of a model."""

import json
import shutil

import pytest

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from tests.commands import opened, run_tiny

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


@pytest.fixture
def weights(place, cli):
    """Return the folder of dumped weights: those of the state dict, and buffers that are not."""
    assert cli(*run_tiny("--dump-weight"))[0] == DONE
    return place / "d/weights"


def test_every_dumped_weight_is_hashed_also_what_the_state_dict_lacks(weights, cli):
    with opened("d") as reader:
        named = {w.names[0] for w in reader.weights().described()}
        assert named > set(reader.manifest["weights"])
    status, out, _ = cli("verify", "d")
    assert (status, out.split()[0]) == (DONE, "INTACT")
    assert f"weights: {len(named)} hashed" in out


@pytest.mark.parametrize("name", ["model.norm.weight", "model.rotary_emb.inv_freq"])
def test_a_changed_weight_is_found(weights, cli, name):
    with opened("d") as reader:
        assert name in reader.weights()
        entry = json.loads((weights / "index.json").read_text())["tensors"][name]
    shard = weights / entry["shard"]
    raw = bytearray(shard.read_bytes())
    raw[entry["offset"]] ^= 1
    shard.write_bytes(raw)
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert f"weights/{entry['shard']}: '{name}': its bytes do not have the hash" in out


def test_a_weight_that_was_replaced_together_with_its_index_is_found(weights, cli):
    index = weights / "index.json"
    facts = json.loads(index.read_text())
    norm, other = (facts["tensors"][f"model.layers.{i}.input_layernorm.weight"] for i in (0, 1))
    place = ("shard", "offset", "hash")
    swapped = {key: other[key] for key in place}, {key: norm[key] for key in place}
    norm.update(swapped[0])
    other.update(swapped[1])
    index.write_text(json.dumps(facts))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: 'model.layers.0.input_layernorm.weight' and 1 more" in out


@pytest.mark.parametrize("lost", ["weights-00000.safetensors", "index.json", ""])
def test_weights_that_are_missing_are_found(weights, cli, lost):
    if lost:
        (weights / lost).unlink()
    else:
        shutil.rmtree(weights)
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert f"weights/{lost}".rstrip("/") in out


def test_a_damaged_index_of_weights_is_found(weights, cli):
    (weights / "index.json").write_text('{"tensors": {"a": {"hash": "0"}}}')
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: it is damaged" in out
