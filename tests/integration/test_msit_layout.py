"""msit's layout: the files that tools for it expect, with the values of the native layout."""

import csv
import json
import os
import re

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_dumper import (
    DumpConfig,
    DumpFormatError,
    DumpIncompleteWarning,
    EmptyDumpError,
    compare,
    open_dump,
    register_hook,
)
from hf_dumper.store.pth import OVERHEAD

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
OPTIONS = {"attention_mask": LEFT, "max_new_tokens": 3, "do_sample": False}
STATISTICS = ("count", "min", "max", "mean", "std", "l2", "sum", "absmax", "zeros", "nan")


def dump(model, path, *, layout="msit", generate=None, **config):
    with register_hook(model, DumpConfig(path, layout=layout, **({"token_range": "all"} | config))):
        model.generate(IDS, **OPTIONS | (generate or {}))
    return path


def inside(path, number=0):
    """Return the folder with the tensors of a run."""
    found = sorted(path.glob("msit_dump_*/torch_tensors/*"))
    return found[number]


def named(reader):
    """Return what tells the records apart -> record, without what differs between layouts."""
    table = reader.statistics().to_pylist()
    keep = ("token", "phase", "seq_in", "seq_out", "class", "param", "axes", "dtype", "shape")
    return {
        (row["forward"], row["module"], row["slot"], row["call"], row["op"]): {
            name: row[name] for name in (*keep, "hash", "status", *STATISTICS)
        }
        for row in table
    }


@pytest.fixture
def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    with torch.random.fork_rng(devices=[]):
        config = T5Config(vocab_size=128, decoder_start_token_id=0, **sizes)
        return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("generate", [{}, {"prefill_chunk_size": 3}, {"use_cache": False}])
def test_both_layouts_hold_the_same_values(tiny_llama, tmp_path, generate):
    paths = [
        dump(tiny_llama(), tmp_path / layout, layout=layout, generate=generate)
        for layout in ("native", "msit")
    ]
    with open_dump(paths[0]) as native, open_dump(paths[1]) as msit:
        assert named(native) == named(msit)
        assert native.positions().equals(msit.positions())
        keys = list(native.keys())
        assert keys == list(msit.keys())
        for key in keys:
            want, got = native.load_key(key), msit.load_key(key)
            assert want.dtype is got.dtype
            assert torch.equal(want, got)


def test_an_encoder_decoder_has_both_layouts_alike(t5, tmp_path):
    paths = [dump(t5, tmp_path / layout, layout=layout) for layout in ("native", "msit")]
    with open_dump(paths[0]) as native, open_dump(paths[1]) as msit:
        assert named(native) == named(msit)
        keys = list(native.keys())
        assert all(torch.equal(native.load_key(k), msit.load_key(k)) for k in keys)


@pytest.mark.parametrize("mode", [1, 2])
def test_both_layouts_hold_the_same_statistics(tiny_llama, tmp_path, mode):
    paths = [
        dump(tiny_llama(), tmp_path / layout, layout=layout, dump_statistics_mode=mode)
        for layout in ("native", "msit")
    ]
    with open_dump(paths[0]) as native, open_dump(paths[1]) as msit:
        assert named(native) == named(msit)


def test_each_file_holds_the_tensor_of_its_name_and_no_more(tiny_llama, tmp_path):
    with open_dump(dump(tiny_llama(), tmp_path / "d")) as reader:
        rows = reader.index().to_pylist()
        files = {str(p.relative_to(tmp_path / "d")) for p in (tmp_path / "d").rglob("*.pth")}
        top = next((tmp_path / "d").glob("msit_dump_*")).name
        assert files == {f"{top}/{row['shard']}" for row in rows}
        assert len(files) == len(rows)
        for row in rows:
            path = tmp_path / "d" / top / row["shard"]
            tensor = torch.load(path, weights_only=True)
            assert tensor.untyped_storage().nbytes() == row["nbytes"]
            assert path.stat().st_size < row["nbytes"] + OVERHEAD


@pytest.mark.parametrize(
    "file",
    [
        "0/root.model.layers.0.mlp/input_0.pth",
        "0/root.model.layers.0.mlp/output.pth",
        "2/root.model.layers.1.self_attn/output_0.pth",
        "0/root.model.layers.0.self_attn/input_hidden_states.pth",
        "1/root.model/output_last_hidden_state.pth",
        "0/root/input_input_ids.pth",
        "0/root/output_logits.pth",
    ],
)
def test_files_are_where_msit_has_them(tiny_llama, tmp_path, file):
    assert (inside(dump(tiny_llama(), tmp_path / "d")) / file).is_file()


def test_the_folder_is_named_after_time_device_and_process(tiny_llama, tmp_path):
    place = inside(dump(tiny_llama(), tmp_path / "d")).relative_to(tmp_path / "d")
    pattern = rf"msit_dump_\d{{8}}_\d{{6}}/torch_tensors/cpu_{os.getpid()}"
    assert re.fullmatch(pattern, place.as_posix())


def test_the_tree_names_modules_as_the_folders_do(tiny_llama, tmp_path):
    path = dump(tiny_llama(), tmp_path / "d")
    tree = json.loads((inside(path) / "model_tree.json").read_text())
    assert (tree["name"], tree["type"]) == ("root", "LlamaForCausalLM")
    assert tree["children"][0]["name"] == "root.model"
    with open_dump(path) as reader:
        assert reader.tree()["children"][0]["name"] == "model"


