"""What tests read from a MemorySink beyond the contract."""

import pytest
import torch

from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.store import MemorySink
from tests.batches import BatchMaker


@pytest.fixture
def sink():
    sink = MemorySink()
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker()
    maker.add("a", torch.ones(2))
    maker.add("root", torch.ones(1), "scores", call_index=-1)
    maker.skip("c", "why")
    sink.write(maker.end(calls=[(4, -1)]))
    return sink


def test_records_hold_their_order_of_calls(sink):
    order = [(kept.seq_in, kept.seq_out) for kept in sink.records]
    assert order == [(4, None), (None, None), (4, None)]


def test_records_do_not_hold_the_arena(sink):
    assert all(kept.record.span is None for kept in sink.records)


def test_a_skipped_record_has_no_data(sink):
    assert sink.records[2].data is None
    with pytest.raises(KeyNotFoundError):
        sink.tensor("c")


def test_infos_and_results_are_kept(sink):
    result = RunResult({"a": 1}, {})
    sink.commit_run(result)
    assert (sink.run, sink.runs[0].kind, sink.results) == (0, "generate", [result])
