"""`hf-dumper describe` tells a model by its files alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_dumper import DEMO_MODEL
from hf_dumper.errors import ModelError
from hf_dumper.models.describe import describe
from hf_dumper.models.files import FolderFiles
from tests.integration.models.conftest import COMMIT

CODE = "from .configuration_own import OwnConfig\nfrom .parts import Part\n"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def roles(found):
    return {file.name: file.role for file in found.files}


def test_every_file_has_its_role(folder):
    (folder / "training_code.py").touch()
    (folder / "quantize_config.json").write_text("{}")
    (folder / "old.bin").touch()
    found = roles(describe(FolderFiles(folder)))
    assert found["config.json"] == "config"
    assert found["model.safetensors"] == "weights"
    assert found["tokenizer.json"] == "tokenizer"
    assert found["tokenizer_config.json"] == found["chat_template.jinja"] == "tokenizer settings"
    assert found["generation_config.json"] == "generation config"
    assert found["quantize_config.json"] == "quantisation"
    assert found["old.bin"] == "other weights"
    assert found["training_code.py"] == "code"
    assert found.keys() == {p.name for p in folder.iterdir()}


def test_sizes_and_types_equal_those_of_the_loaded_weights(folder):
    found = describe(FolderFiles(folder))
    state = load_file(folder / "model.safetensors")
    assert {t.name: t.shape for t in found.tensors} == {n: tuple(t.shape) for n, t in state.items()}
    (dtype,) = found.dtypes
    assert dtype == "bfloat16"
    assert found.dtypes[dtype].parameters == sum(t.numel() for t in state.values())
    assert found.dtypes[dtype].bytes == sum(t.nbytes for t in state.values())
    assert found.architecture["class"] == "LlamaForCausalLM"
    assert [found.architecture[n] for n in ("layers", "heads", "key_value_heads")] == [4, 4, 2]
    assert not found.missing
    assert not found.needs_remote_code


def test_own_code_is_named_and_what_it_lacks_too(folder):
    maps = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.Own"}
    change(folder, model_type="own_kind", auto_map=maps)
    (folder / "modeling_own.py").write_text(CODE)
    found = describe(FolderFiles(folder))
    assert found.needs_remote_code
    assert found.auto_map == maps
    assert roles(found)["modeling_own.py"] == "modeling code"
    assert "code configuration_own.py: auto_map names it" in found.missing
    assert "code parts.py: modeling_own.py imports it" in found.missing


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tokenizer.json", "tokenizer: none of"),
        ("tokenizer_config.json", "tokenizer_config.json, which"),
        ("generation_config.json", "generation_config.json: generate()"),
        ("model.safetensors", "weights: no model.safetensors"),
    ],
)
def test_a_file_that_is_missing_is_told(name, told, folder):
    (folder / name).unlink()
    assert any(line.startswith(told) for line in describe(FolderFiles(folder)).missing)


def sharded(folder, kind, zipped=True):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for i, part in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        file = f"pytorch_model-{i}.bin"
        held = {name: state[name] for name in part} | kind
        torch.save(held, folder / file, _use_new_zipfile_serialization=zipped)
        places |= dict.fromkeys(part, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return state, places


def test_bin_shards_are_told_without_their_weights(folder):
    state, places = sharded(folder, {})
    found = describe(FolderFiles(folder))
    assert {t.name: (t.file, t.nbytes) for t in found.tensors} == {
        name: (places[name], tensor.nbytes) for name, tensor in state.items()
    }
    assert not found.unread
    (folder / "pytorch_model-1.bin").unlink()
    (told,) = describe(FolderFiles(folder)).missing
    assert told.startswith("shard pytorch_model-1.bin, which")


def test_bin_shards_that_cannot_be_read_are_told_and_run_nothing(folder):
    sharded(folder, {"x": Path("x")})  # a class that weights_only refuses
    found = describe(FolderFiles(folder))
    assert set(found.unread) == {"pytorch_model-0.bin", "pytorch_model-1.bin"}
    assert not found.tensors
    assert not found.dtypes


def test_bin_shards_of_the_old_format_are_told_as_not_read(folder):
    sharded(folder, {}, zipped=False)
    found = describe(FolderFiles(folder))
    assert all("before torch 1.6" in why for why in found.unread.values())
    assert len(found.unread) == 2


def with_header(folder, entry):
    head = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} | entry})
    data = len(head).to_bytes(8, "little") + head.encode()
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [-4, 2]},
        {"shape": [1 << 40]},
        {"shape": [1.5]},
        {"shape": "ab"},
        {"dtype": 3},
        {"data_offsets": [0, 1 << 42]},
        {"data_offsets": [0, 0, 0]},
    ],
)
def test_a_header_that_cannot_be_true_is_refused(folder, entry):
    with_header(folder, entry)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        describe(FolderFiles(folder))


@pytest.mark.parametrize("data", [(1 << 60).to_bytes(8, "little"), b"abc", b""])
def test_a_header_of_an_impossible_length_is_refused(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        describe(FolderFiles(folder))


def test_a_header_nested_too_deep_is_refused(folder):
    data = (200_000).to_bytes(8, "little") + b"[" * 200_000
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="cannot be read"):
        describe(FolderFiles(folder))


@pytest.mark.parametrize("maps", [["a"], {"AutoModel": 3}, {"AutoModel": [None, None]}, "x"])
def test_an_auto_map_that_names_nothing_is_none(folder, maps):
    change(folder, auto_map=maps, model_type=["x"], architectures="Llama")
    found = describe(FolderFiles(folder))
    assert found.auto_map == {}
    assert "class" not in found.architecture


def test_code_in_another_repository_is_not_missing_here(folder):
    maps = {"AutoModel": "org/repo--modeling.Own"}
    change(folder, model_type="own", auto_map=maps)
    found = describe(FolderFiles(folder))
    assert (found.auto_map, found.needs_remote_code, found.missing) == (maps, True, ())


def test_an_index_that_names_nothing_is_told(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "weights: model.safetensors.index.json names no tensor" in (
        describe(FolderFiles(folder)).missing
    )


def test_a_quantisation_without_fields_is_named(cli, folder):
    change(folder, quantization_config="int4")
    assert "quantised   int4" in cli("describe", folder)[1]


def test_command_as_json(cli):
    status, out, err = cli("describe", "demo", "--json", "--tokens", 8)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["parameters"] == sum(d["parameters"] for d in told["dtypes"].values()) > 800_000
    assert set(told["dump"]["sizes"]) == {"tensors", "statistics", "both", "last_logits"}
    assert told["tensors"]["model.norm.weight"]["file"] == "model.safetensors"


def test_command_as_text(cli, folder):
    (folder / "tokenizer.json").unlink()
    status, out, _ = cli("describe", folder, "--tensors")
    assert status == 0
    assert "missing     tokenizer: none of" in out
    assert "LlamaForCausalLM (llama)" in out
    assert "own code    not needed" in out
    assert "model.safetensors  model.norm.weight  bfloat16  [128]" in out
    assert "last logits" in out


def test_command_without_weights_fails(cli, folder):
    (folder / "model.safetensors").unlink()
    assert cli("describe", folder)[0] == 1


def test_command_does_not_run_own_code_unasked(cli, folder):
    change(folder, model_type="own_kind", auto_map={"AutoConfig": "c.C", "AutoModel": "m.M"})
    (folder / "m.py").write_text("raise SystemExit(7)")
    (folder / "c.py").write_text("raise SystemExit(7)")
    status, out, _ = cli("describe", folder)
    assert status == 0
    assert "own code    needed (--trust-remote-code): AutoConfig = c.C, AutoModel = m.M" in out
    assert "dump        not known: the model's own code would have to run" in out


# --- a repository ---------------------------------------------------------------------------------


def test_a_repository_is_described_without_downloading_its_weights(served):
    code = "from hf_dumper.cli import main; main(['describe', 'o/m', '--json'])"
    hub, done = served(Path(DEMO_MODEL), code)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    here = describe(FolderFiles(Path(DEMO_MODEL)))
    assert told["parameters"] == sum(d.parameters for d in here.dtypes.values())
    assert {f["name"]: f["bytes"] for f in told["files"]} == {f.name: f.bytes for f in here.files}
    assert told["dump"]["sizes"]
    weights = (Path(DEMO_MODEL) / "model.safetensors").stat().st_size
    assert 0 < hub.sent["model.safetensors"] < weights / 4


def test_a_repository_that_is_not_there_is_told(served):
    code = "from hf_dumper.cli import main; main(['describe', 'o/other'])"
    _, done = served(Path(DEMO_MODEL), code)
    assert done.returncode == 2
    assert "Cannot read 'o/other': no folder here has that name" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_repository_in_the_cache_is_described_when_the_hub_is_out_of_reach(served):
    code = (
        "from transformers import AutoModel; AutoModel.from_pretrained('o/m');"
        "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True;"
        "from hf_dumper.cli import main; main(['describe', 'o/m'])"
    )
    _, done = served(Path(DEMO_MODEL), code)
    assert done.returncode == 0, done.stderr
    assert f"snapshots/{COMMIT}" in done.stdout.splitlines()[0]
    assert "LlamaForCausalLM (llama)" in done.stdout
