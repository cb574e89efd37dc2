"""Dumps that are pushed: whole, verified, with a card whose index loads, over nothing of others."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.errors import DumpFormatError, DumpNotFoundError, HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.names import parse_repo
from hf_dumper.hub.retry import Patience
from hf_dumper.publish import push_dump
from hf_dumper.store import NativeReader

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's

REPO = parse_repo("you/dump", "dataset")


@pytest.fixture
def mine(server, waits):
    """The hub, with a token that may write."""
    return Hub(server.url, "t", Patience(sleep=waits.append))


def there(server, name="you/dump", revision="main"):
    files = dict(server.repos["dataset", name].at(revision)[1])
    files.pop(".gitattributes", None)
    return files


def files_of(dump):
    found = [p for p in dump.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(dump)): p.read_bytes() for p in found}


def test_every_file_is_pushed_in_one_commit_with_a_card(dump, server, mine):
    done = push_dump(dump, REPO, mine)
    files = there(server)
    card = files.pop("README.md").decode()
    assert files == files_of(dump)
    assert (done.files, done.incomplete) == (len(files), {})
    assert done.nbytes == sum(map(len, files.values()))
    assert len(server.repos["dataset", "you/dump"].commits) == 2
    assert server.repos["dataset", "you/dump"].private
    assert 'open_dump("hf://datasets/you/dump")' in card
    assert "# Dump of LlamaForCausalLM" in card
    assert "2 runs, " in card


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("/home/me/secret/llama/", "llama"),
        ("~/x/llama", "llama"),
        ("C:\\Users\\me\\llama", "llama"),
        ("meta/llama", "meta/llama"),
    ],
)
def test_the_card_names_no_folder_of_the_machine(dump, server, mine, model, told):
    path = dump / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    push_dump(dump, REPO, mine)
    card = there(server)["README.md"].decode()
    assert f"- model: {told}\n" in card
    assert "secret" not in card
    assert "Users" not in card


@pytest.mark.parametrize(("mode", "verified"), [(0, True), (2, True), (1, False)])
def test_what_could_not_be_verified_is_said(tmp_path, tiny_llama, mine, mode, verified):
    """Statistics alone have no bytes to hash."""
    model = tiny_llama()
    config = DumpConfig(tmp_path / "d", dump_weight=True, dump_statistics_mode=mode)
    with register_hook(model, config):
        model.generate(torch.tensor([[4]]), max_new_tokens=1)
    assert push_dump(tmp_path / "d", REPO, mine).verified is verified


def test_what_was_pushed_is_what_is_opened(dump, server, mine, monkeypatch):
    push_dump(dump, REPO, mine, public=True)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with open_dump("hf://datasets/you/dump") as far, NativeReader(dump) as here:
        assert far.index(1).equals(here.index(1))
        found = far.load("lm_head", run=1, token=1)
        assert torch.equal(found, here.load("lm_head", run=1, token=1))


def test_the_index_loads_as_a_dataset(dump, server, mine, tmp_path):
    push_dump(dump, REPO, mine, public=True)
    code = """
