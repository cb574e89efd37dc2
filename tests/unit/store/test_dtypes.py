"""Element types and tensors over raw bytes."""

import pytest
import torch

from hf_dumper.core.statistics import describe
from hf_dumper.store.dtypes import _DTYPES, has_statistics, stored_as, tensor_at, torch_dtype
from tests.batches import content


@pytest.mark.parametrize("name", _DTYPES)
def test_statistics_exist_for_exactly_the_types_that_claim_them(name):
    tensor = tensor_at(bytearray(32), 0, _DTYPES[name], (2,))
    if has_statistics(name):
        assert describe([tensor])[0] is not None
    elif tensor.is_complex():
        assert describe([tensor]) == [None]


@pytest.mark.parametrize("name", ["quint8", "qint32", "Tensor", "bits8", "", "nn"])
def test_what_is_no_plain_type_is_unknown(name):
    assert torch_dtype(name) is None
    assert not has_statistics(name)


def test_bytes_that_contradict_the_shape_are_stored_as_bytes():
    assert stored_as("float32", (3,), 8) == ("U8", [8])


def test_a_tensor_shares_the_memory_when_it_is_aligned():
    memory = bytearray(content(torch.arange(4)))
    tensor_at(memory, 8, torch.int64, (3,))[0] = 9
    assert tensor_at(memory, 0, torch.int64, (2, 2)).tolist() == [[0, 9], [2, 3]]


def test_a_tensor_is_copied_when_it_is_not():
    memory = bytearray(b"x" + content(torch.arange(3)))
    tensor = tensor_at(memory, 1, torch.int64, (3,))
    tensor[0] = 9
    assert tensor_at(memory, 1, torch.int64, (3,)).tolist() == [0, 1, 2]
