"""The writer thread: it never hangs, whatever the inner sink does."""

import threading

import pytest
import torch

from hf_dumper.core.arena import Arena
from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import DumpWriteError
from hf_dumper.store import BackgroundSink, MemorySink
from tests.batches import BatchMaker

pytestmark = pytest.mark.timeout(20)

INFO = RunInfo(-1, "generate")
RESULT = RunResult({}, {})


def wait_until_written(sink):
    with sink._written:
        assert sink._written.wait_for(lambda: not sink._unwritten, 10)


class BlockedSink(MemorySink):
    """Writes only while its gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def write(self, batch):
        assert self.gate.wait(10)
        super().write(batch)


class FailingSink(MemorySink):
    """Raises in one method, `times` times."""

    def __init__(self, where, error=None, times=1):
        super().__init__()
        self.where, self.times = where, times
        self.error = error or OSError(28, "No space left on device")

    def _maybe(self, where):
        if where == self.where and self.times:
            self.times -= 1
            raise self.error

    def open_run(self, run):
        self._maybe("open_run")
        super().open_run(run)

    def write(self, batch):
        self._maybe("write")
        super().write(batch)

    def commit_run(self, result):
        self._maybe("commit_run")
        super().commit_run(result)


def produce(sink, arena, forwards=40):
    """Send more chunks than the arena may have in flight."""
    maker = BatchMaker(arena)
    for forward in range(forwards):
        maker.begin(forward, forward).add("a", torch.full((1024,), float(forward)))
        sink.write(maker.end())


def small_arena():
    return Arena(chunk_bytes=4096, max_bytes=8192)


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "hf_dumper writer"]


def test_a_producer_is_slowed_down_but_nothing_is_lost():
    inner, arena = MemorySink(), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    sink.commit_run(RESULT)
    assert [kept.tick.forward for kept in inner.records] == list(range(40))
    assert arena.bytes_in_flight == 0


def test_the_thread_lives_as_long_as_the_run():
    arena = small_arena()
    sink = BackgroundSink(MemorySink(), arena)
    assert writers() == []
    sink.open_run(INFO)
    assert [thread.daemon for thread in writers()] == [True]
    sink.commit_run(RESULT)
    assert writers() == []


def test_write_returns_while_the_inner_sink_is_busy():
    gate, arena = threading.Event(), Arena()

    class Slow(MemorySink):
        def write(self, batch):
            gate.wait()
            super().write(batch)

    sink = BackgroundSink(Slow(), arena)
    sink.open_run(INFO)
    produce(sink, arena, forwards=3)
    gate.set()
    sink.commit_run(RESULT)


def test_an_error_of_open_run_reaches_the_caller_and_leaves_no_thread():
    arena = small_arena()
    sink = BackgroundSink(FailingSink("open_run"), arena)
    with pytest.raises(OSError, match="No space"):
        sink.open_run(INFO)
    assert writers() == []
    sink.open_run(INFO)
    sink.commit_run(RESULT)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("No space left")])
def test_an_error_of_write_surfaces_at_the_commit(error):
    arena = small_arena()
    sink = BackgroundSink(FailingSink("write", error), arena)
    sink.open_run(INFO)
    produce(sink, arena)
    with pytest.raises(DumpWriteError, match="No space left") as caught:
        sink.commit_run(RESULT)
    assert caught.value.__cause__ is error


def test_a_run_with_a_failed_write_is_committed_as_incomplete():
    inner, arena = FailingSink("write"), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    with pytest.raises(DumpWriteError):
        sink.commit_run(RunResult({"fact": 1}, {}, incomplete="RuntimeError: boom"))
    (result,) = inner.results
    assert result.facts == {"fact": 1}
    assert result.incomplete == (
        "RuntimeError: boom; [Errno 28] No space left on device (40 records were dropped)"
    )


def test_a_failure_is_visible_before_the_commit():
    arena = small_arena()
    sink = BackgroundSink(FailingSink("write"), arena)
    sink.open_run(INFO)
    assert sink.failure is None
    produce(sink, arena)
    assert isinstance(sink.failure, OSError)
    sink.close()


def test_the_arena_serves_the_next_run_after_a_failed_one():
    inner, arena = FailingSink("write"), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    with pytest.raises(DumpWriteError):
        sink.commit_run(RESULT)
    sink.open_run(INFO)
    produce(sink, arena)
    sink.commit_run(RESULT)
    assert inner.results[1].incomplete is None
    assert len(inner.records) == 40
    assert arena.bytes_in_flight == 0


def test_a_failing_write_and_a_failing_commit_tell_of_the_write():
    inner, arena = FailingSink("write", ValueError("first")), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    inner.where, inner.times, inner.error = "commit_run", 1, ValueError("second")
    with pytest.raises(DumpWriteError, match="first"):
        sink.commit_run(RESULT)


def test_an_error_of_the_commit_is_a_write_error():
    arena = small_arena()
    sink = BackgroundSink(FailingSink("commit_run"), arena)
    sink.open_run(INFO)
    produce(sink, arena)
    with pytest.raises(DumpWriteError, match="No space"):
        sink.commit_run(RESULT)
    assert writers() == []


def test_close_stops_the_thread_of_an_open_run():
    inner, arena = MemorySink(), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    sink.close()
    assert writers() == []
    assert inner.results[0].incomplete == "closed before the run ended"


def test_a_batch_waits_for_a_good_moment_but_not_for_long(monkeypatch):
    monkeypatch.setattr("hf_dumper.store.background.PATIENCE", 0.2)
    inner, arena = MemorySink(), Arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    maker = BatchMaker(arena)
    maker.begin(0, 0).add("a", torch.ones(1))
    sink.write(maker.end())
    assert inner.records == []
    wait_until_written(sink)  # nobody hurries it
    assert len(inner.records) == 1
    sink.commit_run(RESULT)


def test_a_flush_can_leave_out_the_forward_in_progress():
    inner, arena = BlockedSink(), Arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    maker = BatchMaker(arena)
    maker.begin(0, 0).add("a", torch.ones(1))
    sink.write(maker.end())
    inner.gate.set()
    sink.flush(before=1)
    assert len(inner.records) == 1
    inner.gate.clear()
    maker.begin(1, 1).add("a", torch.ones(1))
    sink.write(maker.end())
    sink.flush(before=1)  # would hang, were it to wait
    assert len(inner.records) == 1
    inner.gate.set()
    sink.flush()
    assert len(inner.records) == 2
    sink.commit_run(RESULT)


def test_a_hurried_batch_is_written_at_once(monkeypatch):
    monkeypatch.setattr("hf_dumper.store.background.PATIENCE", 60)
    inner, arena = MemorySink(), Arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    maker = BatchMaker(arena)
    for forward in range(3):
        maker.begin(forward, forward).add("a", torch.ones(1))
        sink.write(maker.end())
        sink.hurry()
        wait_until_written(sink)
    assert len(inner.records) == 3
    sink.commit_run(RESULT)


class DyingSink(BackgroundSink):
    """Has a thread that ends after some batches, for a reason of its own."""

    alive_for = 2

    def _drain(self, box):
        for _ in range(self.alive_for):
            batch = box.get()
            self._inner.write(batch)
            self._let_go(batch)
        raise SystemExit


def test_a_thread_that_dies_neither_blocks_the_producer_nor_the_flush():
    inner, arena = MemorySink(), small_arena()
    sink = DyingSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    sink.flush()
    with pytest.raises(DumpWriteError, match=r"SystemExit \(38 records were dropped\)"):
        sink.commit_run(RESULT)
    assert len(inner.records) == 2
    assert inner.results[0].counts["discarded"] == 38
    assert arena.bytes_in_flight == 0
    assert writers() == []


def test_after_a_thread_that_died_the_next_run_has_one_that_lives():
    inner, arena = MemorySink(), small_arena()
    sink = DyingSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena)
    with pytest.raises(DumpWriteError):
        sink.commit_run(RESULT)
    sink._drain = lambda box: BackgroundSink._drain(sink, box)
    sink.open_run(INFO)
    produce(sink, arena)
    sink.commit_run(RESULT)
    assert inner.results[1].incomplete is None


def test_a_thread_that_cannot_start_leaves_an_incomplete_run_and_no_open_one(monkeypatch):
    def start(_thread):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    inner, arena = MemorySink(), small_arena()
    sink = BackgroundSink(inner, arena)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(DumpWriteError, match="can't start new thread"):
            sink.open_run(INFO)
    assert "can't start new thread" in inner.results[0].incomplete
    sink.open_run(INFO)
    produce(sink, arena)
    sink.commit_run(RESULT)


def test_an_interrupted_commit_drops_what_waits_and_ends_the_run():
    inner, arena = BlockedSink(), Arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena, forwards=3)
    join, joined = sink._join, []

    def interrupted():
        if not joined:
            joined.append(1)
            inner.gate.set()
            raise KeyboardInterrupt
        join()

    sink._join = interrupted
    with pytest.raises(KeyboardInterrupt):
        sink.commit_run(RESULT)
    assert "KeyboardInterrupt" in inner.results[0].incomplete
    assert writers() == []


def test_a_commit_that_is_interrupted_inside_ends_the_run_all_the_same():
    inner, arena = FailingSink("commit_run", KeyboardInterrupt()), small_arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    with pytest.raises(KeyboardInterrupt):
        sink.commit_run(RESULT)
    assert inner.results[0].incomplete
    sink.open_run(INFO)
    sink.commit_run(RESULT)


def test_an_interruption_of_the_opening_leaves_no_open_run():
    class Interrupted(MemorySink):
        def open_run(self, run):
            super().open_run(run)
            if len(self.runs) == 1:
                raise KeyboardInterrupt

    inner, arena = Interrupted(), small_arena()
    sink = BackgroundSink(inner, arena)
    with pytest.raises(KeyboardInterrupt):
        sink.open_run(INFO)
    sink.open_run(INFO)
    sink.commit_run(RESULT)
    assert [result.incomplete is None for result in inner.results] == [False, True]


def test_a_commit_that_is_interrupted_twice_is_made_up_for_by_the_next_run():
    inner, arena = BlockedSink(), Arena()
    sink = BackgroundSink(inner, arena)
    sink.open_run(INFO)
    produce(sink, arena, forwards=3)
    join, interruptions = sink._join, [KeyboardInterrupt, KeyboardInterrupt]

    def interrupted():
        if interruptions:
            raise interruptions.pop()
        join()

    sink._join = interrupted
    with pytest.raises(KeyboardInterrupt):
        sink.commit_run(RESULT)
    inner.gate.set()
    sink.open_run(INFO)
    sink.commit_run(RESULT)
    assert [result.incomplete is None for result in inner.results] == [False, True]
    assert writers() == []
