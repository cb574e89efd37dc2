"""A disk that fails, a dump that vanishes, Ctrl-C: tokens are as ever, and the dump says so."""

import errno
import os
import re
import shutil
import subprocess
import threading
from contextlib import suppress

import pytest
import torch

from hf_dumper import (
    DumpConfig,
    DumpIdentityError,
    DumpIncompleteWarning,
    DumpWriteError,
    open_dump,
    register_hook,
)
from hf_dumper.store import BackgroundSink, DirectorySink
from hf_dumper.store.run_writer import RunWriter
from tests.faults import (
    IDS,
    facts,
    fail_at,
    generate,
    is_plain,
    os_error,
    readable_forwards,
)

pytestmark = pytest.mark.timeout(60)
TOKENS = 8


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture
def session(model, tmp_path):
    """Return a session that has dumped one run without any fault."""
    session = register_hook(model, DumpConfig(tmp_path / "d", "all"))
    generate(model, TOKENS)
    return session


@pytest.fixture
def path(tmp_path):
    return tmp_path / "d"


def at_forward(model, forward, act):
    """Call `act` once, inside a forward."""
    seen = []

    def hook(*_):
        seen.append(1)
        if len(seen) == forward + 1:
            act()

    return model.model.layers[1].register_forward_hook(hook)


def fail_writes(monkeypatch, code, after=0, times=1 << 30):
    """Let writes fail with an error of the system, after some that succeed."""
    original, calls = os.pwrite, []

    def pwrite(fd, data, offset):
        calls.append(1)
        if after < len(calls) <= after + times:
            raise os_error(code)
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


DISK = [(errno.ENOSPC, "No space left"), (errno.EIO, "Input/output error")]


@pytest.mark.parametrize("after", [0, 1, 3, 10])
@pytest.mark.parametrize("times", [1, 1 << 30])
@pytest.mark.parametrize(("code", "words"), DISK)
def test_a_disk_that_fails(model, session, path, monkeypatch, code, words, after, times):
    want = generate(model, TOKENS)
    fail_writes(monkeypatch, code, after, times)
    with pytest.warns(DumpIncompleteWarning, match=words) as warned:
        got = generate(model, TOKENS)
    monkeypatch.undo()
    again = generate(model, TOKENS)
    session.close()
    assert torch.equal(got, want)
    assert torch.equal(again, want)
    assert len(warned) == 1
    with open_dump(path) as reader:
        whole = [reader.run_info(run)["complete"] for run in reader.runs()]
    if "not dumped at all" in str(warned[0].message):
        assert whole == [True, True, True]
    else:
        assert whole == [True, True, False, True]
        assert re.search(words, facts(path, 2)["incomplete"])
        assert readable_forwards(path, 2) == list(range(len(readable_forwards(path, 2))))
    assert readable_forwards(path, len(whole) - 1) == list(range(TOKENS))


@pytest.mark.parametrize("name", ["GrowingTable.finish", "write_trace", "write_json"])
def test_a_commit_that_fails_says_why_if_it_can(model, session, path, monkeypatch, name):
    def broken(*_args, **_options):
        raise os_error(errno.EIO)

    monkeypatch.setattr(f"hf_dumper.store.run_writer.{name}", broken)
    if name == "write_json":
        monkeypatch.undo()
        fail_at(monkeypatch, "commit", os_error(errno.EIO))
    with pytest.warns(DumpIncompleteWarning, match="Input/output error"):
        generate(model, TOKENS)
    monkeypatch.undo()
    session.close()
    info = facts(path, 1)
    assert info["complete"] is False
    words = (
        "stopped before its end"
        if name == "write_json"
        else "could not be ended: .*Input/output error"
    )
    assert re.search(words, info["incomplete"])
    assert readable_forwards(path, 1) == list(range(TOKENS))


def test_a_dump_that_vanishes(model, session, path):
    want = generate(model, TOKENS)
    handle = at_forward(model, 3, lambda: shutil.rmtree(path))
    with pytest.warns(DumpIncompleteWarning, match="No such file"):
        got = generate(model, TOKENS)
    handle.remove()
    with pytest.warns(DumpIncompleteWarning, match="not dumped at all: .*No such file"):
        again = generate(model, TOKENS)
    session.close()
    assert torch.equal(got, want)
    assert torch.equal(again, want)
    assert not path.exists()


def test_a_run_that_vanishes_takes_no_other_with_it(model, session, path):
    want = generate(model, TOKENS)
    handle = at_forward(model, 3, lambda: shutil.rmtree(path / "runs" / "000002"))
    with pytest.warns(DumpIncompleteWarning, match="No such file"):
        got = generate(model, TOKENS)
    handle.remove()
    generate(model, TOKENS)
    session.close()
    assert torch.equal(got, want)
    for run in (0, 1, 3):
        assert facts(path, run)["complete"]
        assert readable_forwards(path, run) == list(range(TOKENS))


def test_a_file_where_a_folder_was(model, session, path):
    """Nobody may write into a file: that is so for root, too, whom no permission stops."""
    want = generate(model, TOKENS)

    def replace():
        shutil.move(path / "runs", path.parent / "runs")
        (path / "runs").write_text("")

    handle = at_forward(model, 3, replace)
    with pytest.warns(DumpIncompleteWarning, match="Not a directory"):
        got = generate(model, TOKENS)
    handle.remove()
    with pytest.warns(DumpIncompleteWarning, match="not dumped at all: "):
        again = generate(model, TOKENS)
    (path / "runs").unlink()
    shutil.move(path.parent / "runs", path / "runs")
    session.close()
    assert torch.equal(got, want)
    assert torch.equal(again, want)
    assert facts(path, 0)["complete"]
    assert facts(path, 2)["complete"] is False
    assert readable_forwards(path, 2)[:3] == [0, 1, 2]


