"""Models and prompts that are measured: random weights, a fixed seed, no download."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)


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


def qwen_half_billion() -> PreTrainedModel:
    """Build a Qwen2 of 896 x 24, 14/2 heads, intermediate 4864, vocabulary 151936, tied, bf16."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


WORKLOADS = {
    "W1": Workload("W1", llama_w1, prompt=64, tokens=32),
    "W2": Workload("W2", qwen_half_billion, prompt=128, tokens=16),
    "W3": Workload("W3", qwen_half_billion, prompt=1024, tokens=2),
}
