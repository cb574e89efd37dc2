"""Single tensors in .pth files: what comes back, and what is refused before it does harm."""

import os
import pickle
import zipfile

import pytest
import torch

from hf_dumper.capture.storable import STORABLE
from hf_dumper.errors import DumpFormatError
from hf_dumper.store.lookup import Row
from hf_dumper.store.pth import OVERHEAD, read_pth, write_pth


def row(tensor, name="x.pth", **changes):
    dtype = str(tensor.dtype).removeprefix("torch.")
    what = Row(0, 0, "", dtype, list(tensor.shape), name, 0, tensor.nbytes, "stored", "")
    return what._replace(**changes)


@pytest.mark.parametrize("dtype", STORABLE)
def test_every_type_comes_back_with_its_bytes(tmp_path, dtype):
    data = torch.arange(2 * 3 * dtype.itemsize, dtype=torch.uint8)
    tensor = (data % 2 if dtype is torch.bool else data).view(dtype).reshape(2, 3)
    write_pth(tmp_path / "x.pth", tensor)
    got = read_pth(tmp_path, row(tensor))
    assert got.dtype is dtype
    assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors_keep_their_shape(tmp_path, shape):
    write_pth(tmp_path / "x.pth", torch.ones(shape))
    assert read_pth(tmp_path, row(torch.ones(shape))).shape == shape


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path):
    tensor = torch.zeros(1 << 20)[3:5]
    write_pth(tmp_path / "x.pth", tensor)
    assert (tmp_path / "x.pth").stat().st_size < 4096
    assert torch.load(tmp_path / "x.pth").untyped_storage().nbytes() == 8


def test_nothing_else_is_left_in_the_folder(tmp_path):
    write_pth(tmp_path / "x.pth", torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_no_foreign_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Harm(), tmp_path / "x.pth")
    with pytest.raises(DumpFormatError, match=r"x\.pth cannot be read as a tensor"):
        read_pth(tmp_path, row(torch.ones(2)))
    assert not (tmp_path / "harm").exists()


def test_a_plain_pickle_is_not_run_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DumpFormatError, match="cannot be read"):
        read_pth(tmp_path, row(torch.ones(2)))
    assert not (tmp_path / "harm").exists()


def test_a_file_larger_than_its_tensor_is_not_read(tmp_path):
    write_pth(tmp_path / "x.pth", torch.zeros(OVERHEAD))
    with pytest.raises(DumpFormatError, match="bytes for a tensor of 8"):
        read_pth(tmp_path, row(torch.zeros(2)))


def test_an_archive_that_unpacks_to_more_is_not_read(tmp_path):
    write_pth(tmp_path / "plain.pth", torch.zeros(1 << 20))
    packed = zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(DumpFormatError, match="compressed"):
        read_pth(tmp_path, row(torch.zeros(2)))


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_torn_file_is_an_error(tmp_path, kept):
    write_pth(tmp_path / "x.pth", torch.ones(2))
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:kept])
    with pytest.raises(DumpFormatError, match="cannot be read"):
        read_pth(tmp_path, row(torch.ones(2)))


@pytest.mark.parametrize("changes", [{"dtype": "int32"}, {"shape": [2, 1]}])
def test_another_tensor_than_the_index_says_is_an_error(tmp_path, changes):
    write_pth(tmp_path / "x.pth", torch.ones(2))
    with pytest.raises(DumpFormatError, match="and the index says"):
        read_pth(tmp_path, row(torch.ones(2), **changes))


def test_a_list_of_tensors_is_an_error(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pth")
    with pytest.raises(DumpFormatError, match="it holds list"):
        read_pth(tmp_path, row(torch.ones(2)))


@pytest.mark.parametrize("name", ["../x.pth", "/x.pth", "link.pth"])
def test_a_path_that_leaves_the_dump_is_refused(tmp_path, name):
    (tmp_path / "dump").mkdir()
    write_pth(tmp_path / "x.pth", torch.ones(2))
    (tmp_path / "dump" / "link.pth").symlink_to(tmp_path / "x.pth")
    with pytest.raises(DumpFormatError, match="outside of the dump"):
        read_pth(tmp_path / "dump", row(torch.ones(2), name))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(DumpFormatError, match="no regular file"):
        read_pth(tmp_path, row(torch.ones(2)))