def test_a_second_run_has_a_folder_with_its_number(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "d", layout="msit")) as session:
        for ids in (IDS, IDS + 1):
            model(ids)
        assert session.runs == (0, 1)
    first, second = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert second == f"{first}_1"
    with open_dump(tmp_path / "d") as reader:
        assert reader.runs() == (0, 1)
        assert torch.equal(reader.load("root", "input.0", run=1), IDS + 1)
    with open_dump(tmp_path / "d" / second) as reader:
        assert torch.equal(reader.load("root", "input.0"), IDS + 1)


def test_a_second_session_adds_runs_and_overwrites_nothing(tiny_llama, tmp_path):
    for ids in (IDS, IDS + 1):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / "d", layout="msit", overwrite=True)):
            model(ids)
    with open_dump(tmp_path / "d") as reader:
        got = [reader.load("root", "input.0", run=run) for run in (0, 1)]
    assert torch.equal(got[0] + 1, got[1])


def test_dumps_of_other_models_may_share_the_path_and_are_opened_one_by_one(tiny_llama, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    for seed in (0, 1):
        dump(tiny_llama(seed), tmp_path / "d")
    with pytest.raises(DumpFormatError, match=r"several models.*msit_dump_.*Open one of them"):
        open_dump(tmp_path / "d")
    folders = sorted((tmp_path / "d").glob("msit_dump_*"))
    assert not compare(folders[0], folders[1]).passed


def test_statistics_are_in_a_sheet_for_each_module(tiny_llama, tmp_path):
    path = dump(tiny_llama(), tmp_path / "d", dump_statistics_mode=1)
    assert not list(path.rglob("*.pth"))
    text = (inside(path) / "1/root.model.layers.0.self_attn/statistics.csv").read_text()
    header = "NodeName,NodeType,InputOutput,Index,DataType,Shape,Max,Min,Mean,L2Norm"
    assert text.splitlines()[0] == header
    rows = {(r["InputOutput"], r["Index"]): r for r in csv.DictReader(text.splitlines())}
    with open_dump(path) as reader:
        table = reader.statistics().to_pylist()
    (want,) = [
        r
        for r in table
        if (r["module"], r["slot"], r["token"])
        == ("model.layers.0.self_attn", "input.hidden_states", 1)
    ]
    row = rows["input", "hidden_states"]
    assert (row["NodeName"], row["NodeType"]) == ("root.model.layers.0.self_attn", "LlamaAttention")
    assert (row["DataType"], row["Shape"]) == ("torch.float32", "[2, 1, 64]")
    numbers = [float(row[name]) for name in ("Max", "Min", "Mean", "L2Norm")]
    assert numbers == [want[name] for name in ("max", "min", "mean", "l2")]


def test_every_record_with_values_is_in_a_sheet(tiny_llama, tmp_path):
    path = dump(tiny_llama(), tmp_path / "d", dump_statistics_mode=2)
    rows = sum(len(p.read_text().splitlines()) - 1 for p in path.rglob("statistics.csv"))
    with open_dump(path) as reader:
        assert rows == reader.index().num_rows > 0


def test_last_logits_are_the_output_of_the_head(tiny_llama, tmp_path):
    path = dump(tiny_llama(), tmp_path / "d", dump_last_logits=True)
    with open_dump(path) as reader:
        for token in range(3):
            got = torch.load(inside(path) / f"{token}/root.lm_head/output.pth", weights_only=True)
            assert torch.equal(got, reader.load("root", "logits", token))


def test_the_dump_compares_with_a_native_one(tiny_llama, tmp_path):
    native = dump(tiny_llama(), tmp_path / "native", layout="native")
    assert compare(native, dump(tiny_llama(), tmp_path / "msit")).passed


def test_a_dump_of_nothing_is_an_error(tiny_llama, tmp_path):
    session = register_hook(tiny_llama(), DumpConfig(tmp_path / "d", layout="msit"))
    with pytest.raises(EmptyDumpError, match="the model did not run"):
        session.close()


def test_a_run_that_broke_says_so(tiny_llama, tmp_path):
    model = tiny_llama()

    def boom(*_):
        raise ZeroDivisionError

    handle = model.model.layers[1].register_forward_pre_hook(boom)
    with register_hook(model, DumpConfig(tmp_path / "d", layout="msit")):
        with pytest.raises(ZeroDivisionError):
            model(IDS)
        handle.remove()
    with open_dump(tmp_path / "d") as reader:
        info = reader.run_info()
        assert not info["complete"]
        assert "ZeroDivisionError" in info["incomplete"]
        assert reader.load("model.layers.0").shape == (2, 7, 64)


def test_a_folder_that_cannot_be_written_is_a_warning(tiny_llama, tmp_path, monkeypatch):
    model = tiny_llama()
    want = model(IDS).logits

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_dumper.store.pth_files.write_pth", full)
    session = register_hook(model, DumpConfig(tmp_path / "d", layout="msit"))
    with pytest.warns(DumpIncompleteWarning, match="No space left"):
        got = model(IDS).logits
    session.close()
    assert torch.equal(want, got)
    with open_dump(tmp_path / "d") as reader:
        assert not reader.run_info()["complete"]


def test_a_folder_of_another_tool_is_named_as_such(tmp_path):
    (tmp_path / "msit_dump_20240101_000000" / "torch_tensors" / "cpu_1" / "0").mkdir(parents=True)
    with pytest.raises(DumpFormatError, match="another tool"):
        open_dump(tmp_path)
