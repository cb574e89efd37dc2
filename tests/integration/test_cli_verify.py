"""`hf-dumper verify`: its verdicts, exit statuses and output, on dumps of a model."""

import json
import shutil

import pytest

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.core.digests import sealed
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
    assert cli(*run_tiny("--dump-weight"))[0] == DONE
    return place / "d/weights"


def test_dumped_weights_are_hashed(weights, cli):
    status, out, _ = cli("verify", "d")
    assert status == DONE
    assert f"weights: {len(json.loads((weights / 'index.json').read_text())['tensors'])} " in out


def test_a_damaged_weight_is_named(weights, cli):
    flip(weights / "weights-00000.safetensors")
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert (
        "weights/weights-00000.safetensors: 'model.rotary_emb.original_inv_freq': its bytes" in out
    )


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "index.json", ""])
def test_weights_that_are_gone_are_missed(weights, cli, name):
    gone = weights / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert f"weights/{name or 'index.json'}: " in out
    assert "missing" in out


def test_an_index_of_weights_that_was_changed_is_named(weights, cli):
    facts = json.loads((weights / "index.json").read_text("utf-8"))
    facts["tensors"]["model.norm.weight"]["kind"] = "buffer"
    (weights / "index.json").write_text(json.dumps(facts))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: it does not have the digest that it carries" in out


def test_weights_of_another_model_are_named(weights, cli):
    """Index and files agree with each other, and not with the manifest."""
    manifest = json.loads((weights.parent / "manifest.json").read_text("utf-8"))
    manifest["weights"]["model.norm.weight"]["hash"] = "0" * 16
    (weights.parent / "manifest.json").write_text(json.dumps(manifest))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: 'model.norm.weight': the manifest has another type, shape or" in out


@pytest.mark.parametrize("value", [1, "x", [1], True, {"model.norm.weight": [1]}])
def test_a_manifest_with_no_weights_in_their_place_is_named(weights, cli, value):
    manifest = json.loads((weights.parent / "manifest.json").read_text("utf-8"))
    (weights.parent / "manifest.json").write_text(json.dumps(manifest | {"weights": value}))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "manifest.json: its dump_config or its weights are no objects" in out


@pytest.mark.parametrize("value", [1, True, None, [2]])
def test_counts_that_are_none_are_named(dump, cli, value):
    facts = json.loads((dump / "runs/000000/run.json").read_text("utf-8"))
    facts = sealed({k: v for k, v in facts.items() if k != "digest"} | {"counts": value})
    (dump / "runs/000000/run.json").write_text(json.dumps(facts))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "runs/000000/run.json: it has no counts" in out


@pytest.mark.parametrize("name", ["index.parquet", "positions.parquet"])
def test_a_folder_in_place_of_a_table_is_named(dump, cli, name):
    table = dump / "runs/000000/rank-0" / name
    table.unlink()
    table.mkdir()
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert f"rank-0/{name}: it is damaged" in out or f"rank-0/{name}: is damaged" in out


@pytest.mark.parametrize(
    "change",
    [{"shard": "../x.safetensors"}, {"offset": -1}, {"hash": 5}, {"shape": None}, {"nbytes": []}],
)
def test_an_index_of_weights_that_is_none_is_named(weights, cli, change):
    facts = json.loads((weights / "index.json").read_text("utf-8"))
    facts["tensors"]["model.norm.weight"] |= change
    (weights / "index.json").write_text(json.dumps(facts))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: it is no index of weights: " in out


def test_every_dumped_weight_is_hashed_also_what_the_state_dict_lacks(weights, cli):
    with opened("d") as reader:
        named = {w.names[0] for w in reader.weights().described()}
        assert named > set(reader.manifest["weights"])
    status, out, _ = cli("verify", "d")
    assert (status, out.split()[0]) == (DONE, "INTACT")
    assert f"weights: {len(named)} hashed" in out


def test_a_weight_that_was_replaced_together_with_its_index_is_found(weights, cli):
    index = weights / "index.json"
    facts = json.loads(index.read_text())
    norm, other = (facts["tensors"][f"model.layers.{i}.input_layernorm.weight"] for i in (0, 1))
    norm["hash"], other["hash"] = other["hash"], norm["hash"]
    index.write_text(json.dumps(sealed({k: v for k, v in facts.items() if k != "digest"})))
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "weights/index.json: 'model.layers.0.input_layernorm.weight' and 1 more" in out


def test_a_damaged_trace_is_found(dump, cli):
    flip(dump / "runs/000000/trace.parquet")
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "runs/000000/trace.parquet: its bytes do not have the hash of run.json" in out


def test_a_trace_that_is_missing_is_found(dump, cli):
    (dump / "runs/000000/trace.parquet").unlink()
    status, out, _ = cli("verify", "d")
    assert status == FAILED
    assert "runs/000000/trace.parquet: it is missing" in out
