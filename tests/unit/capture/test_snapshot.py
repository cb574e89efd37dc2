"""Borrowed tensors become owned bytes: what is recorded is what was there, and nothing later."""

import pytest
import torch

from hf_dumper.capture.storable import STORABLE
from hf_dumper.core.types import ALIASED, STORED
from tests.collector import TICK, Collector


@pytest.fixture
def seen():
    return Collector()


def content(tensor):
    return (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def test_the_same_tensor_twice_is_stored_once(seen):
    x = torch.randn(3)
    seen.add(x, x).done()
    assert seen.statuses == [STORED, ALIASED]
    assert seen.records[1].alias_of == 0


def test_the_output_of_a_view_is_an_alias_when_shape_and_strides_are_the_same(seen):
    x = torch.randn(2, 3)
    seen.add(x, x.view(2, 3)).done()
    assert seen.statuses == [STORED, ALIASED]


def test_another_shape_at_the_same_address_is_no_alias(seen):
    x = torch.randn(2, 3)
    seen.add(x, x.view(3, 2)).done()
    assert seen.statuses == [STORED, STORED]


def test_another_dtype_at_the_same_address_is_no_alias(seen):
    x = torch.randn(4)
    seen.add(x, x.view(torch.int32)).done()
    assert [r.what.dtype for r in seen.records] == ["float32", "int32"]
    assert seen.statuses == [STORED, STORED]


def test_an_address_used_again_for_something_else_is_no_alias(seen):
    memory = bytearray(16)
    first = torch.frombuffer(memory, dtype=torch.float32)
    seen.add(first)
    del first
    memory[:] = bytes(range(16))
    seen.add(torch.frombuffer(memory, dtype=torch.float32)).done()
    assert seen.statuses == [STORED, STORED]
    assert seen.value(1) == bytes(range(16))


def test_a_write_through_data_is_seen(seen):
    x = torch.zeros(4)
    seen.add(x)
    x.data.fill_(1)
    seen.add(x).done()
    assert seen.value(1) == content(torch.ones(4))


def test_a_write_through_numpy_is_seen(seen):
    x = torch.zeros(4)
    seen.add(x)
    x.numpy()[:] = 1
    seen.add(x).done()
    assert seen.value(1) == content(torch.ones(4))


def test_an_in_place_operation_in_between_is_seen(seen):
    x = torch.zeros(4)
    seen.add(x)
    x.add_(1)
    seen.add(x).done()
    assert [seen.value(0), seen.value(1)] == [content(torch.zeros(4)), content(torch.ones(4))]


def test_a_tensor_that_came_back_to_its_first_value_is_recorded_right(seen):
    x = torch.zeros(4)
    seen.add(x)
    x.add_(1)
    seen.add(x)
    x.sub_(1)
    seen.add(x).done()
    assert [seen.value(i) for i in range(3)] == [
        content(torch.full((4,), v)) for v in (0.0, 1.0, 0.0)
    ]


def test_an_inference_tensor_that_changed_is_seen(seen):
    with torch.inference_mode():
        x = torch.zeros(4)
        seen.add(x)
        x.add_(1)
        seen.add(x).done()
    assert seen.value(1) == content(torch.ones(4))


def test_a_tensor_mutated_after_its_hook_keeps_the_recorded_value(seen):
    x = torch.arange(6.0)
    seen.add(x)
    x.zero_()
    seen.done()
    assert seen.value(0) == content(torch.arange(6.0))


def test_nothing_is_aliased_to_another_forward(seen):
    x = torch.ones(3)
    seen.add(x)
    seen.snapshot.begin(TICK)
    seen.add(x).done()
    assert seen.statuses == [STORED, STORED]


@pytest.mark.parametrize("dtype", STORABLE)
def test_every_storable_dtype_keeps_its_bytes(seen, dtype):
    x = torch.arange(48, dtype=torch.uint8).view(-1)
    x = (x % 2).view(torch.bool) if dtype is torch.bool else x.view(dtype)
    seen.add(x).done()
    assert (seen.records[0].what.dtype, seen.value(0)) == (STORABLE[dtype], content(x))


SHAPES = {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "strided": torch.arange(10.0)[::3],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "negative": torch._neg_view(torch.arange(4.0)),
    "conjugate": torch.arange(4.0).to(torch.complex64).mul(1 + 2j).conj(),
    "imaginary part of a conjugate": (torch.ones(3) * (1 + 2j)).conj().imag,
    "wants gradients": torch.arange(3.0).requires_grad_(),
    "parameter": torch.nn.Parameter(torch.arange(3.0)),
    "channels last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "bytes that leave the next one unaligned": torch.ones(3, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", SHAPES)
def test_any_layout_in_memory_is_recorded_in_row_major_order(seen, name):
    x = SHAPES[name]
    seen.add(torch.ones(1, dtype=torch.bool), x).done()
    assert (seen.records[1].what.shape, seen.value(1)) == (tuple(x.shape), content(x))


@pytest.mark.parametrize("name", SHAPES)
def test_recording_any_layout_twice_gives_the_same_bytes(seen, name):
    x = SHAPES[name]
    seen.add(x, x).done()
    assert seen.value(1) == content(x)


def test_a_negated_view_is_not_taken_for_what_it_views(seen):
    x = torch.arange(1.0, 4.0)
    seen.add(x, torch._neg_view(x)).done()
    assert seen.value(1) == content(-x)


def test_a_view_stores_only_its_own_bytes(seen):
    big = torch.zeros(1_000_000)
    seen.add(big[:3]).done()
    assert seen.records[0].what.nbytes == 12
    assert seen.arena.bytes_in_flight == 0


def test_recording_does_not_touch_the_graph(seen):
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    seen.add(x, y).done()
    y.sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
