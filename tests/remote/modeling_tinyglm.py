"""A language model as repositories of early 2023 wrote them; their habits are kept on purpose.

Blocks work on [columns, rows, hidden]. Position ids are [rows, 2, columns]: where a token is in the
context, and where in the answer. The mask is bool [rows, 1, query, key], True for what is hidden.
The cache is a tuple of (keys, values) [columns, rows, heads, channels] for each layer.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_tinyglm import TinyGLMConfig


class InvalidScoreLogitsProcessor(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if torch.isnan(scores).any() or torch.isinf(scores).any():
            scores.zero_()
            scores[..., 5] = 5e4
        return scores


class RotaryEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim)))

    def forward(self, x, seq_len):
        t = torch.arange(seq_len, device=x.device, dtype=self.inv_freq.dtype)
        emb = torch.cat([torch.outer(t, self.inv_freq)] * 2, dim=-1)
        return emb.cos()[:, None, :].to(x.dtype), emb.sin()[:, None, :].to(x.dtype)


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary(x, cos, sin, position_id):
    # position_id: [columns, rows]; x: [columns, rows, heads, channels]
    cos, sin = (F.embedding(position_id, t.squeeze(1)).unsqueeze(2) for t in (cos, sin))
    return x * cos + rotate_half(x) * sin


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.size = config.hidden_size // self.heads
        self.rotary_emb = RotaryEmbedding(self.size // 2)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states, position_ids, attention_mask, layer_past=None, use_cache=False
    ):
        mixed = self.query_key_value(hidden_states)
        mixed = mixed.view(*mixed.shape[:-1], self.heads, 3 * self.size)
        q, k, v = mixed.chunk(3, dim=-1)
        cos, sin = self.rotary_emb(q, seq_len=int(position_ids.max()) + 1)
        place, block = (position_ids[:, i].transpose(0, 1).contiguous() for i in (0, 1))
        q, k = (
            torch.cat(
                [
                    apply_rotary(half, cos, sin, ids)
                    for half, ids in zip(x.chunk(2, dim=-1), (place, block), strict=True)
                ],
                dim=-1,
            )
            for x in (q, k)
        )
        if layer_past is not None:
            k = torch.cat((layer_past[0], k), dim=0)
            v = torch.cat((layer_past[1], v), dim=0)
        present = (k, v) if use_cache else None
        scores = torch.einsum("qbhd,kbhd->bhqk", q / math.sqrt(self.size), k)
        scores.masked_fill_(attention_mask, -10000.0)
        probs = F.softmax(scores, dim=-1)
        context = torch.einsum("bhqk,kbhd->qbhd", probs, v).flatten(2)
        return self.dense(context), present


class GLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states)))


class GLMBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.alpha = (2 * config.num_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(
            config.hidden_size, eps=config.layernorm_epsilon
        )
        self.mlp = GLU(config)

    def forward(
        self, hidden_states, position_ids, attention_mask, layer_past=None, use_cache=False
    ):
        attention_input = self.input_layernorm(hidden_states)
        attention, present = self.attention(
            attention_input,
            position_ids,
            attention_mask,
            layer_past=layer_past,
            use_cache=use_cache,
        )
        hidden_states = attention_input * self.alpha + attention
        mlp_input = self.post_attention_layernorm(hidden_states)
        return mlp_input * self.alpha + self.mlp(mlp_input), present


class TinyGLMPreTrainedModel(PreTrainedModel):
    config_class = TinyGLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012

    def _init_weights(self, module):
        return

    def get_masks(self, input_ids, device):
        rows, length = input_ids.shape
        contexts = [row.tolist().index(self.config.bos_token_id) for row in input_ids]
        mask = torch.ones((rows, length, length), device=device).tril_()
        for i, context in enumerate(contexts):
            mask[i, :, :context] = 1
        return (mask.unsqueeze(1) < 0.5).bool()

    def get_position_ids(self, input_ids, mask_positions, device):
        rows, length = input_ids.shape
        contexts = [row.tolist().index(self.config.bos_token_id) for row in input_ids]
        places = torch.arange(length, device=device).repeat(rows, 1)
        blocks = torch.zeros((rows, length), dtype=torch.long, device=device)
        for i, context in enumerate(contexts):
            places[i, context:] = mask_positions[i]
            blocks[i, context:] = torch.arange(length - context, device=device) + 1
        return torch.stack((places, blocks), dim=1)


class TinyGLMModel(TinyGLMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GLMBlock(config) for _ in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(
        self,
        input_ids=None,
        position_ids=None,
        attention_mask=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        if past_key_values is None:
            past_key_values = (None,) * len(self.layers)
            if attention_mask is None:
                attention_mask = self.get_masks(input_ids, device=input_ids.device)
            if position_ids is None:
                where = [r.tolist().index(self.config.gmask_token_id) for r in input_ids]
                position_ids = self.get_position_ids(input_ids, where, input_ids.device)
        hidden_states = self.word_embeddings(input_ids).transpose(0, 1)
        if attention_mask is None:
            attention_mask = torch.zeros(1, 1, device=input_ids.device).bool()
        presents = ()
        for layer, past in zip(self.layers, past_key_values, strict=True):
            hidden_states, present = layer(
                hidden_states, position_ids, attention_mask, layer_past=past, use_cache=use_cache
            )
            presents += (present,)
        hidden_states = self.final_layernorm(hidden_states)
        if not return_dict:
            return (hidden_states, presents)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=presents)


class TinyGLMForConditionalGeneration(TinyGLMPreTrainedModel):
    def __init__(self, config, empty_init=True):
        super().__init__(config)
        self.transformer = TinyGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _update_model_kwargs_for_generation(
        self, outputs, model_kwargs, is_encoder_decoder=False, standardize_cache_format=False
    ):
        model_kwargs["past_key_values"] = self._extract_past_from_model_output(
            outputs, standardize_cache_format=standardize_cache_format
        )
        mask = model_kwargs.get("attention_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.cat([mask, mask.new_ones((*mask.shape[:3], 1))], dim=3)
            new = mask[:, :, -1:].clone()
            new[..., -1] = False
            model_kwargs["attention_mask"] = torch.cat([mask, new], dim=2)
        if model_kwargs.get("position_ids") is not None:
            position_ids = model_kwargs["position_ids"]
            new = position_ids[..., -1:].clone()
            new[:, 1, :] += 1
            model_kwargs["position_ids"] = torch.cat([position_ids, new], dim=-1)
        return model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, position_ids=None, **kwargs
    ):
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = None
        where = [r.tolist().index(self.config.gmask_token_id) for r in input_ids]
        if past_key_values is not None:
            if position_ids is None:
                position_ids = self.get_position_ids(input_ids, where, input_ids.device)
            return {
                "input_ids": input_ids[:, -1].unsqueeze(-1),
                "past_key_values": past_key_values,
                "position_ids": position_ids[..., -1:],
                "attention_mask": None if attention_mask is None else attention_mask[:, :, -1:],
                "use_cache": kwargs.get("use_cache"),
            }
        if attention_mask is None:
            attention_mask = self.get_masks(input_ids, device=input_ids.device)
        if position_ids is None:
            position_ids = self.get_position_ids(input_ids, where, input_ids.device)
        return {
            "input_ids": input_ids,
            "past_key_values": None,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
        }

    def forward(
        self,
        input_ids=None,
        position_ids=None,
        attention_mask=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        outputs = self.transformer(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=return_dict,
        )
        logits = self.lm_head(outputs[0]).permute(1, 0, 2).contiguous()
        if not return_dict:
            return (logits, *outputs[1:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    @torch.no_grad()
    def chat(self, tokenizer, query, history=None, max_new_tokens=6, do_sample=False, **kwargs):
        history = [] if history is None else history
        rounds = [
            f"[Round {i}]\nQ:{old}\nA:{response}\n" for i, (old, response) in enumerate(history)
        ]
        prompt = "".join(rounds) + (f"[Round {len(history)}]\nQ:{query}\nA:" if history else query)
        inputs = tokenizer([prompt], return_tensors="pt").to(self.device)
        outputs = self.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            logits_processor=LogitsProcessorList([InvalidScoreLogitsProcessor()]),
            **kwargs,
        )
        outputs = outputs.tolist()[0][len(inputs["input_ids"][0]) :]
        response = tokenizer.decode(outputs).strip()
        return response, [*history, (query, response)]
