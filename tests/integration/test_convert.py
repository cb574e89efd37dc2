"""One layout made from another: every tensor, statistic and fact of one is in the other."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_dumper import (
    ConfigError,
    DumpConfig,
    DumpFormatError,
    DumpWriteError,
    compare,
    open_dump,
    register_hook,
)
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store.convert import convert
from tests.commands import save_model

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
OPTIONS = {"attention_mask": LEFT, "max_new_tokens": 3, "do_sample": False}
PLACE = ("shard", "tensor", "offset")
CASES = {
    "tensors": {},
    "statistics": {"dump_statistics_mode": 1},
    "both": {"dump_statistics_mode": 2},
    "logits": {"dump_last_logits": True},
    "weights": {"dump_weight": True},
    "analysis": {"analyze": True},
}


def dump(model, path, layout="native", generate=None, **config):
    with register_hook(model, DumpConfig(path, "all", layout=layout, **config)):
        model.generate(IDS, **OPTIONS | (generate or {}))
        model(IDS[:1])
    return path


def converted(source, out, to):
    with open_dump(source) as reader:
        convert(reader, out, to)
    return out


def facts(reader, run):
    """Return what run.json says, but for the digests of files of which some hold places."""
    return {
        name: value
        for name, value in reader.run_info(run).items()
        if name not in ("tables", "digest")
    }


def trace(reader, run):
    """Return the rows of the trace; None for a bare forward, which has none."""
    try:
        return reader.trace(run).to_pylist()
    except KeyNotFoundError:
        return None


def equal(first, second):
    """Assert that two dumps hold the same, wherever in their folders they hold it."""
    with open_dump(first) as a, open_dump(second) as b:
        assert a.runs() == b.runs() == (0, 1)
        assert a.tree() == b.tree()
        for run in a.runs():
            assert a.index(run).drop_columns(PLACE).equals(b.index(run).drop_columns(PLACE))
            assert a.positions(run).equals(b.positions(run))
            assert facts(a, run) == facts(b, run)
            assert trace(a, run) == trace(b, run)
        for row in (row for run in a.runs() for row in a.index(run).to_pylist()):
            if row["shard"] is not None:
                key = next(a.keys(**{n: row[n] for n in ("run", "forward", "module", "slot")}))
                want, got = a.load_key(key), b.load_key(key)
                assert want.dtype is got.dtype
                assert torch.equal(want, got)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("first", "second"), [("native", "msit"), ("msit", "native")])
def test_a_layout_becomes_the_other(tiny_llama, tmp_path, case, first, second):
    source = dump(tiny_llama(), tmp_path / "a", first, **CASES[case])
    equal(source, converted(source, tmp_path / "b", second))


@pytest.mark.parametrize("generate", [{"prefill_chunk_size": 3}, {"use_cache": False}])
def test_there_and_back_again_gives_the_same_dump(tiny_llama, tmp_path, generate):
    source = dump(tiny_llama(), tmp_path / "a", generate=generate, dump_statistics_mode=2)
    converted(source, tmp_path / "b", "msit")
    equal(source, converted(tmp_path / "b", tmp_path / "c", "native"))
    first, last = (
        {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
        for top in (source, tmp_path / "c")
    )
    assert first == last


def test_a_converted_dump_has_the_files_of_its_layout(tiny_llama, tmp_path):
    options = {"dump_statistics_mode": 2, "analyze": True, "dump_weight": True}
    native = dump(tiny_llama(), tmp_path / "native", **options)
    made = converted(native, tmp_path / "made", "msit")
    direct = dump(tiny_llama(), tmp_path / "direct", "msit", **options)

    def files(path):
        tops = sorted(path.glob("msit_dump_*"))
        return [
            {p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file()} for top in tops
        ]

    assert files(made) == files(direct)
    for top, other in zip(sorted(made.iterdir()), sorted(direct.iterdir()), strict=True):
        for sheet in top.rglob("*.csv"):
            assert sheet.read_text() == (other / sheet.relative_to(top)).read_text()


@pytest.mark.parametrize("to", ["native", "msit"])
def test_weights_and_tokenizer_come_along(tiny_llama, tmp_path, to):
    model = tiny_llama(tie_word_embeddings=True)
    save_model(model, tmp_path / "saved")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    config = DumpConfig(tmp_path / "a", dump_weight=True)
    with register_hook(model, config, tokenizer=tokenizer):
        model(IDS)
    converted(tmp_path / "a", tmp_path / "b", to)
    with open_dump(tmp_path / "a") as a, open_dump(tmp_path / "b") as b:
        want, got = a.weights(), b.weights()
        assert set(want) == set(got)
        assert all(torch.equal(want[name], got[name]) for name in want)
    (kept,) = (tmp_path / "b").rglob("tokenizer")
    assert (kept / "tokenizer.json").is_file()


def test_a_converted_dump_compares_as_equal(tiny_llama, tmp_path):
    source = dump(tiny_llama(), tmp_path / "a")
    assert compare(source, converted(source, tmp_path / "b", "msit")).passed


def test_a_converted_dump_takes_more_runs(tiny_llama, tmp_path):
    source = dump(tiny_llama(), tmp_path / "a", "msit")
    dump(tiny_llama(), converted(source, tmp_path / "b", "native"))
    with open_dump(tmp_path / "b") as reader:
        assert reader.runs() == (0, 1, 2, 3)


@pytest.mark.parametrize("to", ["native", "msit"])
def test_a_run_that_is_not_whole_stays_so(tiny_llama, tmp_path, to):
    model = tiny_llama()
    handle = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with register_hook(model, DumpConfig(tmp_path / "a")), pytest.raises(ZeroDivisionError):
        model(IDS)
    handle.remove()
    converted(tmp_path / "a", tmp_path / "b", to)
    with open_dump(tmp_path / "b") as reader:
        info = reader.run_info()
        assert not info["complete"]
        assert "ZeroDivisionError" in info["incomplete"]


def test_what_breaks_off_is_marked(tiny_llama, tmp_path):
    source = dump(tiny_llama(), tmp_path / "a", "msit")
    victim = next(source.glob("msit_dump_*/torch_tensors/*/2/root.model.norm/output.pth"))
    victim.write_bytes(b"")
    with pytest.raises(DumpFormatError, match="cannot be read as a tensor"):
        converted(source, tmp_path / "b", "native")
    with open_dump(tmp_path / "b") as reader:
        assert not reader.run_info()["complete"]


@pytest.mark.parametrize("to", ["native", "msit", "npy"])
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("*/0/root.model.norm/output.pth", "'model.norm' 'output' do not have the hash"),
        ("*/weights/root.model.norm.weight.pth", "weight 'model.norm.weight' do not have the hash"),
    ],
)
def test_bytes_that_changed_are_not_passed_on(tiny_llama, tmp_path, to, file, reason):
    source = dump(tiny_llama(), tmp_path / "a", "msit", dump_weight=True)
    victim = next(source.glob(f"msit_dump_*/torch_tensors/{file}"))
    changed = torch.load(victim, weights_only=True)
    torch.save(changed + 1, victim)
    with pytest.raises(DumpFormatError, match=reason):
        converted(source, tmp_path / "b", to)


def with_two_ranks(path):
    """Give the last run of a dump what a second process would have written."""
    ranks = path / "runs" / "000001"
    shutil.copytree(ranks / "rank-0", ranks / "rank-1")
    index = pq.read_table(ranks / "rank-1" / "index.parquet")
    place = index.schema.get_field_index("rank")
    ones = pa.array([1] * index.num_rows, pa.int16())
    pq.write_table(
        index.set_column(place, index.schema.field("rank"), ones), ranks / "rank-1/index.parquet"
    )
    return path


@pytest.mark.parametrize("to", ["native", "msit"])
def test_a_run_of_several_processes_is_refused_before_anything_is_written(tiny_llama, tmp_path, to):
    source = with_two_ranks(dump(tiny_llama(), tmp_path / "a"))
    with pytest.raises(DumpFormatError, match=r"Run 1 .* 2 processes \(ranks 0, 1\).* npy"):
        converted(source, tmp_path / "b", to)
    assert not (tmp_path / "b").exists()


def test_numpy_gets_the_tensors_of_every_process(tiny_llama, tmp_path):
    source = with_two_ranks(dump(tiny_llama(), tmp_path / "a"))
    out = converted(source, tmp_path / "b", "npy")
    rows = list(csv.DictReader((out / "index.csv").read_text().splitlines()))
    assert {row["rank"] for row in rows} == {"0", "1"}
    assert len({row["file"] for row in rows}) == len(rows) == len(list(out.rglob("*.npy")))


@pytest.mark.parametrize("to", ["native", "msit", "npy"])
def test_a_folder_that_holds_something_is_left_alone(tiny_llama, tmp_path, to):
    source = dump(tiny_llama(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    with pytest.raises(DumpWriteError, match="not empty"):
        converted(source, tmp_path / "b", to)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine"]


def test_an_unknown_layout_is_an_error(tiny_llama, tmp_path):
    source = dump(tiny_llama(), tmp_path / "a")
    with pytest.raises(ConfigError, match="'native', 'msit', 'npy'"):
        converted(source, tmp_path / "b", "zip")


@pytest.mark.parametrize("layout", ["native", "msit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numpy_reads_every_tensor(tiny_llama, tmp_path, layout, dtype):
    source = dump(tiny_llama().to(dtype), tmp_path / "a", layout, dump_weight=True)
    out = converted(source, tmp_path / "b", "npy")
    rows = list(csv.DictReader((out / "index.csv").read_text().splitlines()))
    with open_dump(source) as reader:
        total = sum(reader.index(run).num_rows for run in reader.runs())
        weights = reader.weights()
        assert len(rows) == total + len(weights.described())
        for row in rows:
            got = np.load(out / row["file"], allow_pickle=False)
            assert str(got.dtype) == row["stored_as"]
            assert list(got.shape) == json.loads(row["shape"])
            if row["slot"].startswith(("weight.", "buffer.")):
                want = weights[f"{row['module']}.{row['slot'].partition('.')[2]}"]
            else:
                numbers = {name: int(row[name]) for name in ("run", "token", "call", "forward")}
                want = reader.load(row["module"], row["slot"], **numbers)
            assert row["dtype"] == str(want.dtype).removeprefix("torch.")
            stored = torch.from_numpy(got)
            assert torch.equal(stored.view(want.dtype), want)


@pytest.mark.parametrize(("layout", "suffix"), [("msit", "pth"), ("npy", "npy")])
def test_weights_whose_names_differ_in_case_only_have_files_that_do_not(tmp_path, layout, suffix):
    model = torch.nn.Linear(2, 2)
    model.register_parameter("Weight", torch.nn.Parameter(torch.zeros(2, 2)))
    with register_hook(model, DumpConfig(tmp_path / "a", dump_weight=True)):
        model(torch.ones(1, 2))
    out = converted(tmp_path / "a", tmp_path / "b", layout)
    names = sorted(path.name for path in out.rglob(f"weights/*.{suffix}"))
    assert len({name.casefold() for name in names}) == len(names) == 3
    if layout == "msit":
        with open_dump(out) as reader:
            assert reader.weights()["Weight"].tolist() == [[0, 0], [0, 0]]
            assert torch.equal(reader.weights()["weight"], model.weight)


def test_bfloat16_is_stored_as_its_bits(tiny_llama, tmp_path):
    source = dump(tiny_llama().bfloat16(), tmp_path / "a")
    rows = csv.DictReader(
        (converted(source, tmp_path / "b", "npy") / "index.csv").read_text().splitlines()
    )
    stored = {row["dtype"]: row["stored_as"] for row in rows}
    assert stored["bfloat16"] == "uint16"


def test_the_command_converts(place, cli):
    assert cli("run", "tiny", "--prompt", "one", "--max-new-tokens", 2, "--dump", "d")[0] == 0
    status, out, err = cli("convert", "d", "--to", "msit", "m")
    assert (status, err) == (0, "")
    assert "records of 1 run: at m, layout msit" in out
    assert cli("compare", "d", "m")[0] == 0
    assert cli("convert", "m", "--to", "npy", "n")[0] == 0
    assert np.load(next((place / "n").rglob("*.npy"))).size
    status, out, _ = cli("convert", "m", "--to", "native", "again", "--json")
    assert (status, json.loads(out)["layout"]) == (0, "native")
    status, _, err = cli("convert", "m", "--to", "native", "again")
    assert (status, err.count("\n")) == (2, 1)
    assert "not empty" in err


def test_the_command_tells_of_a_run_that_is_not_whole(place, cli, tiny_llama):
    model = tiny_llama()
    handle = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with register_hook(model, DumpConfig(place / "d")), pytest.raises(ZeroDivisionError):
        model(IDS)
    handle.remove()
    status, out, _ = cli("convert", "d", "--to", "msit", "m")
    assert status == 1
    assert "Not whole" in out
