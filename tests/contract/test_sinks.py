"""What every sink promises; a new one is one more factory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_dumper.core.arena import Arena
from hf_dumper.core.protocols import Sink
from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import CaptureError
from hf_dumper.store import BackgroundSink, DirectorySink, MemorySink, MsitSink, open_dump
from tests.batches import BatchMaker

MANIFEST = {"identity": {"model": "synthetic"}}
RESULT = RunResult({"generated_ids": [1, 2]}, {"stored": 1})
INFO = RunInfo(-1, "generate")

Load = Callable[..., torch.Tensor]


@dataclass
class Case:
    """A sink, the arena of its batches, and how to load what it kept."""

    sink: Sink
    arena: Arena
    load: Load
    count: Callable[[], int]


def in_directory(
    path: Path, *, background: bool, kind: type[DirectorySink | MsitSink] = DirectorySink
) -> Case:
    arena = Arena(chunk_bytes=4096)
    sink: Sink = kind(path, MANIFEST)
    if background:
        sink = BackgroundSink(sink, arena)

    def load(*key: Any, **more: Any) -> torch.Tensor:
        return open_dump(path).load(*key, run=0, **more)

    return Case(sink, arena, load, lambda: len(list(open_dump(path).keys(run=0))))


def in_memory(path: Path) -> Case:
    sink = MemorySink()
    return Case(sink, Arena(chunk_bytes=4096), sink.tensor, lambda: len(sink.records))


CASES = {
    "directory": lambda path: in_directory(path, background=False),
    "background": lambda path: in_directory(path, background=True),
    "msit": lambda path: in_directory(path, background=False, kind=MsitSink),
    "msit in background": lambda path: in_directory(path, background=True, kind=MsitSink),
    "memory": in_memory,
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    case = CASES[request.param](tmp_path / "dump")
    yield case
    case.sink.close()


def write(case: Case, *tensors: torch.Tensor, forward: int = 0) -> None:
    maker = BatchMaker(case.arena).begin(forward, forward)
    for i, tensor in enumerate(tensors):
        maker.add(f"layer.{i}", tensor)
    case.sink.write(maker.end())


class TestSink:
    def test_a_tensor_comes_back_as_it_was(self, case):
        tensor = torch.randn(3, 5)
        case.sink.open_run(INFO)
        write(case, tensor)
        case.sink.commit_run(RESULT)
        assert torch.equal(case.load("layer.0"), tensor)

    def test_the_bytes_are_its_own_when_the_chunk_is_used_again(self, case):
        case.sink.open_run(INFO)
        maker = BatchMaker(case.arena)
        for forward in range(20):
            maker.begin(forward, forward).add("layer.0", torch.full((512,), float(forward)))
            batch = maker.end()
            case.sink.write(batch)
            if not isinstance(case.sink, BackgroundSink):
                for chunk in batch.spent:
                    case.arena.release(chunk)
        case.sink.commit_run(RESULT)
        assert all(case.load("layer.0", token=i)[0] == i for i in range(20))

    def test_a_forward_may_come_in_several_batches(self, case):
        case.sink.open_run(INFO)
        maker = BatchMaker(case.arena)
        maker.add("layer.0", torch.ones(2))
        case.sink.write(maker.part())
        maker.add("layer.1", torch.zeros(2))
        case.sink.write(maker.end())
        case.sink.commit_run(RESULT)
        assert case.load("layer.0").tolist() == [1, 1]
        assert case.load("layer.1").tolist() == [0, 0]

    def test_an_alias_has_the_bytes_of_its_owner_in_an_earlier_batch(self, case):
        case.sink.open_run(INFO)
        maker = BatchMaker(case.arena)
        owner = maker.add("layer.0", torch.arange(4))
        case.sink.write(maker.part())
        maker.alias("layer.1", owner, "input.0")
        case.sink.write(maker.end())
        case.sink.commit_run(RESULT)
        assert case.load("layer.1", "input.0").tolist() == [0, 1, 2, 3]

    def test_a_forward_without_its_last_batch_is_left_out(self, case):
        case.sink.open_run(INFO)
        maker = BatchMaker(case.arena)
        maker.add("layer.0", torch.ones(2))
        case.sink.write(maker.part())
        case.sink.commit_run(RESULT)
        assert case.count() == 0

    def test_a_forward_may_have_no_records(self, case):
        case.sink.open_run(INFO)
        case.sink.write(BatchMaker(case.arena).end())
        case.sink.commit_run(RESULT)
        assert case.count() == 0

    def test_a_run_without_forwards_is_a_run(self, case):
        case.sink.open_run(INFO)
        case.sink.commit_run(RESULT)
        assert case.count() == 0

    def test_runs_follow_each_other(self, case):
        for _ in range(2):
            case.sink.open_run(INFO)
            write(case, torch.ones(1))
            case.sink.commit_run(RESULT)
        inner = getattr(case.sink, "_inner", case.sink)
        assert inner.run == 1

    def test_a_second_run_cannot_be_opened_inside_the_first(self, case):
        case.sink.open_run(INFO)
        with pytest.raises(CaptureError):
            case.sink.open_run(INFO)

    def test_nothing_can_be_written_outside_of_a_run(self, case):
        with pytest.raises(CaptureError):
            write(case, torch.ones(1))

    def test_close_ends_an_open_run_and_keeps_its_forwards(self, case):
        case.sink.open_run(INFO)
        write(case, torch.ones(1))
        case.sink.close()
        assert case.count() == 1

    def test_close_may_be_called_twice_and_without_a_run(self, case):
        case.sink.close()
        case.sink.close()
