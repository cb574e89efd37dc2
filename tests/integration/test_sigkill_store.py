"""A writer that is killed at any moment loses no forward that it had finished."""

import multiprocessing
import random
import shutil
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import xxhash

from hf_dumper.core.arena import Arena
from hf_dumper.core.types import Batch, RunInfo, RunResult
from hf_dumper.errors import DumpFormatError, DumpNotFoundError
from hf_dumper.store import BackgroundSink, DirectorySink, NativeReader
from tests.batches import BatchMaker, content

pa.array([0])  # imports pandas, here once for all children, which are to be killed at other work

KILLS = 200
FORWARDS = 5
TENSORS = 6

# A fork of this very process would inherit the thread pools of torch; the fork server has none yet.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


class ReportingSink(DirectorySink):
    """Tells the parent what is on disk, once it is."""

    def __init__(self, path: Path, parent: Connection) -> None:
        self._parent = parent
        super().__init__(path, {"identity": {"model": "synthetic"}}, shard_bytes=400_000)
        parent.send("created")

    def write(self, batch: Batch) -> None:
        super().write(batch)
        if batch.calls is not None:
            self._parent.send((self.run, batch.tick.forward))

    def commit_run(self, result: RunResult) -> None:
        super().commit_run(result)
        self._parent.send((self.run, "committed"))


def expected(run: int, forward: int, i: int) -> torch.Tensor:
    """Return what the tensor `i` of a forward must hold."""
    if i == 1:
        return torch.arange(7 + forward) % 2 == 0  # an odd length: what follows is not aligned
    size = 1 + 7919 * (i + forward + run) % 30011
    return torch.arange(size, dtype=torch.float64 if i % 2 else torch.float32) + 1000 * run + i


def write_runs(path: Path, parent: Connection) -> None:
    """Write one run after the other, until someone ends the process."""
    arena = Arena(chunk_bytes=1 << 18)
    parent.send("ready")
    sink = BackgroundSink(ReportingSink(path, parent), arena)
    maker = BatchMaker(arena)
    for run in range(1000):
        sink.open_run(RunInfo(run, "generate", expected_records=FORWARDS * TENSORS))
        for forward in range(FORWARDS):
            maker.begin(forward, forward, rows=1, cols=1)
            for i in range(TENSORS):
                maker.add(f"layer.{i}", expected(run, forward, i))
                if i == TENSORS // 2:
                    maker.alias(f"layer.{i}", 0, "input.0")
                    sink.write(maker.part())
            sink.write(maker.end())
        sink.commit_run(RunResult({}, {}))


def kill_after(seconds: float, path: Path) -> list[object]:
    """Start a writer, kill it after a while, return its reports."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=write_runs, args=(path, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "ready"
    reports: list[object] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if ours.poll(left):
            reports.append(ours.recv())
    process.kill()
    process.join()
    try:
        while True:
            reports.append(ours.recv())
    except (EOFError, OSError):  # the end, or a report cut by the kill
        ours.close()
    process.close()
    return reports


def check_run(reader: NativeReader, run: int, reports: list[object]) -> bool:
    """Compare a run with the reports of its writer; return whether it is complete."""
    index = reader.index(run).select(["forward", "module", "slot", "hash"]).to_pylist()
    finished = [forward for forward in range(FORWARDS) if (run, forward) in reports]
    indexed = sorted({row["forward"] for row in index})
    assert indexed in (finished, list(range(len(finished) + 1)))
    assert len(index) == len(indexed) * (TENSORS + 1)
    for row in index:
        tensor = reader.load(row["module"], row["slot"], row["forward"], run=run)
        i = 0 if row["slot"] == "input.0" else int(row["module"].removeprefix("layer."))
        assert torch.equal(tensor, expected(run, row["forward"], i))
        assert xxhash.xxh3_64_intdigest(content(tensor)) == row["hash"]
    complete = reader.run_info(run)["complete"]
    assert complete or (run, "committed") not in reports
    assert not complete or len(indexed) == FORWARDS
    return bool(complete)


def check_dump(path: Path, reports: list[object]) -> str:
    """Check all runs; return where in its life the writer was."""
    if "created" not in reports and not NativeReader.detect(path):
        with pytest.raises((DumpNotFoundError, DumpFormatError)):
            NativeReader(path)
        return "before the manifest"
    with NativeReader(path) as reader:
        complete = [check_run(reader, run, reports) for run in reader.runs()]
        assert all(complete[:-1])
        return "between runs" if all(complete) else "inside a run"


@pytest.mark.timeout(180)
def test_a_killed_writer_loses_at_most_the_forward_in_flight(tmp_path):
    stages: Counter[str] = Counter()
    chance = random.Random(0)
    calm = kill_after(1.0, tmp_path / "calm")
    committed = sum(isinstance(report, tuple) and report[1] == "committed" for report in calm)
    life = 3.0 / max(committed, 3)
    for i in range(KILLS):
        path = tmp_path / f"dump-{i}"
        stages[check_dump(path, kill_after(chance.uniform(0, life), path))] += 1
        shutil.rmtree(path, ignore_errors=True)
    assert stages["inside a run"] > KILLS // 10, stages
