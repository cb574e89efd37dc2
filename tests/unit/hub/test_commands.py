"""`hf-dumper download` and `hf-dumper push` as they are typed."""

import json

import pytest

from hf_dumper.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's

FILES = {"config.json": b"{}", "model.safetensors": b"abc"}


@pytest.fixture
def typed(capfd):
    """Run a command; return its status, what it prints and what it tells on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        return ended.value.code, *capfd.readouterr()

    return run


def test_download_says_what_came_and_where_it_is(typed, server, tmp_path):
    commit = server.add("you/model", FILES)
    options = "--endpoint", server.url, "--local-dir", tmp_path / "m"
    status, out, err = typed("download", "you/model", *options)
    assert (status, err) == (0, "")
    assert "2 files, 5 bytes, all with the hub's checksums: 2 fetched (5 bytes)." in out
    assert f"Commit {commit} is at {tmp_path / 'm'}" in out
    assert "nothing to fetch" in typed("download", "you/model", *options)[1]


def test_download_takes_its_options(typed, server, tmp_path):
    server.add("you/model", FILES, gated=True, token="t")
    options = "--endpoint", server.url, "--token", "t", "--local-dir", tmp_path / "m", "--json"
    options += "--revision", "main", "--exclude", "*.safetensors", "--workers", 1
    status, out, _ = typed("download", "you/model", *options, "--include", "*")
    facts = json.loads(out)
    assert status == 0
    assert (facts["files"], facts["fetched"], facts["received"]) == (1, 1, 2)
    assert (tmp_path / "m/config.json").read_bytes() == b"{}"


def test_download_takes_its_address_from_the_environment(typed, server, tmp_path, monkeypatch):
    server.add("you/model", FILES)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert typed("download", "you/model", "--local-dir", tmp_path / "m")[0] == 0


def test_waits_are_told(typed, server, waits, tmp_path):
    server.add("you/model", FILES)
    server.fault("/revision/", status=429, headers={"Retry-After": "7"})
    options = "--endpoint", server.url, "--local-dir", tmp_path / "m"
    status, _, err = typed("download", "you/model", *options)
    assert (status, waits) == (0, [7])
    assert err == "hf-dumper: HTTP status 429: trying again in 7 s (1 of 5)\n"


def test_a_failure_is_one_line_and_status_2(typed, server):
    status, out, err = typed("download", "you/none", "--endpoint", server.url)
    assert (status, out) == (2, "")
    assert err.startswith("hf-dumper: hf://you/none: ")
    assert err.count("\n") == 1


def test_push_and_inspect_from_there(typed, server, dump, monkeypatch):
    options = "--endpoint", server.url, "--token", "t"
    status, out, _ = typed("push", dump, "you/dump", *options, "--public")
    assert status == 0
    assert 'open_dump("hf://datasets/you/dump") reads it from there.' in out
    assert json.loads(typed("push", dump, "you/dump", *options, "--json")[1])["incomplete"] == {}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    status, out, _ = typed("show", "hf://datasets/you/dump", "lm_head", "--run", 1)
    assert status == 0
    assert "lm_head" in out
    status, out, _ = typed("inspect", "hf://datasets/you/dump")
    assert status == 0
    assert out.startswith("Dump hf://datasets/you/dump")
    assert "fetched so far" in out
    status, _, err = typed("verify", "hf://datasets/you/dump")
    assert (status, err.count("\n")) == (2, 1)
    assert "download --local-dir first" in err


def test_a_dump_that_was_pushed_can_be_downloaded_and_verified(typed, server, dump, tmp_path):
    options = "--endpoint", server.url, "--token", "t"
    assert typed("push", dump, "you/dump", *options)[0] == 0
    more = *options, "--local-dir", tmp_path / "again"
    assert typed("download", "hf://datasets/you/dump", *more)[0] == 0
    again = typed("verify", tmp_path / "again", "--json")
    assert json.loads(again[1])["problems"] == []
    assert (
        json.loads(again[1])["records"] == json.loads(typed("verify", dump, "--json")[1])["records"]
    )
