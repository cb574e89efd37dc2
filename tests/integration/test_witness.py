"""A witness that shares no code with the package sees the same tensors, byte for byte.

Plain torch hooks, names of inputs and outputs by the interface alone, every tensor cloned.
"""

import dataclasses
from collections import namedtuple
from contextlib import suppress

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from hf_dumper import DumpConfig, register_hook
from tests.architectures.checks import unlike
from tests.architectures.witness import Witness

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ENCODER = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION = {name: size for name, size in ENCODER.items() if name != "vocab_size"}
VISION |= {"image_size": 8, "patch_size": 4}

pytestmark = pytest.mark.usefixtures("kind_of_hooks")


def agrees(model, run, path):
    """Run under the witness, then dumped; compare all keys and all bytes."""
    witness = Witness(model)
    run(model)
    witness.leave()
    with register_hook(model, DumpConfig(path, "all")):
        run(model)
    assert list(unlike(witness, path)) == []


def randomised(model):
    """Give every parameter noise; norms of ones and biases of zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def generate(model):
    model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False)


def forward(model):
    model(input_ids=IDS, attention_mask=MASK)


def look(model):
    model(pixel_values=PIXELS)


def mixtral():
    config = MixtralConfig(
        **ENCODER, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    return MixtralForCausalLM(config)


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=128, decoder_start_token_id=0, **sizes))


CASES = {
    "mixtral": (mixtral, generate),
    "mixtral forward": (mixtral, forward),
    "t5": (t5, generate),
    "bert": (lambda: BertModel(BertConfig(**ENCODER)), forward),
    "albert": (lambda: AlbertModel(AlbertConfig(**ENCODER, embedding_size=16)), forward),
    "vit": (lambda: ViTModel(ViTConfig(**VISION)), look),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), look),
}


@pytest.mark.parametrize("name", CASES)
def test_a_witness_sees_what_the_dump_holds(name, tmp_path):
    make, run = CASES[name]
    torch.manual_seed(0)
    agrees(randomised(make()), run, tmp_path)


@pytest.mark.parametrize("run", [generate, forward])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_witness_of_llama_sees_what_the_dump_holds(tiny_llama, run, attention, dtype, tmp_path):
    model = tiny_llama().to(dtype)
    model.set_attn_implementation(attention)
    agrees(model, run, tmp_path)


def test_a_witness_of_a_training_step_sees_what_the_dump_holds(tiny_llama, tmp_path):
    def step(model):
        model(input_ids=IDS, attention_mask=MASK, labels=IDS)

    agrees(tiny_llama().train(), step, tmp_path)


@dataclasses.dataclass
class Box:
    value: torch.Tensor
    nothing: None = None


Pair = namedtuple("Pair", "left right")


class Zoo(nn.Module):
    """Returns whatever it is told to."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, *, extra=None):
        return self.make(x)


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, fail):
        y = self.inner(x)
        if fail:
            raise ValueError
        return y


class Nasty(nn.Module):
    """Does everything that hooks stumble over."""

    def __init__(self):
        super().__init__()
        self.thrice = nn.Linear(4, 4)
        self.again = self.thrice  # a second name for the same module
        self.zoo = nn.ModuleList(
            [
                Zoo(lambda x: {"a": x + 1, "b": [x + 2, None]}),
                Zoo(lambda x: Box(x * 2)),
                Zoo(lambda x: [x, (x + 3,), None, "text", 5]),
                Zoo(lambda _x: None),
                Zoo(lambda x: Pair(x, x.t())),
                Zoo(lambda x: (x[:1],)),
                Zoo(lambda x: x[:, ::2]),
                Zoo(lambda x: x > 0),
                Zoo(lambda x: x.to(torch.complex64).mul(1j).conj()),
                Zoo(lambda x: torch.empty(0, 3)),
                Zoo(lambda x: x.sum()),
                Zoo(lambda x: x.expand(5, *x.shape)),
            ]
        )
        self.in_place = nn.ReLU(inplace=True)
        self.fragile = Fragile()

    def forward(self, x):
        x = self.thrice(self.thrice(self.thrice(x)))
        x = self.again(x)
        for member in self.zoo:
            member(x, extra={"deep": [x, {"er": x + 1}], "none": None})
        y = self.in_place(x)
        self.zoo[0](y)  # the address of x with other bytes
        y.data.mul_(2)
        self.zoo[2](y)
        for fail in (False, True, False):
            with suppress(ValueError):
                y = self.fragile(y, fail)
        return y


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_witness_of_a_nasty_module_sees_what_the_dump_holds(mode, tmp_path):
    torch.manual_seed(0)
    model = Nasty()

    def run(model):
        with mode():
            model(torch.arange(8.0).view(2, 4))

    agrees(model, run, tmp_path)
