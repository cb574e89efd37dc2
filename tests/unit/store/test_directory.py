"""The sink that writes folders: whose they are, what lies in them, and how a commit may break."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from hf_dumper.core.digests import is_sealed
from hf_dumper.core.types import Phase, RunInfo, RunResult
from hf_dumper.errors import (
    CaptureError,
    DumpFormatError,
    DumpIdentityError,
    DumpWriteError,
)
from hf_dumper.store import DirectorySink, NativeReader
from hf_dumper.store.layout import INDEX_SCHEMA
from tests.batches import BatchMaker, content

MANIFEST = {"identity": {"model": "m", "config": {"layers": 2}, "seed": 1}}
INFO = RunInfo(-1, "generate", {"threads": 2}, {"ids": [[1, 2]]})
RESULT = RunResult({"generated_ids": [[3]]}, {"discarded": 0})


def write_run(sink, *, forwards=2, result=RESULT):
    sink.open_run(INFO)
    maker = BatchMaker()
    for forward in range(forwards):
        maker.begin(forward, forward, rows=1, cols=2)
        owner = maker.add("a", torch.arange(4.0) + forward, axes="row,pos,-")
        maker.alias("b", owner, "input.0", call_index=1)
        maker.skip("c", "sparse layout")
        sink.write(maker.end(calls=[(10, 11), (12, -1)]))
    sink.commit_run(result)


def rows(path, **options):
    return NativeReader(path).index(**options).to_pylist()


class TestFolder:
    def test_a_dump_has_these_files_and_no_others(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST, tree={"name": "root"}))
        files = sorted(
            str(p.relative_to(tmp_path / "d")) for p in tmp_path.rglob("*") if p.is_file()
        )
        assert files == [
            "manifest.json",
            "model_tree.json",
            "runs/000000/rank-0/index.parquet",
            "runs/000000/rank-0/positions.parquet",
            "runs/000000/rank-0/shard-00000.safetensors",
            "runs/000000/run.json",
        ]

    def test_the_manifest_names_format_and_version(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
        assert manifest == {"kind": "hf_dumper dump", "format_version": 1, **MANIFEST}

    def test_a_second_session_of_the_same_identity_adds_runs(self, tmp_path):
        for _ in range(2):
            write_run(DirectorySink(tmp_path / "d", MANIFEST))
        assert NativeReader(tmp_path / "d").runs() == (0, 1)

    def test_another_identity_is_refused_with_both_values(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        other = {"identity": {"model": "m", "config": {"layers": 3}, "dtype": "bf16"}}
        with pytest.raises(DumpIdentityError) as caught:
            DirectorySink(tmp_path / "d", other)
        message = str(caught.value)
        assert "config.layers is 2 there and 3 here" in message
        assert "seed is 1 there and None here" in message
        assert "dtype is None there and 'bf16' here" in message
        assert "overwrite=True" in message
        assert "model" not in message.replace("model_tree", "")

    def test_an_identity_is_compared_as_json(self, tmp_path):
        DirectorySink(tmp_path / "d", {"identity": {"shape": (1, 2), "path": Path("x")}})
        DirectorySink(tmp_path / "d", {"identity": {"shape": [1, 2], "path": "x"}})

    def test_an_unknown_version_is_not_continued(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        manifest = tmp_path / "d" / "manifest.json"
        manifest.write_text(
            manifest.read_text().replace('"format_version": 1', '"format_version": 9')
        )
        with pytest.raises(DumpFormatError, match="format_version 9"):
            DirectorySink(tmp_path / "d", MANIFEST)

    def test_overwrite_removes_the_runs_of_another_identity(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        sink = DirectorySink(tmp_path / "d", {"identity": {"model": "other"}}, overwrite=True)
        write_run(sink)
        assert NativeReader(tmp_path / "d").runs() == (0,)
        assert NativeReader(tmp_path / "d").manifest["identity"] == {"model": "other"}

    def test_overwrite_leaves_files_of_the_user_alone(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        (tmp_path / "d" / "notes.txt").write_text("mine")
        DirectorySink(tmp_path / "d", {}, overwrite=True)
        assert (tmp_path / "d" / "notes.txt").read_text() == "mine"

    def test_overwrite_does_not_follow_links_out_of_the_dump(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("mine")
        (tmp_path / "d" / "runs").symlink_to(tmp_path / "precious")
        DirectorySink(tmp_path / "d", {}, overwrite=True)
        assert (tmp_path / "precious" / "file").exists()

    def test_overwrite_removes_a_dump_whose_manifest_is_damaged(self, tmp_path):
        DirectorySink(tmp_path / "d", MANIFEST)
        manifest = tmp_path / "d" / "manifest.json"
        manifest.write_text(manifest.read_text()[:-10])
        with pytest.raises(DumpFormatError, match=r"manifest\.json is damaged"):
            DirectorySink(tmp_path / "d", MANIFEST)
        DirectorySink(tmp_path / "d", MANIFEST, overwrite=True)

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["thesis.tex", "manifest.json"])
    def test_a_folder_that_is_no_dump_is_never_touched(self, tmp_path, name, overwrite):
        (tmp_path / name).write_text("{}")
        with pytest.raises(DumpFormatError, match="not empty and is no dump"):
            DirectorySink(tmp_path, MANIFEST, overwrite=overwrite)
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_what_a_killed_start_left_behind_is_no_obstacle(self, tmp_path):
        (tmp_path / "manifest.json.123.tmp").write_text("{")
        DirectorySink(tmp_path, MANIFEST)

    def test_a_file_in_the_way_is_one_line(self, tmp_path):
        (tmp_path / "d").write_text("")
        with pytest.raises(DumpWriteError, match=r"Cannot write .*d: ") as caught:
            DirectorySink(tmp_path / "d", MANIFEST)
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission_is_one_line(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(DumpWriteError, match="Permission denied"):
            DirectorySink(tmp_path / "d", MANIFEST)

    def test_a_note_is_added_beside_the_identity(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.note("weights", {"hash": 7})
        assert NativeReader(tmp_path / "d").manifest["weights"] == {"hash": 7}
        DirectorySink(tmp_path / "d", MANIFEST)

    def test_a_note_cannot_change_the_identity(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        with pytest.raises(CaptureError, match="identity"):
            sink.note("identity", {})


class TestRuns:
    def test_a_run_gets_the_next_free_number(self, tmp_path):
        (tmp_path / "d").mkdir()
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        (tmp_path / "d" / "runs" / "000004").mkdir(parents=True)
        write_run(sink)
        assert sink.run == 5
        assert rows(tmp_path / "d", run=5)[0]["run"] == 5

    def test_a_number_that_is_asked_for_must_be_free(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        write_run(sink)
        with pytest.raises(DumpWriteError, match="Run 0 exists"):
            sink.open_run(RunInfo(0, "generate"))
        sink.open_run(RunInfo(7, "generate"))
        assert sink.run == 7

    def test_run_json_has_what_was_known_at_start_and_end(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        info = NativeReader(tmp_path / "d").run_info()
        assert is_sealed(info)
        assert set(info.pop("tables")) == {"rank-0/index.parquet", "rank-0/positions.parquet"}
        assert info.pop("digest")
        assert info == {
            "generated_ids": [[3]],
            "run": 0,
            "complete": True,
            "kind": "generate",
            "regime": {"threads": 2},
            "prompt": {"ids": [[1, 2]]},
            "counts": {"discarded": 0},
            "forwards": 2,
            "tokens": 2,
            "records": {"stored": 2, "aliased": 2, "skipped": 2},
            "bytes": 32,
            "incomplete": None,
        }

    def test_an_open_run_says_that_it_is_not_complete(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        info = NativeReader(tmp_path / "d").run_info()
        assert (info["complete"], info["prompt"]) == (False, {"ids": [[1, 2]]})

    def test_an_incomplete_run_gives_its_reason(self, tmp_path):
        result = RunResult({}, {}, incomplete="RuntimeError: boom")
        write_run(DirectorySink(tmp_path / "d", MANIFEST), result=result)
        info = NativeReader(tmp_path / "d").run_info()
        assert (info["complete"], info["incomplete"]) == (False, "RuntimeError: boom")

    def test_a_forward_that_did_not_end_makes_the_run_incomplete(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        maker = BatchMaker()
        maker.add("a", torch.ones(3))
        sink.write(maker.part())
        maker.begin(1).add("a", torch.ones(3))
        sink.write(maker.end())
        sink.commit_run(RESULT)
        reader = NativeReader(tmp_path / "d")
        assert reader.run_info()["incomplete"] == "forwards that did not end: 0"
        assert reader.index().column("forward").to_pylist() == [1]
        assert len(load_file(next(tmp_path.rglob("*.safetensors")))) == 2

    def test_forwards_cannot_go_back(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        sink.write(BatchMaker().begin(3).end())
        with pytest.raises(CaptureError, match="Forward 2 comes after forward 3"):
            sink.write(BatchMaker().begin(2).end())

    def test_two_ticks_may_share_a_forward_number(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        for module in ("encoder", "decoder"):
            maker = BatchMaker()
            maker.add(module, torch.ones(1))
            sink.write(maker.end())
        sink.commit_run(RESULT)
        assert [row["module"] for row in rows(tmp_path / "d")] == ["encoder", "decoder"]


class TestIndex:
    def test_its_columns_are_those_of_the_format(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        schema = pq.read_schema(next(tmp_path.rglob("index.parquet")))
        assert " ".join(schema.names) == (
            "run rank forward token phase seq_in seq_out module class slot param call op axes "
            "dtype shape device shard tensor offset nbytes hash status reason "
            "count min max mean std l2 sum absmax zeros nan pos_inf neg_inf"
        )
        assert schema.equals(INDEX_SCHEMA)

    def test_a_stored_record_is_this_row(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        row = {k: v for k, v in rows(tmp_path / "d")[3].items() if v is not None}
        assert row == {
            "run": 0,
            "rank": 0,
            "forward": 1,
            "token": 1,
            "phase": "decode",
            "seq_in": 10,
            "seq_out": 11,
            "module": "a",
            "class": "Linear",
            "slot": "output",
            "param": "",
            "call": 0,
            "op": "",
            "axes": "row,pos,-",
            "dtype": "float32",
            "shape": [4],
            "device": "cpu",
            "shard": "shard-00000.safetensors",
            "tensor": "1/a:output:0",
            "offset": 4096 + 16,
            "nbytes": 16,
            "hash": xxhash.xxh3_64_intdigest(content(torch.arange(4.0) + 1)),
            "status": "stored",
            "reason": "",
        }

    def test_an_alias_is_a_second_row_with_the_place_of_its_owner(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        owner, alias, _ = rows(tmp_path / "d")[:3]
        place = ("shard", "tensor", "offset", "nbytes", "hash")
        assert [owner[name] for name in place] == [alias[name] for name in place]
        assert (alias["module"], alias["slot"], alias["status"]) == ("b", "input.0", "aliased")

    def test_a_call_that_did_not_return_has_no_seq_out(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        row = rows(tmp_path / "d")[1]
        assert (row["seq_in"], row["seq_out"]) == (12, None)

    def test_a_skipped_record_has_a_reason_and_no_place(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST))
        row = rows(tmp_path / "d")[2]
        assert (row["status"], row["reason"], row["shard"]) == ("skipped", "sparse layout", None)

    def test_a_record_outside_of_any_call_has_no_order(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        maker = BatchMaker()
        maker.add("root", torch.ones(1), "scores", call_index=-1)
        sink.write(maker.end(calls=[(0, 1)]))
        sink.commit_run(RESULT)
        assert (rows(tmp_path / "d")[0]["seq_in"], rows(tmp_path / "d")[0]["seq_out"]) == (
            None,
            None,
        )

    def test_a_tensor_name_ends_with_the_function_it_is_from(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        maker = BatchMaker()
        maker.add("a", torch.ones(1), call=2, op="silu.0")
        sink.write(maker.end())
        sink.commit_run(RESULT)
        assert rows(tmp_path / "d")[0]["tensor"] == "0/a:output:2:silu.0"

    def test_positions_have_a_row_per_token(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        sink.open_run(INFO)
        positions = np.array([[-1, 0], [0, 1]], dtype=np.int32)
        sink.write(BatchMaker().begin(0, rows=2, cols=2, find_positions=lambda: positions).end())
        sink.write(BatchMaker().begin(1, rows=1, cols=1, phase=Phase.FORWARD).end())
        sink.commit_run(RESULT)
        table = NativeReader(tmp_path / "d").positions()
        assert [tuple(row.values()) for row in table.to_pylist()] == [
            (0, 0, 0, -1),
            (0, 0, 1, 0),
            (0, 1, 0, 0),
            (0, 1, 1, 1),
            (1, 0, 0, None),
        ]


class TestStatistics:
    def test_they_are_in_the_index_when_asked_for(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST, statistics=True))
        row = rows(tmp_path / "d")[0]
        assert (row["count"], row["min"], row["max"], row["mean"]) == (4, 0.0, 3.0, 1.5)

    def test_an_alias_has_those_of_its_owner(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST, statistics=True))
        owner, alias, _ = rows(tmp_path / "d")[:3]
        assert [owner[k] for k in ("count", "std", "l2")] == [
            alias[k] for k in ("count", "std", "l2")
        ]

    def test_without_tensors_there_is_no_shard_and_no_place(self, tmp_path):
        write_run(DirectorySink(tmp_path / "d", MANIFEST, tensors=False, statistics=True))
        assert not list(tmp_path.rglob("*.safetensors"))
        row = rows(tmp_path / "d")[0]
        assert (row["shard"], row["offset"], row["nbytes"], row["max"]) == (None, None, 16, 3.0)

    def test_a_tensor_that_is_not_aligned_is_described_rightly(self, tmp_path):
        sink = DirectorySink(tmp_path / "d", MANIFEST, statistics=True)
        sink.open_run(INFO)
        maker = BatchMaker()
        maker.add("odd", torch.ones(3, dtype=torch.bool))
        maker.add("double", torch.tensor([2.5, -1.5], dtype=torch.float64))
        maker.add("pairs", torch.tensor([1 + 1j]))
        maker.add("empty", torch.empty(0))
        sink.write(maker.end())
        sink.commit_run(RESULT)
        sums = [(row["sum"], row["count"]) for row in rows(tmp_path / "d")]
        assert sums == [(3.0, 3), (1.0, 2), (None, None), (0.0, 0)]


class TestBrokenCommit:
    """A commit that stops after any of its steps leaves a run that reads in full."""

    @pytest.mark.parametrize("step", range(9))
    def test_a_stop_at_any_step_loses_nothing(self, tmp_path, monkeypatch, step):
        sink = DirectorySink(tmp_path / "d", MANIFEST)
        done: list[str] = []

        def stop_at(name):
            original = getattr(Path, name)

            def act(self, *args, **kwargs):
                if len(done) == step:
                    raise KeyboardInterrupt
                result = original(self, *args, **kwargs)
                done.append(name)
                return result

            return act

        with monkeypatch.context() as patch:
            original_finish = type(sink).commit_run

            def commit(self, result):
                for name in ("rename", "replace", "unlink"):
                    patch.setattr(Path, name, stop_at(name))
                original_finish(self, result)

            patch.setattr(DirectorySink, "commit_run", commit)
            try:
                write_run(sink)
                stopped = False
            except KeyboardInterrupt:
                stopped = True
        reader = NativeReader(tmp_path / "d")
        assert [reader.load("a", token=i).tolist() for i in (0, 1)] == [[0, 1, 2, 3], [1, 2, 3, 4]]
        assert reader.positions().num_rows == 4
        # Of the seven steps the last one removes run.partial.json: run.json is there before it.
        assert reader.run_info()["complete"] == (len(done) >= 6)
        assert stopped == (step < 7)

    def test_an_error_of_the_disk_is_one_line_and_the_sink_goes_on(self, tmp_path, monkeypatch):
        sink = DirectorySink(tmp_path / "d", MANIFEST)

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("hf_dumper.store.tables.publish", full)
            with pytest.raises(DumpWriteError, match="No space left on device"):
                write_run(sink)
        write_run(sink)
        reader = NativeReader(tmp_path / "d")
        assert [reader.run_info(run)["complete"] for run in reader.runs()] == [False, True]
        assert reader.load("a", token=1, run=0).tolist() == [1, 2, 3, 4]
