"""Files that are whole or absent."""

import os

import pytest

from hf_dumper.errors import DumpFormatError, DumpNotFoundError
from hf_dumper.store.files import GrowingFile, read_json, write_json


def test_a_growing_file_holds_what_was_appended(tmp_path):
    file = GrowingFile(tmp_path / "f", b"head")
    for part in (b"abcde", b"", b"f"):
        file.append(memoryview(part))
    assert (tmp_path / "f").read_bytes() == b"headabcdef"
    file.close()


def test_a_growing_file_never_replaces_another(tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(FileExistsError):
        GrowingFile(tmp_path / "f")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, part, place: pwrite(fd, part[:3], place))
    file = GrowingFile(tmp_path / "f")
    file.append(memoryview(b"abcdefghijklmnop"))
    file.close()
    assert (tmp_path / "f").read_bytes() == b"abcdefghijklmnop"


def test_what_fails_halfway_is_cut_off_again(tmp_path, monkeypatch):
    file = GrowingFile(tmp_path / "f", b"head")
    pwrite = os.pwrite
    results = iter([3])

    def fail_later(fd, part, place):
        try:
            return pwrite(fd, part[: next(results)], place)
        except StopIteration:
            raise OSError(28, "No space left on device") from None

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail_later)
        with pytest.raises(OSError, match="No space"):
            file.append(memoryview(b"abcdef"))
    file.append(memoryview(b"xyz"))
    file.close()
    assert (tmp_path / "f").read_bytes() == b"headxyz"


def test_a_file_that_cannot_be_begun_is_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        GrowingFile(tmp_path / "f", b"head")
    assert list(tmp_path.iterdir()) == []


def test_a_growing_file_may_be_closed_twice(tmp_path):
    file = GrowingFile(tmp_path / "f")
    file.close()
    file.close()


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "f.json", {"a": [1, None, "ü\ud800"], "path": tmp_path})
    assert read_json(tmp_path / "f.json") == {"a": [1, None, "ü\ud800"], "path": str(tmp_path)}


def test_json_that_fails_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "f.json", {"a": 1})
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(ValueError, match="Circular"):
        write_json(tmp_path / "f.json", loop)
    assert read_json(tmp_path / "f.json") == {"a": 1}


@pytest.mark.parametrize("text", ["", '{"a": ', "[1]", "\x00\xff", "[" * 100_000])
def test_damaged_json_names_the_file(tmp_path, text):
    (tmp_path / "f.json").write_text(text, encoding="latin-1")
    with pytest.raises(DumpFormatError, match=r"f\.json is damaged"):
        read_json(tmp_path / "f.json")


def test_missing_json_is_not_found(tmp_path):
    with pytest.raises(DumpNotFoundError, match=r"f\.json"):
        read_json(tmp_path / "f.json")
