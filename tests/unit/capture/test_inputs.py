"""Sizes of a forward, read from its arguments."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from hf_dumper.capture.inputs import named_arguments, parameter_names, read_inputs

IDS = torch.ones(2, 5, dtype=torch.long)
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


class Causal(nn.Module):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Take what a causal model takes."""


class Seq2Seq(nn.Module):
    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, labels=None, **kwargs
    ):
        """Take what an encoder-decoder takes."""


def read(module, *args, **kwargs):
    return read_inputs(module, args, named_arguments(module, args, kwargs))


def test_the_names_are_those_of_the_positional_parameters():
    class Odd(nn.Module):
        def forward(self, a, /, b, c=1, *rest, d, **more):
            """Have every kind of parameter."""

    assert parameter_names(Odd()) == ("a", "b", "c")


def test_the_names_come_from_the_class_when_the_instance_has_another_forward():
    module = Causal()
    module.forward = lambda *args, **kwargs: None
    assert parameter_names(module)[:2] == ("input_ids", "attention_mask")


def test_a_forward_without_a_signature_has_no_names():
    class Builtin(nn.Module):
        forward = dict.fromkeys

    assert isinstance(parameter_names(Builtin()), tuple)


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_the_ids_tell_rows_and_columns(how):
    inputs = read(Causal(), IDS) if how == "positional" else read(Causal(), input_ids=IDS)
    assert (inputs.rows, inputs.cols) == (2, 5)


def test_embeddings_tell_rows_and_columns():
    inputs = read(Causal(), inputs_embeds=torch.ones(3, 4, 8))
    assert (inputs.rows, inputs.cols) == (3, 4)


def test_ids_that_are_none_leave_it_to_the_embeddings():
    inputs = read(Causal(), None, inputs_embeds=torch.ones(3, 4, 8))
    assert (inputs.rows, inputs.cols) == (3, 4)


def test_a_decoder_is_measured_by_its_own_ids():
    inputs = read(Seq2Seq(), IDS, decoder_input_ids=torch.ones(2, 1, dtype=torch.long))
    assert (inputs.rows, inputs.cols) == (2, 1)


def test_the_mask_of_an_encoder_is_not_the_decoders():
    inputs = read(Seq2Seq(), IDS, MASK, torch.ones(2, 1, dtype=torch.long))
    assert inputs.mask is None
    assert inputs.readable


def test_labels_stand_in_for_the_decoders_ids():
    inputs = read(Seq2Seq(), IDS, labels=torch.ones(2, 3, dtype=torch.long))
    assert (inputs.rows, inputs.cols) == (2, 3)


def test_a_module_without_tokens_has_rows_only():
    inputs = read(nn.Linear(3, 3), torch.ones(4, 3))
    assert (inputs.rows, inputs.cols) == (4, 0)


def test_a_module_without_tensors_has_nothing():
    inputs = read(Causal(), attention_mask="no tensor")
    assert (inputs.rows, inputs.cols) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_a_mask_of_any_dtype_is_read(dtype):
    inputs = read(Causal(), IDS, MASK.to(dtype))
    assert inputs.mask.tolist() == MASK.tolist()


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 5, 5), {"full": None}, "no tensor"])
def test_a_mask_of_another_shape_is_not_readable(mask):
    assert not read(Causal(), IDS, mask).readable


def test_no_mask_is_readable():
    assert read(Causal(), IDS).readable


def test_no_cache_has_no_past():
    assert (read(Causal(), IDS).past, read(Causal(), IDS).cache) == (0, None)


def test_a_cache_tells_its_length():
    cache = DynamicCache()
    cache.update(torch.ones(2, 1, 7, 4), torch.ones(2, 1, 7, 4), 0)
    inputs = read(Causal(), IDS, past_key_values=cache)
    assert (inputs.past, inputs.cache) == (7, "DynamicCache")


def test_a_cache_may_tell_its_length_as_a_tensor():
    class Cache:
        def get_seq_length(self):
            return torch.tensor(4)

    assert read(Causal(), IDS, past_key_values=Cache()).past == 4


def test_a_cache_that_does_not_tell_is_none():
    assert read(Causal(), IDS, past_key_values=((IDS, IDS),)).past is None


@pytest.mark.parametrize(("given", "keep"), [(1, 1), (0, 0), (None, 0), (torch.tensor([3]), 0)])
def test_logits_to_keep_is_a_positive_number_or_nothing(given, keep):
    assert read(Causal(), IDS, logits_to_keep=given).keep == keep


def test_a_cache_that_answers_nothing_when_asked_for_its_length_is_none():
    class Cache:
        def get_seq_length(self):
            return None

    assert read(Causal(), input_ids=IDS, past_key_values=Cache()).past is None
