"""What is written: every distinct memory once, in a few files, by one thread, in few writes."""

import errno
import json
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.store.layout import LOCK, PAGE
from tests.guards.counting import HEAVY, MODES, Writes, dump, generate

DESCRIPTORS = Path("/proc/self/fd")

hooks_of_both_kinds = pytest.mark.usefixtures("kind_of_hooks")


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def shards(path):
    return sorted(path.rglob("*.safetensors"))


def data_of(shard):
    """Return what follows the header of a shard."""
    content = shard.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def distinct(path):
    """Return the different values of each forward: (forward, type, shape, bytes)."""
    with open_dump(path) as reader:
        values = ((key.forward, reader.load_key(key)) for key in reader.keys(run=0))
        return {(forward, v.dtype, tuple(v.shape), raw(v)) for forward, v in values}


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", ["tensors", "both", "last logits"])
@pytest.mark.parametrize("columns", [7, 300])
def test_every_distinct_memory_is_on_disk_once(tiny_llama, tmp_path, mode, columns):
    model = tiny_llama(max_position_embeddings=512)
    dump(model, tmp_path, lambda model: generate(model, 3, columns), **MODES[mode])
    (shard,) = shards(tmp_path)
    assert len(data_of(shard)) == sum(len(value) for *_, value in distinct(tmp_path))
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["bytes"] == len(data_of(shard))


@hooks_of_both_kinds
def test_statistics_alone_write_no_tensors(tiny_llama, tmp_path):
    dump(tiny_llama(), tmp_path, **MODES["statistics"])
    assert shards(tmp_path) == []


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_files_does_not_depend_on_the_tokens(tiny_llama, tmp_path, mode):
    found = {}
    for tokens in (1, 12):
        path = tmp_path / str(tokens)
        dump(tiny_llama(), path, lambda model, n=tokens: generate(model, n), **MODES[mode])
        found[tokens] = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert found[1] == found[12]
    assert len(found[1]) == (6 if mode == "statistics" else 7)


def writes_of(monkeypatch, model, path, tokens, options):
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        dump(model, path, lambda model: generate(model, tokens), **options)
    return writes


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layers", [1, 8])
def test_a_token_more_is_four_writes_more_however_many_tensors_it_has(
    tiny_llama, tmp_path, monkeypatch, mode, layers
):
    calls = []
    for tokens in (4, 24):
        model = tiny_llama(num_hidden_layers=layers, **HEAVY)
        path = tmp_path / str(tokens)
        calls.append(writes_of(monkeypatch, model, path, tokens, MODES[mode]).calls.total())
    # The index, the positions, and the tensors: before the head, and after it.
    assert 0 < calls[1] - calls[0] <= 20 * 4
    if mode == "statistics":
        assert calls[1] - calls[0] == 20 * 2


@hooks_of_both_kinds
def test_the_bytes_of_a_shard_are_written_once(tiny_llama, tmp_path, monkeypatch):
    model = tiny_llama(max_position_embeddings=512)
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        dump(model, tmp_path, lambda model: generate(model, 3, 300))
    (shard,) = shards(tmp_path)
    header = shard.stat().st_size - len(data_of(shard))
    ((name, written),) = [(n, b) for n, b in writes.bytes.items() if n.startswith("shard")]
    # The header twice: first as room. A block that is not full is written again when it grows.
    assert written <= len(data_of(shard)) + 2 * header + 2 * PAGE * writes.calls[name]


class Looks:
    """A hook of the user that looks at the process in the middle of every forward."""

    def __init__(self, model, look):
        self.seen = []
        model.lm_head.register_forward_hook(lambda *_: self.seen.append(look()))


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
def test_one_thread_writes(tiny_llama, tmp_path, monkeypatch, mode):
    model, before = tiny_llama(), set(threading.enumerate())
    started, start = [], threading.Thread.start

    def count(thread):
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", count)
    looks = Looks(model, lambda: set(threading.enumerate()) - before)
    dump(model, tmp_path, lambda model: generate(model, 8), **MODES[mode])
    assert [len(more) for more in looks.seen] == [1] * 8
    assert len(started) == 1
    assert set(threading.enumerate()) == before


@hooks_of_both_kinds
@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="descriptors cannot be listed here")
@pytest.mark.parametrize("mode", MODES)
def test_three_files_are_open_in_a_run_and_none_after_it(tiny_llama, tmp_path, mode):
    model = tiny_llama()
    dump(model, tmp_path / "first", **MODES[mode])  # whatever is opened once

    def opened():
        links = (link for link in DESCRIPTORS.iterdir() if link.is_symlink())
        names = [name for name in map(os.readlink, links) if name.startswith(str(tmp_path))]
        return [name for name in names if Path(name).name != LOCK]  # open as long as the session

    looks = Looks(model, opened)
    with register_hook(model, DumpConfig(tmp_path / "second", "all", **MODES[mode])):
        generate(model, 8)
        assert opened() == []
    most = 2 if mode == "statistics" else 3
    assert [len(names) <= most for names in looks.seen] == [True] * 8
    assert len(looks.seen[-1]) == most


