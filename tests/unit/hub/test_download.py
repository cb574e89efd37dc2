"""Downloads: complete, checked, resumed, patient, and each failure in one line."""

import errno
import hashlib
import shutil
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from hf_dumper.errors import HubError
from hf_dumper.hub.client import Hub
from hf_dumper.hub.download import download
from hf_dumper.hub.names import parse_repo
from hf_dumper.hub.retry import Patience
from tests.hub_server import HubServer, Listener

MB = 1 << 20
WEIGHTS = hashlib.sha256(b"weights").digest() * (3 * MB // 32)
FILES = {
    "config.json": b'{"hidden_size": 2}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": b"short",
    "model.safetensors.index.json": b"{}",
    "tokenizer/tokenizer.json": b"[]",
}
LARGE = "model-00001-of-00002.safetensors"
REPO = parse_repo("you/model", "model")


@pytest.fixture(autouse=True)
def repository(server):
    server.add("you/model", FILES)


def held(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_every_file_arrives_and_a_second_call_transfers_none(server, hub, tmp_path, where):
    folder = tmp_path / "here" if where == "folder" else None
    first = download(hub, REPO, folder=folder)
    assert held(first.folder) == FILES
    assert (first.files, first.fetched) == (5, 5)
    assert first.received == first.nbytes == sum(map(len, FILES.values()))
    server.asked.clear()
    again = download(hub, REPO, folder=folder)
    assert (again.files, again.fetched, again.received) == (5, 0, 0)
    assert [a.path for a in server.asked if "/resolve/" in a.path] == []


def test_what_is_in_the_cache_is_what_the_client_of_the_hub_finds(hub, cache):
    from huggingface_hub import snapshot_download

    done = download(hub, REPO)
    found = snapshot_download("you/model", cache_dir=cache, local_files_only=True)
    assert found == str(done.folder)
    assert (cache / "models--you--model/refs/main").read_text() == done.commit


def test_a_revision_is_a_branch_a_tag_or_a_commit(server, hub, tmp_path):
    old = server.repos["model", "you/model"].commits[0][0]
    new = server.add("you/model", {"config.json": b"new"})
    server.repos["model", "you/model"].refs["v1"] = 0
    assert download(hub, REPO).commit == new
    for revision in ("v1", old):
        repo = parse_repo("you/model", "model", revision)
        assert download(hub, repo, folder=tmp_path / revision).commit == old
    repo = parse_repo("you/model@v1", "model")
    assert held(download(hub, repo).folder) == FILES


def test_patterns_choose_files(hub, tmp_path):
    done = download(hub, REPO, folder=tmp_path, include=["*.safetensors"], exclude=["*-00002-*"])
    assert set(held(done.folder)) == {LARGE}


def test_a_pattern_that_matches_nothing_is_an_error(hub):
    with pytest.raises(HubError, match=r"No file matches --include 'confg.json'.*config.json"):
        download(hub, REPO, include=["confg.json"])


def test_a_connection_that_is_cut_goes_on_where_it_stopped(server, hub):
    server.fault(LARGE, method="GET", cut=2 * MB + 7)
    assert held(download(hub, REPO).folder) == FILES
    ranges = [a.range for a in server.contents() if a.path.endswith(LARGE)]
    assert ranges == [None, f"bytes={2 * MB}-"]


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_another_process_goes_on_where_one_stopped(server, hub, tmp_path, where):
    folder = tmp_path / "here" if where == "folder" else None
    server.fault(LARGE, method="GET", cut=2 * MB + 7)
    server.fault(LARGE, method="GET", status=500, times=99)
    impatient = Hub(server.url, None, Patience(attempts=1))
    with pytest.raises(HubError, match="What has arrived is kept"):
        download(impatient, REPO, folder=folder)
    server.faults.clear()
    server.asked.clear()
    done = download(hub, REPO, folder=folder)
    assert held(done.folder) == FILES
    assert [a.range for a in server.contents() if a.path.endswith(LARGE)] == [f"bytes={2 * MB}-"]


def test_a_server_without_ranges_starts_over(tmp_path, waits):
    with HubServer(ranges=False) as server:
        server.add("you/model", FILES)
        server.fault(LARGE, method="GET", cut=2 * MB)
        done = download(Hub(server.url, None, Patience(sleep=waits.append)), REPO, folder=tmp_path)
    assert held(done.folder) == FILES


@pytest.mark.parametrize(("part", "method"), [("/revision/", "GET"), ("/resolve/", "HEAD")])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_twice_as_late_each_time(
    hub, server, waits, part, method, status
):
    server.fault(part, method=method, status=status, times=3)
    assert held(download(hub, REPO, workers=1).folder) == FILES
    # The client asks a second time for facts of a file, at once.
    assert waits == ([1, 2, 4] if method == "GET" else [1, 2])


@pytest.mark.parametrize("part", ["/tree/", "/resolve/"])
@pytest.mark.parametrize("status", [429, 503])
def test_the_client_may_wait_itself_and_is_heard(server, waits, told, hub, part, status):
    server.fault(part, method="GET", status=status, headers={"Retry-After": "17"})
    assert held(download(hub, REPO, workers=1).folder) == FILES
    assert waits in ([17], [18])
    assert any("Waiting 18" in line or "again in 17 s" in line for line in told)


def test_retry_after_is_what_is_waited_for(server, hub, waits):
    server.fault("/revision/", status=429, headers={"Retry-After": "17"})
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.fault("/revision/", status=503, headers={"Retry-After": later})
    download(hub, REPO)
    assert waits[0] == 17
    assert 50 < waits[1] <= 60


def test_a_rate_limit_is_waited_for_as_its_header_says(server, hub, waits):
    server.fault("/revision/", status=429, headers={"RateLimit": '"api";r=0;t=33'})
    download(hub, REPO)
    assert waits == [33]


def test_nobody_waits_for_an_hour(server, hub, waits):
    server.fault("/revision/", status=503, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match="come back in 3600 s"):
        download(hub, REPO)
    assert waits == []


def test_a_hub_that_stays_busy_is_an_error_after_six_times(server, hub, waits):
    server.fault("/revision/", status=503, times=99)
    with pytest.raises(HubError, match=r"busy, 6 times: HTTP status 503"):
        download(hub, REPO)
    assert waits == [1, 2, 4, 8, 16]


def test_a_hub_that_comes_up_late_is_waited_for(tmp_path):
    server = HubServer()
    server.add("you/model", {"config.json": b"{}"})
    server._server.server_close()  # refuses connections: nobody listens
    port = server._server.server_port

    def come_up(_seconds):
        handler = server._server.RequestHandlerClass
        server._server = Listener(("127.0.0.1", port), handler)
        server.__enter__()

    told = []
    hub = Hub(server.url, None, Patience(sleep=come_up, tell=told.append))
    done = download(hub, REPO, folder=tmp_path)
    server.__exit__()
    assert held(done.folder) == {"config.json": b"{}"}
    assert len(told) == 1
    assert "ConnectError" in told[0]


def test_a_wrong_file_is_fetched_again_and_never_passes(server, hub, tmp_path):
    server.fault("config.json", method="GET", swap=b'{"hidden_size": 3}')
    assert held(download(hub, REPO, folder=tmp_path / "a").folder) == FILES
    server.fault("config.json", method="GET", swap=b'{"hidden_size": 3}', times=99)
    with pytest.raises(HubError, match=r"config\.json has arrived with another digest"):
        download(hub, REPO, folder=tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()


def test_a_file_of_the_wrong_length_never_passes(server, hub, tmp_path):
    server.fault(LARGE, method="GET", swap=WEIGHTS[:-1], times=99)
    with pytest.raises(HubError, match="another size than the hub lists"):
        download(hub, REPO, folder=tmp_path)
    assert not (tmp_path / LARGE).exists()


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_a_file_of_the_cache_that_was_damaged_is_found_and_replaced(server, hub, name):
    place = download(hub, REPO).folder / name
    blob = place.resolve()
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    server.asked.clear()
    again = download(hub, REPO)
    assert held(again.folder) == FILES
    assert again.replaced == (name,)
    assert [a.path.rpartition("/")[2] for a in server.contents()] == [name]


def test_a_gated_repository_needs_a_token(server, tmp_path, waits):
    server.add("you/gated", FILES, gated=True, token="t")
    repo = parse_repo("you/gated", "model")
    with pytest.raises(HubError, match=r"hf://you/gated: it is gated: accept its terms"):
        download(Hub(server.url), repo, folder=tmp_path)
    assert held(download(Hub(server.url, "t"), repo, folder=tmp_path).folder) == FILES
    assert waits == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("you/none", "has no such repository, or it is private"),
        ("you/model@v9", "it has no revision 'v9'"),
        ("a b", "names no repository"),
        ("you/model/none", "there is no file in that folder"),
    ],
)
def test_what_is_not_there_is_one_line(hub, name, why):
    with pytest.raises(HubError, match=why) as caught:
        download(hub, parse_repo(name, "model"))
    assert "\n" not in str(caught.value)


def test_offline_is_said(hub, monkeypatch, waits):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
        download(hub, REPO)
    assert "\n" not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("local", [False, True])
def test_offline_what_is_here_is_enough_and_is_checked(server, hub, monkeypatch, tmp_path, local):
    server.add("you/model", {"config.json": b"{}", "model.safetensors": b"abc"})
    folder = tmp_path / "here" if local else None
    first = download(hub, REPO, folder=folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.asked.clear()
    again = download(hub, REPO, folder=folder)
    assert (again.folder, again.files, again.fetched) == (first.folder, 2, 0)
    (again.folder / "model.safetensors").unlink()
    if not local:
        shutil.rmtree(first.folder.parent.parent / "blobs")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and not all of it is in the cache"):
        download(hub, REPO, folder=folder)
    assert server.asked == []


def test_a_disk_without_room_is_said_before_anything_is_fetched(server, hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(9, 8, 1000))
    with pytest.raises(HubError, match=r"bytes are missing, and the disk has room for 1,000"):
        download(hub, REPO)
    assert server.contents() == []


def test_a_disk_that_fills_up_is_said(hub, monkeypatch, tmp_path):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(HubError, match=r"The disk is full at .*x. What has arrived is kept"):
        download(hub, REPO)


@pytest.mark.parametrize("path", ["../out.json", "/etc/x", "a/../../b", "c:x", "a\\..\\b", "a//b"])
def test_no_file_escapes_its_folder(server, hub, tmp_path, path):
    server.add("you/evil", {path: b"evil"})
    with pytest.raises(HubError, match="no path inside a repository"):
        download(hub, parse_repo("you/evil", "model"), folder=tmp_path / "in" / "here")
    assert list(tmp_path.rglob("*")) == []


def test_a_mirror_may_redirect_contents_to_another_host(server, waits, tmp_path):
    with HubServer(mirror_of=server) as mirror:
        mirror.add("you/model", FILES)
        hub = Hub(mirror.url, None, Patience(sleep=waits.append))
        assert held(download(hub, REPO, folder=tmp_path).folder) == FILES
        assert held(download(hub, REPO).folder) == FILES
    assert len(server.contents()) == 2 * len(FILES)


def test_a_token_does_not_follow_contents_to_another_host(tmp_path):
    with HubServer() as cdn, HubServer(cdn=cdn) as server:
        server.add("you/model", FILES, gated=True, token="secret")
        cdn.blobs = server.blobs
        done = download(Hub(server.url, "secret"), REPO, folder=tmp_path)
        assert held(done.folder) == FILES
        assert [a.token for a in cdn.asked] == [None, None]
        assert {a.token for a in server.asked} == {"secret"}


def test_the_saved_token_is_not_sent_to_an_address_that_was_given(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "saved")
    download(Hub(server.url), REPO, folder=tmp_path)
    assert {a.token for a in server.asked} == {None}


def test_the_address_is_the_given_one_a_word_or_the_environment(monkeypatch):
    assert Hub("hf-mirror").endpoint == "https://hf-mirror.com"
    monkeypatch.setenv("HF_ENDPOINT", "http://other:1/")
    assert Hub().endpoint == "http://other:1"
    assert Hub("https://x.y").endpoint == "https://x.y"
    with pytest.raises(HubError, match="no address of a hub"):
        _ = Hub("ftp://x").endpoint


def test_datasets_and_folders_of_them_can_be_downloaded(server, hub, tmp_path):
    server.add("you/dump", {"a/x.json": b"1", "ab/y.json": b"2"}, kind="dataset")
    repo = parse_repo("hf://datasets/you/dump/a", "model")
    assert held(download(hub, repo, folder=tmp_path).folder) == {"a/x.json": b"1"}


def test_progress_ends_at_the_whole(hub):
    told = []
    download(hub, REPO, on_bytes=lambda done, total: told.append((done, total)))
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
