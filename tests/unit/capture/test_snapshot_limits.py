"""What a snapshot skips, and how its batches leave while a forward runs."""

import mmap

import pytest
import torch
from xxhash import xxh3_64_intdigest

from hf_dumper.capture.storable import unstorable
from hf_dumper.core.arena import Arena
from hf_dumper.core.types import SKIPPED
from tests.collector import Collector


@pytest.fixture
def seen():
    return Collector()


def content(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class Marked(torch.Tensor):
    pass


def skipped_tensors():
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    return {
        "meta tensor": torch.ones(2, device="meta"),
        "layout sparse_coo": torch.ones(2, 2).to_sparse(),
        "layout sparse_csr": torch.eye(2).to_sparse_csr(),
        "dtype quint8": quantised,
        "tensor subclass Marked": torch.ones(2).as_subclass(Marked),
        "dtype complex128": torch.ones(2, dtype=torch.complex128),
        "dtype complex32": torch.ones(2, dtype=torch.complex32),
    }


@pytest.mark.filterwarnings("ignore")  # torch's own notes on quantised and sparse tensors
@pytest.mark.parametrize(
    "reason",
    [
        "meta tensor",
        "layout sparse_coo",
        "layout sparse_csr",
        "dtype quint8",
        "tensor subclass Marked",
        "dtype complex128",
        "dtype complex32",
    ],
)
def test_what_cannot_be_stored_is_skipped_with_its_reason(seen, reason):
    seen.add(skipped_tensors()[reason]).done()
    assert seen.statuses == [SKIPPED]
    assert reason in seen.records[0].what.reason
    assert sum(seen.snapshot.skipped.values()) == seen.snapshot.counts[SKIPPED] == 1


def test_a_nested_tensor_is_skipped(seen):
    seen.add(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)).done()
    assert seen.statuses == [SKIPPED]


def test_a_tensor_without_memory_is_not_read(seen):
    zero = torch._efficientzerotensor((2,))
    assert unstorable(zero), "torch would crash the process when it copies this one"
    seen.add(zero).done()
    assert seen.statuses == [SKIPPED]


def test_a_full_chunk_travels_while_the_forward_runs():
    seen = Collector(Arena(mmap.PAGESIZE, 4 * mmap.PAGESIZE))
    tensors = [torch.full((700,), float(i)) for i in range(9)]
    seen.add(*tensors)
    assert len(seen.batches) > 3
    seen.done()
    assert [seen.value(i) for i in range(9)] == [content(t) for t in tensors]


def test_only_the_last_batch_of_a_forward_has_the_calls():
    seen = Collector(Arena(mmap.PAGESIZE, 4 * mmap.PAGESIZE))
    seen.snapshot.call()
    seen.add(*[torch.full((700,), float(i)) for i in range(9)]).done()
    assert [batch.calls is None for batch in seen.batches] == [True] * (len(seen.batches) - 1) + [
        False
    ]


def test_an_alias_across_chunks_names_the_owner_in_the_forward():
    seen = Collector(Arena(mmap.PAGESIZE, 4 * mmap.PAGESIZE))
    x = torch.randn(500)
    seen.add(x, *[torch.full((700,), float(i)) for i in range(5)], x).done()
    assert seen.records[-1].alias_of == 0


def test_a_tensor_larger_than_a_chunk_is_recorded():
    seen = Collector(Arena(mmap.PAGESIZE, 2 * mmap.PAGESIZE))
    x = torch.arange(10_000.0)
    seen.add(torch.ones(2), x).done()
    assert seen.value(1) == content(x)


def test_every_chunk_is_given_back_in_the_end():
    seen = Collector(Arena(mmap.PAGESIZE, 2 * mmap.PAGESIZE))
    seen.add(*[torch.randn(600) for _ in range(20)]).done()
    assert seen.arena.bytes_in_flight == 0


def test_the_hash_is_that_of_the_bytes(seen):
    x = torch.randn(2, 3).t()
    seen.add(x, x.contiguous()).done()
    assert [r.hash for r in seen.records] == [xxh3_64_intdigest(content(x))] * 2


def test_a_default_device_of_the_user_does_not_matter(seen):
    x = torch.arange(3.0)
    with torch.device("meta"):
        seen.add(x, x + 0)
    seen.done()
    assert seen.value(0) == content(x)
