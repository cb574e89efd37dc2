"""Data sets of a hub: names, subsets, revisions, streams, and what is said where one is wrong."""

import io
import json

import datasets.config
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import close_session

from hf_dumper.cli import main
from hf_dumper.errors import PromptError
from hf_dumper.prompts import Selection, open_prompts
from hf_dumper.store import open_dump
from tests.commands import save_model
from tests.hub_server import HubServer

RESOLVED = "{repo_id}/resolve/{revision}/{filename}"
CARD = """---
configs:
- config_name: main
  data_files: main/*.jsonl
- config_name: socratic
  data_files: socratic/*.jsonl
---
"""


def lines(*texts):
    return "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()


def parquet():
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["x", "y"]}), file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with three data sets, the first of them with two commits, and an empty cache."""
    cache = tmp_path / "cache"
    with HubServer() as server:
        for module, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", False),
            (huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub")),
            (huggingface_hub.constants, "ENDPOINT", server.url),
            (huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{RESOLVED}"),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", server.url),
            (datasets.config, "HF_DATASETS_CACHE", cache / "datasets"),
        ):
            monkeypatch.setattr(module, name, value)
        close_session()
        server.old = server.add("you/plain", {"train.jsonl": lines("a", "b", "c")}, "dataset")
        server.new = server.add(
            "you/plain", {"train.jsonl": lines("a", "b", "C", "d", "e", "f")}, "dataset"
        )
        server.add("you/parquet", {"data/test-00000-of-00001.parquet": parquet()}, "dataset")
        several = {"main/train.jsonl": lines("m"), "socratic/train.jsonl": lines("s", "t")}
        server.add("you/several", {"README.md": CARD.encode(), **several}, "dataset")
        yield server
    close_session()


def read(name, **chosen):
    rows = open_prompts(name, Selection(**chosen))
    return rows, [(row.number, row.taken().text) for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_is_read_and_what_was_read_is_known(hub, streaming):
    rows, found = read("you/plain", split="train[2:5]", streaming=streaming)
    assert found == [(2, "C"), (3, "d"), (4, "e")]
    facts = {name: rows.facts[name] for name in ("name", "subset", "revision", "split")}
    assert facts == {
        "name": "you/plain",
        "subset": "default",
        "revision": hub.new,
        "split": "train",
    }
    assert read("you/parquet", streaming=streaming)[1] == [(0, "x"), (1, "y")]
    assert read("you/several", subset="socratic", streaming=streaming)[1] == [(0, "s"), (1, "t")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_revision_is_a_commit_or_a_tag(hub, streaming):
    hub.repos["dataset", "you/plain"].refs["v1"] = 0
    for revision in (hub.old, "v1"):
        rows, found = read("you/plain", revision=revision, streaming=streaming)
        assert found == [(0, "a"), (1, "b"), (2, "c")]
        assert rows.facts["revision"] == hub.old


@pytest.mark.parametrize(
    ("name", "chosen", "said"),
    [
        (
            "you/several",
            {},
            "Which subset of 'you/several'? Name one (--subset). Subsets: 'main', 'socratic'.",
        ),
        ("you/several", {"subset": "man"}, "no subset 'man'. Did you mean 'main'? Subsets: "),
        ("you/plain", {"subset": "main"}, "'you/plain' has no subset 'main'. Subsets: 'default'."),
        ("you/plain", {"revision": "v9"}, "Revision 'v9' doesn't exist"),
        ("you/none", {}, "doesn't exist on the Hub or cannot be accessed. Nor is there a file"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, name, chosen, said):
    with pytest.raises(PromptError) as error:
        open_prompts(name, Selection(**chosen))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert ("Nor is there" in str(error.value)) == (name == "you/none")


def test_without_the_hub_the_copy_is_taken_unless_it_is_another_revision(hub, monkeypatch):
    read("you/plain", revision=hub.old)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows, found = read("you/plain")
    assert (len(found), rows.facts["revision"]) == (3, hub.old)
    assert read("you/plain", revision=hub.old)[1] == found
    for other in (hub.new, "main"):
        with pytest.raises(PromptError, match=f"the cache holds {hub.old}, not '{other}'"):
            open_prompts("you/plain", Selection(revision=other))


def test_a_file_has_no_revision(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(PromptError, match="here, not on the hub: it has no revision 'v1'"):
        open_prompts(tmp_path / "a.txt", Selection(revision="v1"))


def test_a_dump_goes_on_with_the_commit_it_was_begun_with(
    hub, tmp_path, tiny_llama, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_llama(), tmp_path / "tiny")

    def run(*more):
        given = ("--prompts", "you/plain", "--max-new-tokens", "1", "--dump", "d", *more)
        with pytest.raises(SystemExit) as ended:
            main(["run", "./tiny", *given])
        return ended.value.code, capfd.readouterr().err

    def texts():
        with open_dump("d") as dump:
            infos = [dump.run_info(run)["prompt"] for run in dump.runs()]
        return [i["text"][0] for i in infos], {i["source"]["revision"] for i in infos}

    assert run("--prompts-revision", hub.old, "--split", "train[:2]") == (0, "")
    assert run() == (0, "")
    assert texts() == (["a", "b", "c"], {hub.old})
    status, said = run("--prompts-revision", "main", "--split", "train[3:]")
    assert status == 2
    assert f"Run 0 of 'd' was made of rows with revision '{hub.old}', not '{hub.new}'" in said
    assert run("--overwrite") == (0, "")
    assert texts() == (["a", "b", "C", "d", "e", "f"], {hub.new})
