"""The model of the scripts beside this file, which are run in processes of their own."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


def build() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()
