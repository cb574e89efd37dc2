"""`hf-dumper diff-config` tells which settings of two sides differ, what changes numbers first."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_dumper import DEMO_MODEL, DumpConfig, DumpingModel


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def keys(out):
    return [d["key"] for d in json.loads(out)["differences"]]


def test_equal_models_are_equal(cli, folder):
    status, out, _ = cli("diff-config", "demo", folder, "--json")
    told = json.loads(out)
    assert (status, told["equal"], told["differences"]) == (0, True, [])
    assert told["compared"] > 30


def test_what_is_left_out_equals_the_default(cli, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rms_norm_eps")  # whose default it has
    path.write_text(json.dumps(config))
    assert cli("diff-config", "demo", folder)[0] == 0


def test_what_changes_numbers_comes_first_in_order(cli, folder):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    changed = {"rms_norm_eps": 1e-5, "hidden_act": "gelu", "rope_parameters": rope}
    change(folder / "config.json", dtype="float32", initializer_range=0.5, **changed)
    change(folder / "generation_config.json", temperature=0.5)
    change(folder / "tokenizer_config.json", model_max_length=77)
    status, out, _ = cli("diff-config", "demo", folder, "--json")
    assert status == 1
    assert keys(out) == [
        "identity.dtype",
        "config.rope_parameters.rope_theta",
        "config.rms_norm_eps",
        "config.hidden_act",
        "config.initializer_range",
        "generation.temperature",
        "tokenizer.model_max_length",
    ]
    numeric = [d["numerics"] for d in json.loads(out)["differences"]]
    assert numeric == [True] * 4 + [False] * 3


def test_another_vocabulary_is_found(cli, folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert keys(cli("diff-config", "demo", folder, "--json")[1]) == [
        "tokenizer.file tokenizer.json"
    ]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Return dumps of the embedded model: two alike, one with eager attention and one thread."""
    place = tmp_path_factory.mktemp("dumps")
    threads = torch.get_num_threads()
    for name, options in (("a", {}), ("b", {}), ("eager", {"attn_implementation": "eager"})):
        torch.set_num_threads(threads + (name == "eager"))
        config = DumpConfig(str(place / name), dump_last_logits=True)
        model = DumpingModel.from_pretrained(DEMO_MODEL, dump_config=config, **options)
        model.generate(torch.arange(5)[None] + 7, max_new_tokens=1)
        model.dump.close()
    torch.set_num_threads(threads)
    return place


def test_dumps_of_the_same_are_equal(cli, dumps):
    status, out, _ = cli("diff-config", dumps / "a", dumps / "b", "--json")
    assert (status, keys(out)) == (0, [])


def test_dumps_of_another_environment_differ(cli, dumps):
    status, out, _ = cli("diff-config", dumps / "a", dumps / "eager", "--json")
    assert status == 1
    assert keys(out) == ["identity.attn_implementation", "environment.threads"]


def test_versions_of_a_dump_are_compared(cli, dumps, tmp_path):
    shutil.copytree(dumps / "a", tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "2.6.0"
    path.write_text(json.dumps(manifest))
    out = cli("diff-config", dumps / "a", tmp_path / "old", "--json")[1]
    assert keys(out) == ["environment.versions.torch"]
    assert json.loads(out)["differences"][0]["group"] == "versions"


def test_a_dump_equals_its_model_and_says_what_was_not_compared(cli, dumps, folder):
    status, out, _ = cli("diff-config", folder, dumps / "a")
    assert status == 0, out
    assert f"not compared  environment: {folder} is a model without it" in out
    change(folder / "config.json", dtype="float16")
    status, out, _ = cli("diff-config", folder, dumps / "a", "--json")
    assert (status, keys(out)) == (1, ["identity.dtype"])


def test_the_tokenizer_of_a_dump_equals_that_of_its_model(cli, folder, tmp_path):
    assert cli("run", folder, "--prompt", "You", "--max-new-tokens", 1, "--dump", tmp_path / "d")
    status, out, _ = cli("diff-config", folder, tmp_path / "d", "--json")
    assert (status, keys(out)) == (0, [])
    assert not any(line.startswith("tokenizer") for line in json.loads(out)["not_compared"])
    change(tmp_path / "d" / "tokenizer" / "tokenizer_config.json", model_max_length=3)
    assert keys(cli("diff-config", folder, tmp_path / "d", "--json")[1]) == [
        "tokenizer.model_max_length"
    ]


def test_own_code_is_not_run_and_a_note_says_so(cli, folder, tmp_path):
    change(folder / "config.json", model_type="own_kind", auto_map={"AutoConfig": "c.C"})
    (folder / "c.py").write_text("raise SystemExit(7)")
    status, out, _ = cli("diff-config", folder, folder)
    assert status == 0
    assert "is compared as it is written" in out


def test_no_such_side(cli, tmp_path):
    status, _, err = cli("diff-config", "demo", tmp_path / "nothing")
    assert status == 2
    assert "There is no folder" in err
