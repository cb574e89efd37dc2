"""Models and prompts that are measured: random weights, a fixed seed, no download."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """One model, one prompt, and what dumping it shall cost.

    `prompt` and `tokens` are the numbers of given and of generated tokens, `threads` those of
    torch. `aims` has the largest ratio wanted per mode; other modes are measured only when asked
    for. `rounds` is how often each mode is measured.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    prompt: int
    tokens: int
    threads: int = 1
    aims: Mapping[str, float | None] = field(default_factory=dict)
    rounds: int = 5

    def ids(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the prompt, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        size = (1, self.prompt)
        return torch.randint(3, model.config.vocab_size, size, generator=generator)

    def generate(self, model: PreTrainedModel, **options: Any) -> torch.Tensor:
        """Generate greedily, exactly as many tokens as the workload says; return prompt and all."""
        return model.generate(
            self.ids(model),
            max_new_tokens=self.tokens,
            min_new_tokens=self.tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )


def llama_tiny() -> PreTrainedModel:
    """Build a Llama of 64 x 2 that takes no time, to see that a measurement works."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


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


def _aims(tensors: float, statistics: float, *others: float) -> dict[str, float | None]:
    return dict(
        zip(
            ("tensors", "statistics", "both", "last-logits"),
            (tensors, statistics, *others),
            strict=False,
        )
    )


_ALL = (
    Workload("W1", llama_w1, 64, 32, aims=_aims(1.10, 1.10, 1.15, 1.02), rounds=11),
    Workload("W2", qwen_half_billion, 128, 16, aims=_aims(1.06, 1.05, 1.10, 1.02)),
    Workload("W3", qwen_half_billion, 1024, 2, aims=_aims(1.08, 1.06, 1.12, 1.02)),
    Workload("W3x2", qwen_half_billion, 1024, 2, threads=2, aims=_aims(1.20, 1.20)),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
"""What `make bench` measures."""

TINY = Workload(
    "tiny",
    llama_tiny,
    8,
    3,
    aims=dict.fromkeys(("tensors", "statistics", "both", "last-logits")),
    rounds=2,
)
"""Shows in seconds that the benchmark works, and nothing about what dumping costs."""

KNOWN = {**WORKLOADS, TINY.name: TINY}
