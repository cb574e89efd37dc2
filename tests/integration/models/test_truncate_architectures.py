"""The first layers of a truncated checkpoint compute what they do in the whole model."""

import json

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hf_dumper.errors import ModelError
from hf_dumper.model import empty_model
from hf_dumper.models.files import FolderFiles
from hf_dumper.models.layers import cut_config
from hf_dumper.models.stacks import narrowed, shortened
from hf_dumper.models.streaming import Source, beginning
from hf_dumper.models.truncate import truncate

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
}
SLIDING, FULL = "sliding_attention", "full_attention"
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATE = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}
PAIR = {"encoder_layers": 6, "decoder_layers": 4, "d_model": 32, "pad_token_id": 0}
PAIR |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 96}
PAIR |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}


def gemma3n(**more):
    """Return layers 0 to 3 with keys of their own, and 2 that share those of the last of a kind."""
    options = SHAPE | {"intermediate_size": [48, 48, 48, 48, 64, 64]} | more
    return hf.Gemma3nTextConfig(
        **options,
        head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        sliding_window=4,
        num_kv_shared_layers=2,
        layer_types=[SLIDING, FULL] * 3,
        activation_sparsity_pattern=[0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
    )


MADE = {
    "gemma3n": gemma3n,
    "gemma4": lambda: hf.Gemma4TextConfig(
        **SHAPE,
        head_dim=8,
        global_head_dim=16,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        sliding_window=4,
        num_kv_shared_layers=2,
        layer_types=[SLIDING, FULL, SLIDING, FULL, FULL, FULL],
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **SHAPE | EXPERTS | LATENT | {"num_key_value_heads": 4},
        v_head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=3,
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **SHAPE, head_dim=8, num_local_experts=4, interleave_moe_layer_step=2
    ),
    "smollm3": lambda: hf.SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 1, 0, 1]),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        vocab_size=96,
        hidden_size=32,
        num_layers=6,
        num_heads=4,
        attention_types=[[["global", "local"], 3]],
        window_size=4,
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        **{k: v for k, v in SHAPE.items() if k != "num_hidden_layers"} | EXPERTS | STATE,
        head_dim=8,
        moe_shared_expert_intermediate_size=16,
        layers_block_type=["linear_attention", "moe", FULL, "mlp", "linear_attention", "mlp"],
    ),
    "xlstm": lambda: hf.xLSTMConfig(vocab_size=96, hidden_size=32, num_heads=4, num_blocks=6),
    "granitemoe": lambda: hf.GraniteMoeConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "led": lambda: hf.LEDConfig(**PAIR, attention_window=[4, 4, 4, 4, 4, 4]),
    "bart": lambda: hf.BartConfig(**PAIR),
}


def saved(config, folder):
    """Save a model whose norms and biases are no identities."""
    kind = hf.AutoModelForCausalLM
    if config.is_encoder_decoder:
        kind = hf.AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    return kind


def outputs(model, stacks):
    """Return what the first layers of each list give."""
    found = {}

    def hook(key):
        def keep(_module, _args, output):
            found[key] = output[0] if isinstance(output, tuple) else output

        return keep

    for name, count in stacks.items():
        for i in range(count):
            layer = model.get_submodule(f"{name}.{i}")
            layer.register_forward_hook(hook(f"{name}.{i}"))
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        if not model.config.is_encoder_decoder:
            model(input_ids=ids, use_cache=False)
            return found
        model.get_encoder()(input_ids=ids)
        between = BaseModelOutput(torch.linspace(-1, 1, 384).view(1, 12, 32))
        model(encoder_outputs=between, decoder_input_ids=ids[:, :5], use_cache=False)
    return found


SHARING = [(name, n) for name in ("gemma3n", "gemma4") for n in (2, 5)]


@pytest.mark.parametrize(
    ("name", "layers"), [*SHARING, *((name, 3) for name in MADE if "gemma" not in name)]
)
def test_layers_compute_what_they_do_in_the_whole_model(name, layers, tmp_path):
    kind = saved(MADE[name](), tmp_path / "model")
    done = truncate(FolderFiles(tmp_path / "model"), tmp_path / "out", layers, empty_model)
    whole = kind.from_pretrained(tmp_path / "model").eval()
    cut, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    want, got = (outputs(model, done.stacks) for model in (whole, cut.eval()))
    assert len(want) == sum(done.stacks.values()) >= layers
    assert want.keys() == got.keys()
    assert all(torch.equal(want[layer], got[layer]) for layer in want)


