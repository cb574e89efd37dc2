"""The command line in a working directory of its own."""

from pathlib import Path

import pytest

import hf_dumper
from hf_dumper.cli import main
from tests.commands import save_model


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_llama):
    """Return the working directory of the test, with a model in the folder `tiny`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONPATH", str(Path(hf_dumper.__file__).parents[1]))
    save_model(tiny_llama(), tmp_path / "tiny")
    return tmp_path


@pytest.fixture
def cli(capfd):
    """Return a function that runs a command: (exit status, stdout, stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        return ended.value.code, *capfd.readouterr()

    return call
