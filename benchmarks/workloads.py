"""Models and prompts that are measured: random weights, a fixed seed, no download."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Workload:
    """One model with one prompt length and one number of generated tokens."""

    name: str
    build: Callable[[], PreTrainedModel]
    prompt: int
    tokens: int


def llama_w1() -> PreTrainedModel:
    """Build a Llama of 512 x 8 with 8 heads, intermediate 1408, vocabulary 32000, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


WORKLOADS = {"W1": Workload("W1", llama_w1, prompt=64, tokens=32)}
