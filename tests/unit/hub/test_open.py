"""Dumps on a hub, read as they are needed and no more."""

import pytest
import torch

from hf_dumper import DumpConfig, compare, open_dump, register_hook
from hf_dumper.errors import ConfigError, DumpFormatError, DumpNotFoundError, HubError
from hf_dumper.report.texts import with_texts
from hf_dumper.store import NativeReader, remote
from hf_dumper.store.remote import HubReader
from tests.commands import save_model

URL = "hf://datasets/you/dump"


def files_of(dump):
    found = [p for p in dump.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(dump)): p.read_bytes() for p in found}


@pytest.fixture
def pushed(dump, server, monkeypatch):
    """The same on a hub, which is the one of the environment; shards are large."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(remote, "SMALL", 0)
    files = files_of(dump)
    server.add("you/dump", files, kind="dataset")
    return files


def fetched(server):
    """Return (file, range) of every content that was asked for."""
    return [(a.path.split("/resolve/")[1].partition("/")[2], a.range) for a in server.contents()]


def test_one_tensor_costs_manifest_index_and_its_own_bytes(dump, pushed, server):
    with open_dump(URL) as there, NativeReader(dump) as here:
        found = there.load("model.layers.0.mlp", "output", 1, run=1)
        assert torch.equal(found, here.load("model.layers.0.mlp", "output", 1, run=1))
        (row,) = here._run(1).lookup.find("model.layers.0.mlp", "output", token=1)
        last = row.offset + row.nbytes - 1
        assert fetched(server) == [
            ("manifest.json", None),
            ("runs/000001/run.json", None),
            ("runs/000001/rank-0/index.parquet", None),
            ("runs/000001/rank-0/shard-00000.safetensors", f"bytes={row.offset}-{last}"),
        ]
        server.asked.clear()
        again = there.load("model.layers.0.mlp", "output", 1, run=1)
        assert torch.equal(found, again)
        assert fetched(server) == []


def test_what_was_fetched_is_there_the_next_time(pushed, server):
    for _ in range(2):
        with open_dump(URL) as there:
            there.load("model.layers.0.mlp", run=0)
            received = there.received
    assert received == 0


def test_a_small_shard_is_fetched_whole(pushed, server, monkeypatch):
    monkeypatch.setattr(remote, "SMALL", 1 << 20)
    with open_dump(URL) as there:
        there.load("model.layers.0.mlp", run=0)
        there.load("model.layers.1.mlp", run=0)
    shards = [(n, r) for n, r in fetched(server) if n.endswith(".safetensors")]
    assert shards == [("runs/000000/rank-0/shard-00000.safetensors", None)]


def test_a_shard_that_is_read_a_lot_is_fetched_whole(dump, pushed, server):
    with open_dump(URL) as there, NativeReader(dump) as here:
        for key in list(here.keys(run=0)):
            assert torch.equal(there.load_key(key), here.load_key(key))
    ranges = [r for n, r in fetched(server) if "shard" in n]
    assert len(ranges) == remote.PIECES + 1
    assert ranges[-1] is None


def test_everything_that_a_reader_tells_is_the_same(dump, pushed):
    with open_dump(URL) as there, NativeReader(dump) as here:
        assert repr(there) == repr(here).replace(str(dump), URL)
        assert there.manifest == here.manifest
        assert there.runs() == here.runs() == (0, 1)
        assert there.tree() == here.tree()
        assert set(there.weights()) == set(here.weights())
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(there.weights()[name], here.weights()[name])
        for run in (0, 1):
            assert there.run_info(run) == here.run_info(run)
            assert there.index(run).equals(here.index(run))
            assert there.positions(run).equals(here.positions(run))
            assert there.trace(run).equals(here.trace(run))
            assert there.statistics(run).equals(here.statistics(run))
            assert there.predictions(run) is None
        assert sorted(p.name for p in there.facts_folder(0).glob("*.json")) == ["run.json"]


def test_a_dump_on_a_hub_can_be_compared(dump, pushed):
    result = compare(URL, dump)
    assert result.passed
    assert result.coverage
    assert (result.golden, result.candidate) == (URL, str(dump))


def test_a_divergence_is_shown_by_the_name_on_the_hub(dump, pushed, tmp_path, tiny_llama):
    other = tmp_path / "other"
    model = tiny_llama(seed=1)
    with register_hook(model, DumpConfig(other, "all")):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    result = compare(URL, other)
    assert result.golden == URL
    snippet = result.divergence.snippet
    assert not snippet or f"open_dump({URL!r})" in snippet


def test_texts_of_tokens_come_from_the_tokenizer_on_the_hub(
    dump, pushed, server, tmp_path, tiny_llama
):
    save_model(tiny_llama(), tmp_path / "m")
    found = (tmp_path / "m").glob("tokenizer*.json")
    files = {f"tokenizer/{p.name}": p.read_bytes() for p in found}
    server.add("you/dump", pushed | files, kind="dataset")
    texts = with_texts(compare(URL, dump)).tokens.column("golden_text").to_pylist()
    assert len(texts) == 4
    assert None not in texts


def test_what_was_read_before_is_read_offline(pushed, server, monkeypatch):
    with open_dump(URL) as there:
        first = there.load("model.layers.0.mlp", run=0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.asked.clear()
    with open_dump(URL) as there:
        assert torch.equal(there.load("model.layers.0.mlp", run=0), first)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and not all of it is in the"):
            there.load("model.layers.0.mlp", run=1)
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "hf://you/dump",
        "hf://datasets/you/dump@main",
        "hf://datasets/you/dump/",
        "hf:/datasets/you/dump",
    ],
)
def test_shorter_names_and_paths_are_understood(pushed, url):
    with open_dump(url) as there:
        assert there.runs() == (0, 1)


def test_a_revision_and_a_folder_of_the_repository(pushed, server):
    server.add("you/more", {f"a/b/{name}": c for name, c in pushed.items()}, kind="dataset")
    server.repos["dataset", "you/more"].refs["v/1"] = 0
    server.add("you/more", {"README.md": b"#"}, kind="dataset")
    with open_dump("hf://datasets/you/more@v%2F1/a/b") as there:
        assert there.url == "hf://datasets/you/more@v%2F1/a/b"
        there.load("model.layers.0.mlp", run=0)
    with pytest.raises(DumpNotFoundError, match="holds no dump"):
        open_dump("hf://datasets/you/more")
    with pytest.raises(DumpNotFoundError, match="There is one in 'a/b'"):
        open_dump("hf://datasets/you/more@v%2F1")


def test_a_model_repository_is_named_as_one(pushed, server):
    server.add("you/model", pushed)
    with open_dump("hf://models/you/model") as there:
        assert there.runs() == (0, 1)


@pytest.mark.parametrize(
    ("url", "error", "why"),
    [
        ("hf://datasets/you/none", HubError, "no such repository"),
        ("hf://datasets/you/dump@none", HubError, "no revision 'none'"),
        ("hf://datasets/dump", HubError, "Write it as user/name"),
        ("hf://datasets/you/dump/../x", HubError, "no path inside a repository"),
    ],
)
def test_what_is_not_there_is_one_line(pushed, url, error, why):
    with pytest.raises(error, match=why) as caught:
        open_dump(url)
    assert "\n" not in str(caught.value)


def test_other_readers_need_a_folder(pushed):
    with pytest.raises(ConfigError, match="download"):
        open_dump(URL, reader="msit")


def test_a_dump_in_the_other_layout_says_how_to_get_it(pushed, server):
    server.add("you/msit", {"msit_dump_20260101_000000/x.json": b"{}"}, kind="dataset")
    with pytest.raises(DumpNotFoundError, match="hf-dumper download hf://datasets/you/msit"):
        open_dump("hf://datasets/you/msit")


def test_a_piece_of_another_length_never_passes(pushed, server, waits):
    with open_dump(URL) as there:
        there.index(0)
        server.fault("shard", method="GET", swap=b"x" * 100_000, times=99)
        with pytest.raises(HubError, match="was asked for"):
            there.load("model.layers.0.mlp", run=0)


def test_of_a_server_without_ranges_the_whole_shard_is_fetched(dump, pushed, server):
    server.ranges = False
    with open_dump(URL) as there, NativeReader(dump) as here:
        for module in ("model.layers.0.mlp", "model.layers.1.mlp"):
            assert torch.equal(there.load(module, run=0), here.load(module, run=0))
    assert len([n for n, _ in fetched(server) if "shard" in n]) == 2  # the attempt, and the whole


def test_an_index_beyond_the_shard_is_damage(pushed, server):
    shard = "runs/000000/rank-0/shard-00000.safetensors"
    server.add("you/dump", pushed | {shard: pushed[shard][:500]}, kind="dataset")
    with open_dump(URL) as there, pytest.raises(DumpFormatError, match="it ends at byte 500"):
        there.load("model.layers.0.mlp", run=0)


def test_a_busy_hub_is_waited_for_in_the_middle(pushed, server, waits):
    with open_dump(URL) as there:
        there.index(0)
        server.fault("shard", method="GET", status=503)
        there.load("model.layers.0.mlp", run=0)
    assert waits == [1]


def test_nothing_lands_outside_of_the_cache(pushed, server, tmp_path):
    server.add("you/evil", pushed | {"runs/000000/../../../x": b"evil"}, kind="dataset")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(HubError, match="no path inside a repository"):
        open_dump("hf://datasets/you/evil")
    with HubReader(URL) as there:
        there.load("model.layers.0.mlp", run=0)
    assert all("home" in p.parts or "cache" in p.parts for p in set(tmp_path.rglob("*")) - before)
