"""With `durable=True` bytes are on the disk before a name makes them count; by order of calls."""

import os
from pathlib import Path

import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import DumpWriteError
from hf_dumper.store import DirectorySink, MsitSink, durable, open_dump
from hf_dumper.store.files import free_room, read_json, write_json
from hf_dumper.store.layout import POSITIONS_SCHEMA
from hf_dumper.store.tables import write_parquet
from tests.batches import BatchMaker

MANIFEST = {"identity": {"model": "m"}}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Record fsync, rename and unlink with the path, relative to the folder of the test."""
    found = []

    def short(path):
        return str(Path(path).resolve().relative_to(tmp_path))

    def note(name, where):
        original = getattr(os, name)

        def act(*args, **kwargs):
            found.append((name.replace("rename", "replace"), short(where(*args))))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, act)

    note("fsync", lambda fd: Path(f"/proc/self/fd/{fd}").readlink())
    note("rename", lambda _source, target: target)
    note("replace", lambda _source, target: target)
    note("unlink", lambda path: path)
    return found


def write_run(path, kind=DirectorySink, **options):
    sink = kind(path, MANIFEST, tree={"name": "root"}, **options)
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker()
    for forward in range(3):
        maker.begin(forward, forward).add("a", torch.ones(2000))
        sink.write(maker.end())
    sink.commit_run(RunResult({}, {}))


def at(calls, name, path):
    """Return the place of the one call of that name and path."""
    (place,) = [i for i, call in enumerate(calls) if call == (name, path)]
    return place


def synced_before(calls, place):
    return {path for name, path in calls[:place] if name == "fsync"}


RANK = "d/runs/000000/rank-0"
NAMED = [
    "d/manifest.json",
    "d/model_tree.json",
    f"{RANK}/shard-00000.safetensors",
    f"{RANK}/shard-00001.safetensors",
    f"{RANK}/index.parquet",
    f"{RANK}/positions.parquet",
    "d/runs/000000/run.json",
]


@pytest.mark.parametrize("path", NAMED)
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, calls, path):
    write_run(tmp_path / "d", durable=True, shard_bytes=9000)
    place = at(calls, "replace", path)
    name, synced = calls[place - 1]
    stem = Path(path).name.partition(".")[0]
    assert (name, Path(synced).parent) == ("fsync", Path(path).parent)
    assert Path(synced).name.startswith(stem)


def test_everything_is_on_the_disk_before_run_json_has_its_name(tmp_path, calls):
    write_run(tmp_path / "d", durable=True)
    place = at(calls, "replace", "d/runs/000000/run.json")
    others = [at(calls, "replace", path) for path in NAMED if path != NAMED[3]][:-1]
    assert max(others) < place
    after = {path for name, path in calls[max(others) + 1 : place] if name == "fsync"}
    assert {RANK, "d/runs/000000", "d/runs", "d"} <= after


def test_the_name_of_run_json_is_on_the_disk_at_the_end(tmp_path, calls):
    write_run(tmp_path / "d", durable=True)
    place = at(calls, "replace", "d/runs/000000/run.json")
    assert ("fsync", "d/runs/000000") in calls[place + 1 :]


@pytest.mark.parametrize("name", ["index", "positions"])
def test_a_stream_goes_only_when_the_name_of_its_table_is_on_the_disk(tmp_path, calls, name):
    write_run(tmp_path / "d", durable=True)
    named = at(calls, "replace", f"{RANK}/{name}.parquet")
    gone = at(calls, "unlink", f"{RANK}/{name}.partial")
    assert ("fsync", RANK) in calls[named + 1 : gone]


def test_a_new_dump_is_itself_on_the_disk(tmp_path, calls):
    DirectorySink(tmp_path / "d", MANIFEST, durable=True)
    named = at(calls, "replace", "d/manifest.json")
    assert calls[named + 1 :] == [("fsync", "d"), ("fsync", ".")]


def test_all_of_a_msit_run_is_on_the_disk_before_run_json_has_its_name(tmp_path, calls):
    write_run(tmp_path / "d", MsitSink, durable=True, statistics=True, analyze=True)
    (run,) = (tmp_path / "d").glob("*/hf_dumper/run.json")
    synced = synced_before(calls, at(calls, "replace", str(run.relative_to(tmp_path))))
    there = {"d", *(str(path.relative_to(tmp_path)) for path in (tmp_path / "d").rglob("*"))}
    tables = {path for path in there if path.endswith((".parquet", "/run.json"))}
    assert len([path for path in there if path.endswith((".pth", ".csv"))]) == 7
    assert there - tables <= synced
    assert all(any(path in name for name in synced) for path in tables)


@pytest.mark.parametrize("tensors", [True, False])
def test_a_msit_run_that_does_not_reach_the_disk_says_so(tmp_path, monkeypatch, tensors):
    real = durable.sync

    def sync(path):
        if path.suffix == ".csv":
            raise OSError(5, "Input/output error", str(path))
        real(path)

    monkeypatch.setattr(durable, "sync", sync)
    with pytest.raises(DumpWriteError, match=r"\.csv: Input/output error"):
        write_run(tmp_path, MsitSink, durable=True, statistics=True, tensors=tensors)
    with open_dump(tmp_path) as reader:
        assert "Input/output error" in reader.run_info()["incomplete"]
        assert reader.index().num_rows == 3


@pytest.mark.parametrize("kind", [DirectorySink, MsitSink])
def test_without_it_nothing_waits_for_the_disk(tmp_path, calls, kind):
    write_run(tmp_path / "d", kind)
    assert "fsync" not in {name for name, _ in calls}


def test_a_table_that_cannot_be_written_takes_no_room(tmp_path, monkeypatch):
    def write(fd, view, _offset):
        os.write(fd, view[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_dumper.store.files.os.pwrite", write)
    with pytest.raises(OSError, match="No space left"):
        write_parquet(tmp_path / "t.parquet", POSITIONS_SCHEMA.empty_table())
    assert list(tmp_path.iterdir()) == []


def test_room_that_a_file_has_set_aside_can_be_given_back(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1}, room=4096)
    assert path.stat().st_size > 4096
    assert read_json(path) == {"a": 1}
    free_room(path)
    assert path.stat().st_size == len('{\n "a": 1\n}')
    assert read_json(path) == {"a": 1}
