"""Which reader opens a folder, and what the errors point to."""

import pytest

from hf_dumper.errors import ConfigError, DumpFormatError, DumpNotFoundError
from hf_dumper.store import READERS, DirectorySink, NativeReader, open_dump


@pytest.fixture
def dump(tmp_path):
    return DirectorySink(tmp_path / "golden", {}).path


@pytest.fixture
def eager(monkeypatch):
    """Register a reader that recognises everything."""

    class Eager(NativeReader):
        @classmethod
        def detect(cls, path):
            return True

    monkeypatch.setattr(READERS, "_known", dict(READERS) | {"eager": Eager})
    return Eager


def test_a_native_dump_is_opened_natively(dump):
    assert type(open_dump(dump)) is NativeReader


def test_a_path_may_be_text(dump):
    assert open_dump(str(dump)).path == dump


def test_a_missing_path_names_the_dumps_beside_it(dump):
    with pytest.raises(DumpNotFoundError, match=r"There are dumps at '.*golden'"):
        open_dump(dump.parent / "goldne")


def test_a_folder_above_a_dump_names_the_dumps_in_it(dump):
    with pytest.raises(DumpFormatError, match=r"no dump .*There are dumps at '.*golden'"):
        open_dump(dump.parent)


def test_a_file_is_no_dump(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(DumpFormatError, match="no dump that a reader recognises"):
        open_dump(tmp_path / "f")


def test_two_readers_that_recognise_a_dump_are_an_error(dump, eager):
    with pytest.raises(DumpFormatError, match=r"2 readers recognise it \('native', 'eager'\)"):
        open_dump(dump)


def test_a_named_reader_is_taken(dump, eager):
    assert type(open_dump(dump, reader="eager")) is eager


def test_an_unknown_reader_is_an_error(dump):
    with pytest.raises(ConfigError, match="No reader named 'nativ'"):
        open_dump(dump, reader="nativ")


def test_a_damaged_manifest_is_named(dump):
    manifest = dump / "manifest.json"
    manifest.write_text(manifest.read_text()[:-3])
    with pytest.raises(DumpFormatError, match=r"manifest\.json is damaged"):
        open_dump(dump)
