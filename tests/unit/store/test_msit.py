"""The sink and the reader of msit's layout: whose folders they are, and what a stop leaves."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.core.weights import Weight
from hf_dumper.errors import (
    CaptureError,
    DumpFormatError,
    DumpNotFoundError,
    DumpWriteError,
    KeyNotFoundError,
)
from hf_dumper.store import MsitReader, MsitSink, open_dump
from hf_dumper.store.files import GrowingFile
from tests.batches import BatchMaker

MANIFEST = {"identity": {"model": "m"}}
RESULT = RunResult({"generated_ids": [[3]]}, {"discarded": 0})
FORWARDS = 2


class Killed(BaseException):
    """Ends a writer where it stands; nothing of ours catches it."""


def values(run, forward):
    return torch.arange(4.0) + 10 * run + forward


def write_run(sink, number=0):
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker()
    for forward in range(FORWARDS):
        maker.begin(forward, forward, rows=1, cols=1)
        owner = maker.add("a", values(number, forward))
        sink.write(maker.part())
        maker.alias("b", owner, "input.0")
        sink.write(maker.end())
    sink.commit_run(RESULT)


def weight(name="w"):
    return Weight((name,), "weight", "float32", (2,), 8, "", lambda: torch.ones(2))


@pytest.fixture
def budget(monkeypatch):
    """Return a function that lets so many changes of the file system happen, and then kills."""

    def limit(left):
        def counted(real):
            def change(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*args, **kwargs)

            return change

        for owner, name in (
            *((Path, name) for name in ("mkdir", "replace", "rename", "unlink")),
            (GrowingFile, "append"),
        ):
            monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
        # Who is killed tidies nothing up.
        monkeypatch.setattr("hf_dumper.store.run_sink.rmtree", lambda *_args, **_options: None)

    return limit


def check(path):
    """Check all runs that a reader sees; return how many are complete."""
    with open_dump(path) as reader:
        for run in reader.runs():
            rows = reader.index(run).to_pylist()
            assert len(rows) % 2 == 0
            for row in rows:
                got = reader.load(row["module"], row["slot"], row["forward"], run=run)
                assert torch.equal(got, values(run, row["forward"]))
            if reader.run_info(run)["complete"]:
                assert len(rows) == 2 * FORWARDS
        return sum(reader.run_info(run)["complete"] for run in reader.runs())


@pytest.mark.parametrize("left", range(0, 90, 3))
def test_a_writer_that_is_stopped_leaves_what_it_had_finished(tmp_path, budget, monkeypatch, left):
    path = tmp_path / "d"
    sink = MsitSink(path, MANIFEST, tree={"name": "root"})
    done = 0
    budget(left)
    with suppress(Killed):
        for number in range(2):
            write_run(sink, number)
            done += 1
    monkeypatch.undo()
    if MsitReader.detect(path):
        assert check(path) in (done, done + 1)
    else:
        assert not done


def test_a_budget_that_is_large_enough_kills_nothing(tmp_path, budget, monkeypatch):
    budget(89)
    for number in range(2):
        write_run(sink := MsitSink(tmp_path / str(number), MANIFEST), 0)
        sink.close()
    monkeypatch.undo()
    assert check(tmp_path / "0") == 1


def test_a_note_reaches_every_run_of_the_sink(tmp_path):
    sink = MsitSink(tmp_path, MANIFEST)
    write_run(sink)
    sink.note("self_check", {"identical": True})
    write_run(sink, 1)
    for folder in tmp_path.iterdir():
        assert MsitReader(folder).manifest["self_check"] == {"identical": True}


def test_a_note_cannot_replace_the_identity(tmp_path):
    sink = MsitSink(tmp_path, MANIFEST)
    write_run(sink)
    with pytest.raises(CaptureError, match="identity"):
        sink.note("identity", {})


def test_what_is_kept_lies_in_every_run_and_weights_in_the_first(tmp_path):
    sink = MsitSink(tmp_path, MANIFEST)
    sink.keep("tokenizer", lambda folder: folder.mkdir())
    sink.keep_weights([weight()])
    for number in range(2):
        write_run(sink, number)
    first, second = sorted(tmp_path.iterdir())
    assert (first / "tokenizer").is_dir()
    assert (second / "tokenizer").is_dir()
    assert MsitReader(tmp_path).weights()["w"].tolist() == [1, 1]
    with pytest.raises(KeyNotFoundError, match="holds no weights"):
        MsitReader(second).weights()


def test_a_number_that_is_taken_is_refused(tmp_path):
    sink = MsitSink(tmp_path, MANIFEST)
    write_run(sink)
    with pytest.raises(DumpWriteError, match="Run 0 exists"):
        sink.open_run(RunInfo(0, "generate"))


def test_a_number_that_another_process_takes_meanwhile_is_refused(tmp_path, monkeypatch):
    sink = MsitSink(tmp_path, MANIFEST)
    real = Path.mkdir

    def late(self, *args, **kwargs):
        monkeypatch.undo()
        real(self, *args, **kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(DumpWriteError, match="Run 3 exists"):
        sink.open_run(RunInfo(3, "generate"))


def test_a_renamed_folder_keeps_its_number(tmp_path):
    sink = MsitSink(tmp_path, MANIFEST)
    for number in range(2):
        write_run(sink, number)
    second = sorted(tmp_path.iterdir())[1].rename(tmp_path / "golden")
    assert MsitReader(second).runs() == (1,)
    assert torch.equal(MsitReader(second).load("a"), values(1, 0))


def test_two_folders_of_one_number_are_opened_one_by_one(tmp_path):
    for name in ("x", "y"):
        write_run(MsitSink(tmp_path / name, MANIFEST))
    (folder,) = (tmp_path / "y").iterdir()
    folder.rename(tmp_path / "x" / "msit_dump_20000101_000000")
    with pytest.raises(DumpFormatError, match="Open one of them"):
        open_dump(tmp_path / "x")


def test_a_folder_without_runs_is_no_dump(tmp_path):
    MsitSink(tmp_path / "d", MANIFEST).close()
    assert not MsitReader.detect(tmp_path / "d")
    with pytest.raises(DumpNotFoundError):
        MsitReader(tmp_path / "d")


@pytest.mark.parametrize("change", [{"format_version": 99}, {"format_version": None}])
def test_an_unknown_version_is_refused(tmp_path, change):
    write_run(MsitSink(tmp_path, MANIFEST))
    (path,) = tmp_path.rglob("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DumpFormatError, match="format_version"):
        open_dump(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"name": 3}', '{"name": "root", "children": 5}'])
def test_a_damaged_tree_is_an_error(tmp_path, text):
    write_run(MsitSink(tmp_path, MANIFEST, tree={"name": "root", "children": []}))
    (path,) = tmp_path.rglob("model_tree.json")
    path.write_text(text)
    with pytest.raises(DumpFormatError, match="damaged"):
        open_dump(tmp_path).tree()


def test_a_tree_outside_of_the_dump_is_not_read(tmp_path):
    write_run(MsitSink(tmp_path / "d", MANIFEST))
    (tmp_path / "model_tree.json").write_text('{"name": "root", "type": "X", "children": []}')
    (path,) = tmp_path.rglob("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tensors": "../.."}))
    with pytest.raises(KeyNotFoundError, match="model_tree"):
        open_dump(tmp_path / "d").tree()
