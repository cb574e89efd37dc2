"""What every test shares: no network, and a small model with nothing trivial in it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import that reads them
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_dumper.capture import taps
from hf_dumper.core import sums
from hf_dumper.core.compiled import PURE_PYTHON

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attention_bias": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # generations have the length that the test asks for
}


def _fill(model: LlamaForCausalLM, seed: int) -> None:
    """Give every parameter random values; a norm of ones or a bias of zeros hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = name.endswith("norm.weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.1 * noise)


@pytest.fixture
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """Return a factory: each call gives a fresh two-layer Llama, equal for equal arguments."""

    def make(seed: int = 0, **options: Any) -> LlamaForCausalLM:
        with torch.random.fork_rng(devices=[]):
            model = LlamaForCausalLM(LlamaConfig(**SHAPE | options))
        _fill(model, seed)
        model.eval()
        return model

    return make


def _use(kind: str, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "compiled" and not built:
        pytest.skip("the compiled part was not built here, or torch has no DLPack table")
    monkeypatch.setenv(PURE_PYTHON, "" if kind == "compiled" else "1")


@pytest.fixture(params=["compiled", "plain"])
def kind_of_hooks(request, monkeypatch):
    """Run a test with the compiled hooks and with their plain twin."""
    _use(request.param, taps.COMPILED, monkeypatch)


@pytest.fixture(params=["compiled", "plain"])
def kind_of_sums(request, monkeypatch):
    """Run a test with the compiled sums and with their plain twin."""
    _use(request.param, sums.COMPILED, monkeypatch)
