"""Shards byte by byte, and as safetensors sees them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hf_dumper.core.arena import Arena
from hf_dumper.errors import DumpWriteError
from hf_dumper.store.direct import DirectFile
from hf_dumper.store.files import GrowingFile
from hf_dumper.store.shards import FIRST_HEAD, LEAST_HEAD, ShardSet
from tests.batches import BatchMaker, content

DTYPES = [
    "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64",
    "complex64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
]


@pytest.fixture(params=["direct", "plain"], autouse=True)
def way(request, monkeypatch):
    """Run every test around the page cache, where that can be done, and through it."""
    if request.param == "plain":
        monkeypatch.setattr("hf_dumper.store.shards.grow", GrowingFile)


def opened(used, path, head):
    try:
        return used(path, head)
    except OSError:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), length, data[8 + length :]


def write(folder, *tensors, forward=0, expected=0, **options):
    shards = ShardSet(folder, expected, **options)
    maker = BatchMaker().begin(forward)
    for i, tensor in enumerate(tensors):
        maker.add(f"m{i}", tensor)
    places = shards.store(forward, maker.end().resolve())
    shards.finish()
    return places


def test_a_tiny_shard_is_these_bytes(tmp_path):
    write(tmp_path, torch.tensor([1.0, -2.0]), torch.tensor([True, False, True]))
    header = (
        b'{"0/m0:output:0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"0/m1:output:0":{"dtype":"BOOL","shape":[3],"data_offsets":[8,11]}}'
    )
    golden = (4088).to_bytes(8, "little") + header.ljust(4088, b" ")
    golden += bytes.fromhex("0000803f 000000c0 010001")
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == golden


@pytest.mark.parametrize("dtype", " ".join(DTYPES).split())
def test_safetensors_reads_every_type(tmp_path, dtype):
    tensor = torch.arange(4).to(getattr(torch, dtype)).reshape(2, 2)
    write(tmp_path, tensor)
    with safe_open(tmp_path / "shard-00000.safetensors", "pt") as file:
        found = file.get_tensor("0/m0:output:0")
    assert found.dtype == tensor.dtype
    assert content(found) == content(tensor)


def test_complex128_is_stored_as_pairs(tmp_path):
    write(tmp_path, torch.tensor([1 + 2j], dtype=torch.complex128))
    found = load_file(tmp_path / "shard-00000.safetensors")["0/m0:output:0"]
    assert found.tolist() == [[1.0, 2.0]]


def test_a_type_that_safetensors_lacks_is_stored_as_bytes(tmp_path):
    maker = BatchMaker()
    maker.add("m0", torch.arange(6, dtype=torch.uint8))
    records = maker.end().resolve()
    shards = ShardSet(tmp_path, 0)
    shards.store(
        0,
        replace(records, what=[records.what[0]._replace(dtype="int3", shape=(16,))]),
    )
    shards.finish()
    assert load_file(tmp_path / "shard-00000.safetensors")["0/m0:output:0"].tolist() == [*range(6)]


def test_tensors_without_elements_and_without_dimensions_are_accepted(tmp_path):
    write(tmp_path, torch.empty(0, 3), torch.tensor(7.0), torch.empty(0), torch.ones(1))
    found = load_file(tmp_path / "shard-00000.safetensors")
    assert [tuple(found[f"0/m{i}:output:0"].shape) for i in range(4)] == [(0, 3), (), (0,), (1,)]


def test_data_begins_on_a_page(tmp_path):
    places = write(tmp_path, torch.ones(1), expected=100)
    assert places.offset[0] % 4096 == 0


def test_a_file_ends_with_its_last_tensor(tmp_path):
    write(tmp_path, torch.ones(3))
    assert (tmp_path / "shard-00000.safetensors").stat().st_size == 4096 + 12


def test_offsets_count_from_the_start_of_the_file(tmp_path):
    places = write(tmp_path, torch.ones(3), torch.arange(4))
    offset = places.offset[1]
    data = (tmp_path / places.shard[1]).read_bytes()
    assert data[offset : offset + 32] == content(torch.arange(4))


def test_the_header_is_filled_to_the_last_byte_and_no_further(tmp_path):
    tensors = [torch.ones(1)] * 400
    write(tmp_path, *tensors)
    shards = sorted(tmp_path.glob("*.safetensors"))
    headers = [header_of(shard) for shard in shards]
    used = [len(json.dumps(header, separators=(",", ":"))) for header, _, _ in headers]
    longest = max(
        len(json.dumps({name: entry}, separators=(",", ":")))
        for header, _, _ in headers
        for name, entry in header.items()
    )
    for size, (_, room, _) in zip(used[:-1], headers[:-1], strict=True):
        assert room - longest < size <= room


@pytest.mark.parametrize(("more", "head"), [(0, LEAST_HEAD), (1, LEAST_HEAD + 4096)])
def test_a_lone_tensor_gets_the_room_that_its_name_needs(tmp_path, more, head):
    entry = '{"0/:output:0":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    name = "x" * (LEAST_HEAD - 8 - len(entry) + more)
    maker = BatchMaker()
    maker.add(name, torch.ones(1, dtype=torch.uint8))
    shards = ShardSet(tmp_path, 0)
    shards.store(0, maker.end().resolve())
    shards.finish()
    header, room, _ = header_of(tmp_path / "shard-00000.safetensors")
    assert list(header) == [f"0/{name}:output:0"]
    assert room + 8 == head


def test_a_full_header_begins_the_next_shard(tmp_path):
    places = write(tmp_path, *[torch.ones(1)] * 200)
    assert set(places.shard) == {
        f"shard-{i:05d}.safetensors" for i in range(len(list(tmp_path.iterdir())))
    }
    found = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert sum(map(len, found)) == 200


def test_the_room_doubles_from_shard_to_shard(tmp_path):
    write(tmp_path, *[torch.ones(1)] * 400)
    rooms = [header_of(path)[1] + 8 for path in sorted(tmp_path.glob("*.safetensors"))]
    assert rooms[:3] == [4096, 8192, 16384]


def test_the_first_room_follows_from_the_expected_records(tmp_path):
    for expected, least, most in ((0, 0, 4096), (1000, 150_000, 170_000), (10**9, 0, FIRST_HEAD)):
        folder = tmp_path / str(expected)
        folder.mkdir()
        write(folder, torch.ones(1), expected=expected)
        assert least <= header_of(folder / "shard-00000.safetensors")[1] <= most + 4096


def test_data_beyond_the_limit_begins_the_next_shard(tmp_path):
    places = write(tmp_path, *[torch.ones(10)] * 5, shard_bytes=100)
    assert [name[9:11] for name in places.shard] == ["00", "00", "01", "01", "02"]


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path):
    tensors = [torch.ones(1), torch.ones(100), torch.ones(1)]
    places = write(tmp_path, *tensors, shard_bytes=100)
    assert [name[9:11] for name in places.shard] == ["00", "01", "02"]


def test_a_tensor_larger_than_a_chunk_is_whole(tmp_path):
    maker = BatchMaker(Arena(chunk_bytes=4096))
    tensors = [torch.arange(10), torch.arange(5000), torch.arange(10)]
    for i, tensor in enumerate(tensors):
        maker.add(f"m{i}", tensor)
    shards = ShardSet(tmp_path, 0)
    shards.store(0, maker.end().resolve())
    shards.finish()
    found = load_file(tmp_path / "shard-00000.safetensors")
    assert all(torch.equal(found[f"0/m{i}:output:0"], t) for i, t in enumerate(tensors))


@pytest.mark.parametrize("used", [DirectFile, GrowingFile])
def test_a_batch_is_one_write(tmp_path, monkeypatch, used):
    extents = []
    append = used.append

    def count(self, view):
        extents.append(1)
        append(self, view)

    monkeypatch.setattr(used, "append", count)
    monkeypatch.setattr("hf_dumper.store.shards.grow", lambda path, head: opened(used, path, head))
    write(tmp_path, *[torch.ones(5)] * 20)
    assert extents[1:] == [1]  # the first is the room


def test_names_that_json_must_escape_survive(tmp_path):
    maker = BatchMaker()
    maker.add('a"b\\c\nü', torch.ones(1))
    shards = ShardSet(tmp_path, 0)
    shards.store(0, maker.end().resolve())
    shards.finish()
    assert list(load_file(tmp_path / "shard-00000.safetensors")) == ['0/a"b\\c\nü:output:0']


def test_two_tensors_of_one_name_are_refused(tmp_path):
    maker = BatchMaker()
    maker.add("m", torch.ones(1))
    maker.add("m", torch.ones(1))
    shards = ShardSet(tmp_path, 0)
    with pytest.raises(DumpWriteError, match="'/m:output:0'"):
        shards.store(0, maker.end().resolve())


def test_what_was_queued_before_an_error_is_not_written_later(tmp_path):
    maker = BatchMaker()
    maker.add("good", torch.ones(1))
    shards = ShardSet(tmp_path, 0)
    shards.store(0, maker.part().resolve())
    for _ in range(2):
        maker.add("bad", torch.ones(1))
    with pytest.raises(DumpWriteError):
        shards.store(0, maker.end().resolve())
    shards.finish()
    assert list(load_file(tmp_path / "shard-00000.safetensors")) == ["0/good:output:0"]


def test_a_failed_write_leaves_a_shard_that_opens(tmp_path, monkeypatch):
    maker = BatchMaker()
    maker.add("good", torch.ones(1))
    shards = ShardSet(tmp_path, 0)
    shards.store(0, maker.part().resolve())
    maker.add("lost", torch.ones(9))
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", lambda *_: raise_full())
        with pytest.raises(OSError, match="No space"):
            shards.store(0, maker.end().resolve())
    shards.finish()
    assert list(load_file(tmp_path / "shard-00000.safetensors")) == ["0/good:output:0"]


def test_a_run_without_tensors_has_no_shard(tmp_path):
    shards = ShardSet(tmp_path, 10)
    maker = BatchMaker()
    maker.skip("m", "sparse")
    shards.store(0, maker.end().resolve())
    shards.finish()
    assert list(tmp_path.iterdir()) == []


def raise_full():
    raise OSError(28, "No space left on device")