import json
from datasets import load_dataset
index = load_dataset("you/dump", split="train")
trace = load_dataset("you/dump", "trace", split="train")
print(json.dumps([len(index), index.column_names, len(trace), index[5]["module"]]))
"""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "ds")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    records, columns, tokens, module = json.loads(result.stdout)
    with NativeReader(dump) as here:
        indexes = [here.index(run) for run in here.runs()]
    assert records == sum(index.num_rows for index in indexes)
    assert columns == indexes[0].column_names
    assert tokens == 4
    assert module == indexes[0].column("module")[5].as_py()


def test_pushing_again_transfers_nothing_large_and_changes_nothing(dump, server, mine):
    first = push_dump(dump, REPO, mine)
    server.asked.clear()
    again = push_dump(dump, REPO, mine)
    assert again.commit == first.commit
    assert [a for a in server.asked if "/upload/" in a.path or "/commit/" in a.path] == []


def test_more_runs_are_added_to_what_is_there(dump, server, mine, tiny_llama):
    push_dump(dump, REPO, mine)
    model = tiny_llama()
    with register_hook(model, DumpConfig(dump, "all", dump_weight=True)):
        model.generate(torch.tensor([[4]]), max_new_tokens=1)
    assert push_dump(dump, REPO, mine).removed == ()
    assert "runs/000002/run.json" in there(server)


def test_a_repository_with_something_else_is_left_alone_unless_told(dump, server, mine):
    server.add("you/dump", {"README.md": b"# mine", "data.csv": b"1"}, "dataset", token="t")
    with pytest.raises(HubError, match=r"not of this dump: data\.csv, README\.md.*--overwrite"):
        push_dump(dump, REPO, mine)
    assert there(server) == {"README.md": b"# mine", "data.csv": b"1"}
    done = push_dump(dump, REPO, mine, overwrite=True)
    assert done.removed == ("data.csv",)
    assert there(server).keys() == {"README.md", *files_of(dump)}


def test_a_branch_is_made_for_a_revision(dump, server, mine):
    push_dump(dump, parse_repo("you/dump@v2", "dataset"), mine)
    assert files_of(dump).keys() < there(server, revision="v2").keys()
    assert there(server) == {}


def test_a_damaged_dump_is_not_pushed(dump, server, mine):
    shard = dump / "runs/000000/rank-0/shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DumpFormatError, match="damaged, so it is not pushed"):
        push_dump(dump, REPO, mine)
    assert server.asked == []


@pytest.mark.filterwarnings("ignore::hf_dumper.DumpIncompleteWarning")
def test_a_run_that_is_not_whole_is_said_on_the_card(dump, server, mine, tiny_llama):
    def fail(*_):
        raise RuntimeError("broken")

    model = tiny_llama()
    model.lm_head.register_forward_hook(fail)
    session = register_hook(model, DumpConfig(dump, "all", dump_weight=True))
    with session, pytest.raises(RuntimeError, match="broken"):
        model.generate(torch.tensor([[4]]), max_new_tokens=1)
    done = push_dump(dump, REPO, mine)
    assert list(done.incomplete) == [2]
    assert "- run 2: " in there(server)["README.md"].decode()


def test_a_link_that_leaves_the_dump_is_not_followed(dump, server, mine, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (dump / "tokenizer").mkdir()
    (dump / "tokenizer/x.json").symlink_to(tmp_path / "secret")
    with pytest.raises(DumpFormatError, match="a link that leaves the dump"):
        push_dump(dump, REPO, mine)
    assert server.asked == []


def test_no_token_is_one_line(dump, server):
    with pytest.raises(HubError, match="wants to know who pushes: give --token"):
        push_dump(dump, REPO, Hub(server.url))


def test_another_ones_repository_is_one_line(dump, server, mine):
    server.add("you/dump", {}, "dataset", token="other")
    with pytest.raises(HubError, match="does not allow it"):
        push_dump(dump, REPO, mine)


def test_nothing_to_push_is_an_error(tmp_path, mine):
    with pytest.raises(DumpNotFoundError):
        push_dump(tmp_path / "none", REPO, mine)


@pytest.mark.parametrize("name", ["you/dump/folder", "models/you/dump"])
def test_a_dump_has_a_dataset_of_its_own(dump, mine, name):
    with pytest.raises(HubError, match="a dataset repository of its own"):
        push_dump(dump, parse_repo(name, "dataset"), mine)


@pytest.mark.parametrize("part", ["/create", "/commit/", "/preupload/", "/upload/"])
def test_a_busy_hub_is_pushed_to_again(dump, server, mine, waits, part):
    server.fault(part, status=503)
    push_dump(dump, REPO, mine)
    assert files_of(dump).keys() < there(server).keys()
    assert len(waits) == 1


def test_msit_layout_is_pushed_and_says_that_it_has_no_hashes(tmp_path, tiny_llama, server, mine):
    path = tmp_path / "msit"
    model = tiny_llama()
    with register_hook(model, DumpConfig(path, layout="msit")):
        model.generate(torch.tensor([[4]]), max_new_tokens=1)
    done = push_dump(path, REPO, mine)
    assert done.verified is None
    files = there(server)
    assert "**/index.parquet" in files.pop("README.md").decode()
    assert files == files_of(path)


def test_text_of_a_dump_is_no_markup_on_its_card(dump, server, mine):
    manifest = dump / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"model": "x\n# <script>"}))
    push_dump(dump, REPO, mine)
    card = there(server)["README.md"].decode()
    assert "- model: x \\# \\<script\\>" in card
