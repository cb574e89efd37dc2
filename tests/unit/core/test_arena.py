"""Bounded memory between two threads."""

import mmap
import threading

import torch

from hf_dumper.core.arena import Arena, Chunk

PAGE = mmap.PAGESIZE


def waiting(action):
    """Start `action` in a thread; return the thread and what it will have returned."""
    outcome = []

    thread = threading.Thread(target=lambda: outcome.append(action()), daemon=True)
    thread.start()
    return thread, outcome


def test_a_chunk_is_large_enough():
    chunk = Arena(PAGE, 8 * PAGE).take(10)
    assert chunk.size == PAGE


def test_a_larger_tensor_gets_whole_pages():
    assert Arena(PAGE, 8 * PAGE).take(PAGE + 1).size == 2 * PAGE


def test_a_released_chunk_is_used_again():
    arena = Arena(PAGE, 4 * PAGE)
    chunk = arena.take(1)
    arena.release(chunk)
    assert arena.take(1) is chunk


def test_an_oversize_chunk_is_not_kept():
    arena = Arena(PAGE, 8 * PAGE)
    big = arena.take(3 * PAGE)
    arena.release(big)
    assert arena.take(1) is not big


def test_bytes_in_flight_are_counted():
    arena = Arena(PAGE, 8 * PAGE)
    first, _second = arena.take(1), arena.take(2 * PAGE)
    arena.release(first)
    assert arena.bytes_in_flight == 2 * PAGE


def test_the_bound_is_reached_and_not_passed():
    arena = Arena(PAGE, 3 * PAGE)
    chunk, *_ = [arena.take(1) for _ in range(3)]
    thread, outcome = waiting(lambda: arena.take(1))
    thread.join(0.05)
    assert thread.is_alive()
    assert not outcome
    assert arena.bytes_in_flight == 3 * PAGE
    arena.release(chunk)
    thread.join(5)


def test_a_waiting_take_goes_on_after_a_release():
    arena = Arena(PAGE, 2 * PAGE)
    chunk, _other = arena.take(1), arena.take(1)
    thread, outcome = waiting(lambda: arena.take(1))
    arena.release(chunk)
    thread.join(5)
    assert outcome == [chunk]


def test_a_tensor_beyond_the_bound_is_taken_alone():
    arena = Arena(PAGE, 2 * PAGE)
    assert arena.take(10 * PAGE).size == 10 * PAGE


def test_a_tensor_beyond_the_bound_waits_until_nothing_else_is_in_flight():
    arena = Arena(PAGE, 2 * PAGE)
    chunk = arena.take(1)
    thread, outcome = waiting(lambda: arena.take(10 * PAGE))
    thread.join(0.05)
    assert not outcome
    arena.release(chunk)
    thread.join(5)
    assert outcome[0].size == 10 * PAGE


def test_the_bound_is_never_less_than_two_chunks():
    arena = Arena(PAGE, 1)
    arena.take(1)
    arena.take(1)
    assert arena.bytes_in_flight == 2 * PAGE


def test_memory_is_page_aligned():
    chunk = Arena(PAGE, 2 * PAGE).take(1)
    assert torch.frombuffer(chunk.memory, dtype=torch.uint8).data_ptr() % PAGE == 0


def test_an_oversize_chunk_is_unmapped_when_it_is_given_back():
    arena = Arena(PAGE, 8 * PAGE)
    big = arena.take(3 * PAGE)
    arena.release(big)
    assert big.memory.closed


def test_an_oversize_chunk_that_is_looked_at_stays_until_then():
    arena = Arena(PAGE, 8 * PAGE)
    big = arena.take(3 * PAGE)
    view = memoryview(big.memory)
    arena.release(big)
    assert bytes(view[:2]) == bytes(2)
    assert arena.bytes_in_flight == 0


def test_free_chunks_make_room_for_a_larger_one_below_the_bound():
    arena = Arena(PAGE, 4 * PAGE)
    chunks = [arena.take(1) for _ in range(4)]
    for chunk in chunks:
        arena.release(chunk)
    arena.take(3 * PAGE)
    assert [chunk.memory.closed for chunk in chunks] == [False, True, True, True]


def test_free_chunks_stay_while_the_bound_allows_it():
    arena = Arena(PAGE, 8 * PAGE)
    chunks = [arena.take(1) for _ in range(4)]
    for chunk in chunks:
        arena.release(chunk)
    arena.take(3 * PAGE)
    assert not any(chunk.memory.closed for chunk in chunks)


def test_what_was_prepared_is_taken_first(monkeypatch):
    arena = Arena(chunk_bytes=1 << 16)
    arena.prepare()
    mapped = []
    monkeypatch.setattr("hf_dumper.core.arena.Chunk", lambda size: mapped.append(size))
    chunk = arena.take(10)
    assert (chunk.size, arena.bytes_in_flight, mapped) == (1 << 16, 1 << 16, [])
    arena.take(10)
    assert mapped == [1 << 16]


def test_a_second_chunk_is_prepared_where_there_is_one(monkeypatch):
    arena, mapped = Arena(PAGE, 4 * PAGE), []
    monkeypatch.setattr(
        "hf_dumper.core.arena.Chunk", lambda size: mapped.append(size) or Chunk(size)
    )
    arena.prepare_next()
    assert mapped == []  # nobody asked for any
    arena.prepare()
    arena.take(1)
    arena.prepare_next()
    arena.prepare_next()
    assert mapped == [PAGE] * 2
    arena.take(1)
    assert mapped == [PAGE] * 2


def test_chunks_that_are_written_off_make_room_for_others():
    arena = Arena(PAGE, 2 * PAGE)
    for _ in range(2):
        arena.take(1)
    arena.write_off()
    assert arena.bytes_in_flight == 0
    arena.release(arena.take(1))  # would wait for ever
