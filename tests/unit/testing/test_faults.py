"""A planted fault is there while it is asked for, and nowhere else."""

import pytest
import torch

from hf_dumper.errors import ModelError
from hf_dumper.testing.faults import turned_rotary

IDS = torch.tensor([[5, 6, 7, 8]])


def attention(model):
    return model.model.layers[0].self_attn


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_the_model_computes_something_else(tiny_llama):
    model = tiny_llama()
    before = logits(model)
    with turned_rotary(attention(model)):
        assert not torch.allclose(logits(model), before, atol=1e-4)


def test_the_module_is_still_given_the_right_inputs(tiny_llama):
    model = tiny_llama()
    seen = []
    attention(model).register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_embeddings"][1].clone()),
        with_kwargs=True,
    )
    logits(model)
    with turned_rotary(attention(model)):
        logits(model)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("own", [False, True])
def test_afterwards_the_model_is_as_it_was(tiny_llama, own):
    model = tiny_llama()
    module = attention(model)
    if own:
        module.forward = module.forward
    before, result = dict(module.__dict__), logits(model)
    with pytest.raises(KeyError), turned_rotary(module):
        raise KeyError
    assert module.__dict__ == before
    assert torch.equal(logits(model), result)


def test_a_module_without_a_rotary_embedding_is_an_error(tiny_llama):
    model = tiny_llama()
    with (
        turned_rotary(model.lm_head),
        pytest.raises(ModelError, match="Linear takes no position_embeddings"),
    ):
        logits(model)