@hooks_of_both_kinds
@pytest.mark.parametrize("mode", MODES)
def test_a_tensor_is_hashed_once_at_most(tiny_llama, tmp_path, monkeypatch, mode):
    hashed = []
    for module in [m for name, m in sys.modules.items() if name.startswith("hf_dumper.")]:
        real = getattr(module, "xxh3_64_intdigest", None)
        if real is None or "manifest" in module.__name__:  # weights are hashed once per dump
            continue

        def spy(data, *seed, real=real):
            hashed.append(memoryview(data).nbytes)
            return real(data, *seed)

        monkeypatch.setattr(module, "xxh3_64_intdigest", spy)
    model = tiny_llama(max_position_embeddings=512)
    dump(model, tmp_path, lambda model: generate(model, 3, 300), **MODES[mode])
    with open_dump(tmp_path) as reader:
        sizes = Counter(reader.index(0)["nbytes"].to_pylist())
    assert Counter(hashed) <= sizes  # less when compiled code hashes


# --- around the page cache, and through it -------------------------------------------------------


def refuse_to_open(patch, number):
    real = os.open

    def open_file(path, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **kwargs)

    patch.setattr(os, "open", open_file)


def refuse_to_write(patch):
    """Open as if it could be done, and refuse the first write, as some file systems do."""
    real_open, real_write, direct = os.open, os.pwrite, set()

    def open_file(path, flags, *args, **kwargs):
        fd = real_open(path, flags & ~os.O_DIRECT, *args, **kwargs)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def write(fd, data, place):
        if fd in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(fd, data, place)

    patch.setattr(os, "open", open_file)
    patch.setattr(os, "pwrite", write)


WAYS = {
    "direct": lambda _patch: None,
    "refused when opened": lambda patch: refuse_to_open(patch, errno.EINVAL),
    "not supported": lambda patch: refuse_to_open(patch, errno.EOPNOTSUPP),
    "refused when written": refuse_to_write,
    "unknown to the system": lambda patch: patch.delattr(os, "O_DIRECT"),
}
needs_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT here")


def whole(path):
    """Return all of a dump that does not tell the time: shards, index, positions, run."""
    with open_dump(path) as reader:
        info = json.loads(json.dumps(reader.run_info(0), default=str))
        tables = reader.index(0).to_pylist(), reader.positions(0).to_pylist()
    return [shard.read_bytes() for shard in shards(path)], tables, info


def dump_of_all_sizes(model, path):
    """Dump tensors of some bytes and some hundred kilobytes, over several shard writes."""
    return dump(model, path, lambda model: generate(model, 4, 300), dump_statistics_mode=2)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(max_position_embeddings=512)


@needs_direct
@pytest.mark.parametrize("way", WAYS)
def test_a_dump_is_the_same_in_every_way_of_writing(model, tmp_path, monkeypatch, way):
    want = whole(dump_of_all_sizes(model, tmp_path / "as it comes"))
    with monkeypatch.context() as patch:
        WAYS[way](patch)
        dump_of_all_sizes(model, tmp_path / "other")
    assert whole(tmp_path / "other") == want
    assert want[2]["complete"]
    assert list(tmp_path.rglob("*.partial")) == []


@needs_direct
@pytest.mark.parametrize("way", ["direct", "refused when opened"])
def test_the_dump_went_the_way_that_it_should(model, tmp_path, monkeypatch, way):
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    (tmp_path / "probe").unlink()
    with monkeypatch.context() as patch:
        WAYS[way](patch)
        writes = Writes(patch)
        dump_of_all_sizes(model, tmp_path / "dump")
    flags = [flags for name, flags in writes.flags.items() if name.startswith("shard")]
    assert [bool(f & os.O_DIRECT) for f in flags] == [way == "direct"]


def filesystem_of(folder):
    """Return the type of the file system that is mounted at a folder, None if none is."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return None
    return dict(line.split()[1:3] for line in mounts).get(str(folder))


@pytest.fixture
def memory_folder():
    """Return a folder on a tmpfs."""
    shared = Path("/dev/shm")
    if filesystem_of(shared) != "tmpfs" or not os.access(shared, os.W_OK):
        pytest.skip("there is no tmpfs at hand")
    if shutil.disk_usage(shared).free < 64 << 20:
        pytest.skip("the tmpfs at hand is full")
    folder = tempfile.mkdtemp(dir=shared)
    yield Path(folder)
    shutil.rmtree(folder)


def test_a_dump_on_a_file_system_in_memory_is_the_same(model, tmp_path, memory_folder):
    want = whole(dump_of_all_sizes(model, tmp_path / "dump"))
    assert whole(dump_of_all_sizes(model, memory_folder / "dump")) == want
