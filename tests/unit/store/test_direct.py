"""Files written around the page cache hold what plain ones hold."""

import os
import random

import pytest

from hf_dumper.store.direct import BUFFER_BYTES, DirectFile, grow
from hf_dumper.store.files import GrowingFile
from hf_dumper.store.layout import PAGE

HEAD = bytes(2 * PAGE)
SIZES = (1, 5, PAGE - 6, PAGE, PAGE + 1, 0, BUFFER_BYTES + 3, 17, 3 * BUFFER_BYTES, 2)


@pytest.fixture
def direct(tmp_path):
    file = grow(tmp_path / "direct", HEAD)
    if not isinstance(file, DirectFile):
        pytest.skip("the file system of the temporary folder has no O_DIRECT")
    yield file
    file.close()


def pieces():
    chance = random.Random(0)
    return [chance.randbytes(size) for size in SIZES]


def test_every_append_is_in_the_file_when_it_returns(direct):
    expected = HEAD
    for piece in pieces():
        direct.append(memoryview(piece))
        expected += piece
        assert direct.path.read_bytes()[: len(expected)] == expected


def test_the_padding_goes_when_the_head_is_replaced(direct):
    for piece in pieces():
        direct.append(memoryview(piece))
    direct.overwrite(b"h" * len(HEAD))
    assert direct.path.read_bytes() == b"h" * len(HEAD) + b"".join(pieces())


def test_the_end_counts_no_padding(direct):
    direct.append(memoryview(b"abc"))
    assert direct.end == len(HEAD) + 3


def test_a_failed_append_leaves_the_file_as_it_was(direct, monkeypatch):
    direct.append(memoryview(b"before"))
    real, calls = os.pwrite, []

    def full(*arguments):
        calls.append(arguments)
        return real(*arguments) if len(calls) == 1 else 0

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            direct.append(memoryview(bytes(2 * BUFFER_BYTES)))
    direct.append(memoryview(b" after"))
    direct.overwrite(HEAD)
    assert direct.path.read_bytes() == HEAD + b"before after"


def test_a_file_system_without_direct_access_gets_a_plain_file(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *mode):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    file = grow(tmp_path / "plain", HEAD)
    file.close()
    assert type(file) is GrowingFile


def test_a_folder_that_cannot_be_written_is_not_taken_for_that(tmp_path):
    with pytest.raises(FileNotFoundError):
        grow(tmp_path / "missing" / "file", HEAD)