def test_defaults_that_depend_on_the_number_of_layers_are_written_down(tmp_path):
    """By default the first 10 layers of Gemma 3n are sparse if there are more than 10."""
    config = hf.Gemma3nTextConfig(
        **SHAPE | {"num_hidden_layers": 12},
        head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
    )
    kind = saved(config, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    whole = hf.AutoConfig.from_pretrained(tmp_path / "model")
    kept = {k: v for k, v in config.to_diff_dict().items() if k != "activation_sparsity_pattern"}
    path.write_text(json.dumps(kept))
    truncate(FolderFiles(tmp_path / "model"), tmp_path / "out", 2, empty_model)
    cut = kind.from_pretrained(tmp_path / "out").config
    assert cut.activation_sparsity_pattern == whole.activation_sparsity_pattern[:2] == [0.95, 0.95]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (hf.AlbertConfig(embedding_size=8, **SHAPE), "no list of layers that the configuration"),
        (
            hf.MiniCPM3Config(**SHAPE | LATENT | {"num_key_value_heads": 4}, v_head_dim=8),
            "residual_scale is .* the layer would compute something else",
        ),
        (hf.GPTNeoXJapaneseConfig(**SHAPE), "use_bias is True with fewer layers, and False"),
        (
            hf.Gemma4TextConfig(
                **SHAPE,
                head_dim=8,
                global_head_dim=16,
                vocab_size_per_layer_input=96,
                hidden_size_per_layer_input=8,
                layer_types=[SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
            ),
            "layer_types of the first 3 layers is .* keep another number",
        ),
        (
            hf.OlmoHybridConfig(**SHAPE, layer_types=["linear_attention"] * 4 + [FULL] * 2),
            "makes no model of the first 3 layers: .*one attention layer. Keep another number",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_layers_that_would_be_others_are_refused_in_one_line(config, why, tmp_path):
    kind = hf.AutoModelForMaskedLM if config.model_type == "albert" else hf.AutoModelForCausalLM
    kind.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=why) as caught:
        truncate(FolderFiles(tmp_path / "model"), tmp_path / "out", 3, empty_model)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Model(nn.Module):
    """A model with a mix of the layers' outputs beside them."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        self.mix = nn.Linear(layers, 1)


def test_another_tensor_that_depends_on_the_number_of_layers_is_refused():
    whole, cut = Model(4), Model(2)
    assert shortened(whole, cut) == {"layers": 2}
    with pytest.raises(ModelError, match=r"mix\.weight is \(1, 2\) .* cutting layers would not be"):
        narrowed(whole, cut)


@pytest.mark.parametrize("piece", [1, 5, 7, 1000])
@pytest.mark.parametrize(("axis", "size"), [(0, 2), (1, 3), (2, 1)])
def test_the_beginning_of_an_axis_is_kept_whatever_the_pieces(axis, size, piece):
    tensor = torch.arange(60, dtype=torch.int16).view(3, 4, 5)
    data = tensor.numpy().tobytes()
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)]
    source = beginning(
        Source("x", "I16", (3, 4, 5), 120, lambda: iter(pieces)), (3, 4, 5), axis, size
    )
    want = tensor.narrow(axis, 0, size).contiguous()
    assert b"".join(source.pieces()) == want.numpy().tobytes()
    assert (source.shape, source.nbytes) == (list(want.shape), want.nbytes)
    with pytest.raises(ModelError, match="cannot be cut"):
        beginning(source, (3, 4, 5), axis, size)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"hybrid_override_pattern": "M-M*E-"}, {"hybrid_override_pattern": "M-"}),
        ({"moe_layers": [1, 3, 5]}, {"moe_layers": [1]}),
        (
            {"linear_attn_config": {"full_attn_layers": [2, 6], "kda_layers": [1, 3, 4, 5]}},
            {"linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1]}},
        ),
        (
            {"sparse_attention_config": {"sparse_attention_freq": [0, 1, 1, 0, 1, 1]}},
            {"sparse_attention_config": {"sparse_attention_freq": [0, 1]}},
        ),
        ({"block_configs": [{"n": i} for i in range(6)]}, {"block_configs": [{"n": 0}, {"n": 1}]}),
        ({"num_kv_shared_layers": 5}, {"num_kv_shared_layers": 1}),
        ({"per_layer_config": {"1": {}, "5": {}}}, {"per_layer_config": {"1": {}}}),
    ],
)
def test_fields_of_configurations_are_cut(before, after):
    found, notes = cut_config({"num_hidden_layers": 6, **before}, 2, {})
    assert found == {"num_hidden_layers": 2, **after}
    assert len(notes) == 2 + ("linear_attn_config" in before)