def interrupt(*_args, **_options):
    raise KeyboardInterrupt


def once(monkeypatch, owner, name, act=interrupt):
    """Let a method be interrupted the first time that it is called."""
    original = getattr(owner, name)

    def first(*args, **options):
        monkeypatch.setattr(owner, name, original)
        act()
        return original(*args, **options)

    monkeypatch.setattr(owner, name, first)


PLACES = {
    "the join": (threading.Thread, "join"),
    "the wait for the writer": (BackgroundSink, "flush"),
    "the commit": (DirectorySink, "commit_run"),
    "the end of the files": (RunWriter, "_finish_files"),
    "the facts": (RunWriter, "_write_facts"),
    "the opening": (DirectorySink, "open_run"),
    "a batch that leaves": (BackgroundSink, "write"),
}


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interruption_of_ours_passes_and_the_next_run_is_whole(
    model, session, path, monkeypatch, place, way
):
    def run():
        with torch.no_grad():
            return generate(model, TOKENS) if way == "generate" else model(IDS).logits

    want, before = run(), session.last_run + 1
    once(monkeypatch, *PLACES[place])
    with pytest.raises(KeyboardInterrupt):
        run()
    assert torch.equal(run(), want)
    last = session.last_run
    session.close()
    assert facts(path, last)["complete"]
    assert not any(facts(path, number)["complete"] for number in range(before + 1, last))
    assert is_plain(model, set(model.__dict__))
    assert "hf_dumper writer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit])
@pytest.mark.parametrize("name", ["write", "_drain"])
def test_a_writer_thread_that_dies(model, session, path, monkeypatch, kind, name):
    want = generate(model, TOKENS)

    def die(*_):
        raise kind

    if name == "write":
        fail_at(monkeypatch, "write", kind(), forward=3)
    else:
        monkeypatch.setattr(BackgroundSink, "_drain", die)
    with pytest.warns(DumpIncompleteWarning, match=kind.__name__):
        got = generate(model, TOKENS)
    monkeypatch.undo()
    generate(model, TOKENS)
    session.close()
    assert torch.equal(got, want)
    assert kind.__name__ in facts(path, 2)["incomplete"]
    assert "records were dropped" in facts(path, 2)["incomplete"]
    assert readable_forwards(path, 2) == ([0, 1, 2] if name == "write" else [])
    assert facts(path, 3)["complete"]


def no_more_threads(_self):
    msg = "can't start new thread"
    raise RuntimeError(msg)


def test_a_thread_that_cannot_be_started(model, session, path, monkeypatch):
    want = generate(model, TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.warns(DumpIncompleteWarning, match="can't start new thread") as warned:
            got = generate(model, TOKENS)
    generate(model, TOKENS)
    session.close()
    assert torch.equal(got, want)
    assert len(warned) == 1
    assert "can't start new thread" in facts(path, 2)["incomplete"]
    assert [facts(path, run)["complete"] for run in (0, 1, 2, 3)] == [True, True, False, True]


def test_a_thread_that_cannot_be_started_stops_the_generation_if_asked_to(
    model, tmp_path, monkeypatch
):
    session = register_hook(model, DumpConfig(tmp_path, on_error="raise"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(DumpWriteError, match="can't start new thread"):
            generate(model)
    generate(model)
    session.close()


def test_interruptions_do_not_use_up_the_memory_for_copies(model, session, monkeypatch):
    for _ in range(12):  # more than there are chunks
        once(monkeypatch, BackgroundSink, "write")
        with pytest.raises(KeyboardInterrupt):
            generate(model, TOKENS)
    generate(model, TOKENS)
    assert session._dump.arena.bytes_in_flight == 0
    session.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, DumpIdentityError])
def test_a_run_that_is_not_opened_leaves_the_seed_behind(model, tmp_path, monkeypatch, error):
    session = register_hook(model, DumpConfig(tmp_path, seed=1))
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    fail_at(monkeypatch, "open_run", error("not now"))
    with pytest.raises(error, match="not now") as caught:
        generate(model)
    monkeypatch.undo()
    after = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    assert caught.traceback  # which keeps the frames alive: no collector has put things right
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    generate(model)
    session.close()


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of its own, of 600 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("others", [False, True])
def test_a_disk_that_is_truly_full(model, small_disk, others):
    def fill():
        with (small_disk / "others").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(512)):
                pass

    want, path = generate(model, 20), small_disk / "d"
    session = register_hook(model, DumpConfig(path, "all", hash_weights=False))
    handle = at_forward(model, 2, fill if others else lambda: None)
    with pytest.warns(DumpIncompleteWarning, match="No space left on device"):
        got = generate(model, 20)
    handle.remove()
    with pytest.warns(DumpIncompleteWarning, match="No space left on device"):
        again = generate(model, 20)
    session.close()
    assert torch.equal(got, want)
    assert torch.equal(again, want)
    assert readable_forwards(path)
    with open_dump(path) as reader:
        runs = reader.runs()  # the second one may have found no room at all
    for run in runs:
        info, forwards = facts(path, run), readable_forwards(path, run)
        assert info["complete"] is False
        assert "No space left on device" in info["incomplete"]
        assert forwards == list(range(len(forwards)))
