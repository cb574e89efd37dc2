"""What the caches of all kinds hold beside keys and values, taken by value.

The reference is the cache itself: a hook clones what it holds after each forward of the root
module, at places that are written down here for every kind.
"""

import itertools

import pytest
import torch
from transformers import (
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    DynamicCache,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
    InklingForCausalLM,
    InklingTextConfig,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    ReformerConfig,
    ReformerModelWithLMHead,
    RwkvConfig,
    RwkvForCausalLM,
    StaticCache,
    XLNetConfig,
    XLNetLMHeadModel,
    xLSTMConfig,
    xLSTMForCausalLM,
)

from hf_dumper import DumpConfig, open_dump, register_hook

ROWS, PROMPT, NEW = 2, 7, 4
IDS = torch.randint(5, 128, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * PROMPT])
PLAIN = {
    "attention_mask": torch.ones_like(IDS),
    "max_new_tokens": NEW,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
BASE = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
SIZES = BASE | HEADS | {"intermediate_size": 48, "head_dim": 8}


def minimax():
    kinds = ["linear_attention", "full_attention"]
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    return MiniMaxForCausalLM(MiniMaxConfig(**SIZES, layer_types=kinds, block_size=4, **experts))


def rwkv():
    return RwkvForCausalLM(RwkvConfig(**BASE, attention_hidden_size=32, intermediate_size=48))


def xlnet(**options):
    sizes = {"vocab_size": 128, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    return XLNetLMHeadModel(XLNetConfig(**sizes, **options))


def reformer():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8}
    chunks = {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 8, "num_buckets": 4}
    config = ReformerConfig(
        vocab_size=128,
        **sizes,
        **chunks,
        feed_forward_size=32,
        attn_layers=["local", "lsh"],
        axial_pos_embds=False,
        is_decoder=True,
        hash_seed=0,
    )
    return ReformerModelWithLMHead(config)


def xlstm():
    config = BASE | {"hidden_size": 64, "num_heads": 4, "chunk_size": 4}
    return xLSTMForCausalLM(xLSTMConfig(**config, qk_dim_factor=1.0, v_dim_factor=1.0))


def recurrent_gemma():
    config = RecurrentGemmaConfig(
        **SIZES, lru_width=32, attention_window_size=4, block_types=["recurrent", "attention"]
    )
    return RecurrentGemmaForCausalLM(config)


def mamba():
    return MambaForCausalLM(MambaConfig(**BASE, state_size=4, intermediate_size=64))


def mamba2():
    heads = {"num_heads": 8, "head_dim": 8, "n_groups": 1}
    return Mamba2ForCausalLM(Mamba2Config(**BASE, **heads, state_size=8, chunk_size=4))


def jamba():
    config = JambaConfig(
        **BASE,
        **HEADS,
        intermediate_size=48,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    return JambaForCausalLM(config)


def lfm2():
    kinds = ["conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(**BASE, **HEADS, intermediate_size=48, layer_types=kinds))


def inkling():
    kinds = {"layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["sparse"] * 2}
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    return InklingForCausalLM(InklingTextConfig(**SIZES, **kinds, **experts))


def indexed():
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8}
    index = {"qk_nope_head_dim": 8, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
    sizes = {name: SIZES[name] for name in SIZES if name != "head_dim"}
    config = GlmMoeDsaConfig(
        **sizes | {"num_key_value_heads": 4}, **ranks, **index, mlp_layer_types=["dense"] * 2
    )
    return GlmMoeDsaForCausalLM(config)


def compressed():
    kinds = ["heavily_compressed_attention", "compressed_sparse_attention"]
    sizes = {name: SIZES[name] for name in SIZES if name != "intermediate_size"}
    config = DeepseekV4Config(
        **sizes,
        layer_types=kinds,
        compress_rates=dict(zip(kinds, (3, 2), strict=True)),
        mlp_layer_types=["moe"] * 2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        q_lora_rank=16,
        sliding_window=5,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=4,
    )
    return DeepseekV4ForCausalLM(config)


def of_layers(cache, _model):
    """Return convolution and recurrent states of layers, numbered where a layer has several."""
    found = {}
    for i, layer in enumerate(cache.layers):
        for kind in ("conv", "recurrent"):
            states = getattr(layer, f"{kind}_states", {})
            for j, state in states.items():
                name = f"kv.{i}.{kind}.{j}" if len(states) > 1 else f"kv.{i}.{kind}"
                found[name] = state
    return {name: state for name, state in found.items() if state is not None}


def of_list(cache, _model):
    return {f"kv.{i}.recurrent": x for i, x in enumerate(cache.linear_cache) if len(x)}


def of_stack(state, _model):
    layers = range(state[0].shape[2])
    return {f"kv.{k}.recurrent.{i}": x[:, :, k] for i, x in enumerate(state) for k in layers}


def of_tuples(cache, _model):
    states = cache.rnn_state
    return {f"kv.{k}.recurrent.{i}": x for k in states for i, x in enumerate(states[k])}


def of_modules(_cache, model):
    block = model.model.layers[0].temporal_block
    return {"kv.0.conv": block.conv1d_state, "kv.0.recurrent": block.rg_lru.recurrent_states}


def of_compressors(cache, _model):
    buffers = ("buffer_kv", "buffer_gate", "overlap_kv", "overlap_gate")
    return {
        f"kv.{i}.{name}.{part}": tensor
        for i, layer in enumerate(cache.layers)
        for name in buffers
        for part, tensor in getattr(layer, name, {}).items()
        if tensor is not None and tensor.numel()
    }


def of_buckets(cache, _model):
    return {f"kv.{i}.buckets": x for i, x in enumerate(cache.buckets_cache) if x.numel()}


STATES = {
    "minimax": (minimax, of_list, {"key", "value"}),
    "rwkv": (rwkv, of_stack, set()),
    "xlstm": (xlstm, of_tuples, set()),
    "recurrent gemma": (recurrent_gemma, of_modules, {"key", "value"}),
    "mamba": (mamba, of_layers, set()),
    "mamba2": (mamba2, of_layers, set()),
    "jamba": (jamba, of_layers, {"key", "value"}),
    "lfm2": (lfm2, of_layers, {"key", "value"}),
    "inkling": (inkling, of_layers, {"key", "value"}),
    "deepseek v4": (compressed, of_compressors, {"key", "value", "compressed_kv"}),
    "reformer": (reformer, of_buckets, {"states"}),
}
"""What makes a model, where its states are, and what its cache holds besides."""

GROWING = {
    "indexer": (indexed, lambda c: {f"{i}.indexer_keys": x.indexer_keys for i, x in at(c)}, 1),
    "indexed keys": (indexed, lambda c: {f"{i}.key": x.keys for i, x in at(c)}, 2),
    "reformer": (reformer, lambda c: {f"{i}.states": x for i, x in enumerate(c.states_cache)}, 1),
    "deepseek v4": (
        compressed,
        lambda c: {
            f"{i}.compressed_kv.{name}": x.clone()
            for i, layer in at(c)
            for name, x in layer.compressed_kv.items()
        },
        1,
    ),
}
"""What makes a model, what grows in its cache, and the axis along which it does."""


def at(cache):
    return enumerate(cache.layers)


def made(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1))
    return model


def cache_of(output, given):
    names = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
    caches = [getattr(output, name, None) for name in names] + [given.get(name) for name in names]
    return next(cache for cache in caches if cache is not None)


def changed(before, after):
    return any(not torch.equal(before[slot], after[slot]) for slot in before.keys() & after.keys())


def cloned(model, find, **options):
    """Generate without hf_dumper, cloning what `find` finds after each forward."""
    kept = []

    def after(module, _args, given, output):
        found = find(cache_of(output, given), module)
        kept.append({slot: tensor.clone() for slot, tensor in found.items()})

    handle = model.register_forward_hook(after, with_kwargs=True)
    ids = model.generate(IDS, **PLAIN | options)
    handle.remove()
    return ids, kept


def dumped(model, path, ids, **options):
    with register_hook(model, DumpConfig(path, "all", dump_kv_cache=True)):
        assert torch.equal(model.generate(IDS, **PLAIN | options), ids)
    reader = open_dump(path)
    run = reader.run_info()
    assert run["complete"]
    assert not [r for r in run["counts"]["skipped_by_reason"] if r.startswith("cache:")]
    return reader


def slots(reader, token):
    rows = reader.index(0).to_pylist()
    return {r["slot"] for r in rows if r["slot"].startswith("kv.") and r["token"] == token}


@pytest.mark.parametrize("name", STATES)
def test_states_are_as_each_forward_left_them(name, tmp_path):
    make, find, besides = STATES[name]
    model = made(make)
    ids, kept = cloned(model, find)
    with dumped(model, tmp_path, ids) as reader:
        for token, states in enumerate(kept):
            for slot, want in states.items():
                assert torch.equal(reader.load("root", slot, token), want), (token, slot)
            others = slots(reader, token) - set(states)
            assert {slot.split(".")[2] for slot in others} <= besides
        assert len(kept) == NEW
        assert kept[-1]
        assert any(changed(*pair) for pair in itertools.pairwise(kept))


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_is_added_piece_by_piece(name, tmp_path):
    make, find, axis = GROWING[name]
    model = made(make)
    ids, kept = cloned(model, lambda cache, _: find(cache))
    with dumped(model, tmp_path, ids) as reader:
        for slot, want in kept[-1].items():
            tokens = [token for token in range(NEW) if f"kv.{slot}" in slots(reader, token)]
            pieces = [reader.load("root", f"kv.{slot}", token) for token in tokens]
            assert torch.equal(torch.cat(pieces, dim=axis), want), slot
            assert len(pieces) > 1


def mems_of(mems, _model):
    return {str(i): tensor for i, tensor in enumerate(mems)}


@pytest.mark.parametrize("most", [None, 512, 6])
def test_memories_are_what_was_appended_or_all_of_them(most, tmp_path):
    model = made(lambda: xlnet(mem_len=most))
    ids, kept = cloned(model, mems_of)
    with dumped(model, tmp_path, ids) as reader:
        for token, memories in enumerate(kept):
            for layer, want in memories.items():
                fed = PROMPT + 1 if not token else 3  # the last two, and one to predict
                got = reader.load("root", f"kv.{layer}.mems", token)
                assert torch.equal(got, want[-fed:] if most != 6 or (token and fed == 99) else want)
        axes = {r["axes"] for r in reader.index(0).to_pylist() if r["slot"].startswith("kv.")}
        assert axes == ({"-,row,-"} if most == 6 else {"pos,row,-"})


def positions(reader, run):
    return reader.positions(run)["position"].to_pylist()


def trace(reader):
    return [row for row in reader.trace().to_pylist() if not row["row"]]


def test_memories_tell_the_positions(tmp_path):
    """Each forward is fed the last two ids again, and one that stands for the next."""
    model = made(xlnet)
    ids = model.generate(IDS, **PLAIN)
    with dumped(model, tmp_path, ids) as reader:
        for token, row in enumerate(trace(reader)):
            assert row["cache_length"] == (PROMPT + token - 2 if token else 0)
            assert row["positions"][-3:] == [PROMPT + token + i for i in (-2, -1, 0)]
            for position, id_ in list(zip(row["positions"], row["input_ids"], strict=True))[:-1]:
                assert id_ == ids[0, position]


@pytest.mark.parametrize("options", [{"mem_len": 6}, {"reuse_len": 3}])
def test_memories_that_were_cut_tell_no_positions(options, tmp_path):
    model = made(lambda: xlnet(**options))
    with dumped(model, tmp_path, model.generate(IDS, **PLAIN)) as reader:
        first, *others = [row["positions"] for row in trace(reader)]
        assert first == list(range(PROMPT + 1))
        assert others == [None] * (NEW - 1)


def test_the_inverted_mask_of_memories_is_read(tmp_path):
    model = made(xlnet)
    with register_hook(model, DumpConfig(tmp_path)), torch.no_grad():
        model(IDS, input_mask=1.0 - LEFT)
    with open_dump(tmp_path) as reader:
        assert positions(reader, 0) == [-1, -1, 0, 1, 2, 3, 4, *range(PROMPT)]


@pytest.mark.parametrize("make", [mamba, rwkv])
def test_a_bare_forward_does_not_know_where_states_come_from(make, tmp_path):
    model = made(make)
    name = "state" if make is rwkv else "cache_params"
    with torch.no_grad():
        state = getattr(model(IDS, use_cache=True), name)
        with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)):
            model(IDS[:, :1], **{name: state}, use_cache=True)
            model(IDS[:, :1], use_cache=True)
    with open_dump(tmp_path) as reader:
        assert [positions(reader, run) for run in reader.runs()] == [[None] * ROWS, [0] * ROWS]


def test_a_static_indexer_gives_what_is_new_in_it(tmp_path):
    model = made(indexed)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)), torch.no_grad():
        for start, stop in ((0, 5), (5, 6), (6, 7)):
            model(IDS[:, start:stop], past_key_values=cache, use_cache=True)
    with open_dump(tmp_path) as reader:
        pieces = [reader.load("root", "kv.1.indexer_keys", run=run) for run in reader.runs()]
        assert torch.equal(torch.cat(pieces, dim=1), cache.layers[1].indexer_keys[:, :PROMPT])
        assert pieces[0].abs().sum() > 0


class Streaming(torch.nn.Module):
    """Has an encoder with caches of its own, as Voxtral Realtime has."""

    def forward(self, x, past_key_values, encoder_past_key_values, padding_cache):
        for i, cache in enumerate((past_key_values, encoder_past_key_values)):
            cache.update(x[:, None] + i, x[:, None] - i, 0)
        padding_cache.layers["conv1"].cache = x[:, -1:]
        return x


def test_caches_of_an_encoder_are_beside_those_of_the_model(tmp_path):
    class Layer:
        cache = None

    class Padding:
        def __init__(self):
            self.layers = {"conv1": Layer()}

    given = DynamicCache(), DynamicCache(), Padding()
    model = Streaming()
    x = torch.randn(ROWS, 3, 4)
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)):
        model(x, *given)
        model(x + 1, *given)
    with open_dump(tmp_path) as reader:
        names = ("0.key", "0.value", "0.encoder.key", "0.encoder.value", "conv1.padding.cache")
        found = [reader.load("root", f"kv.{name}", run=1) for name in names]
        keys = x[:, None] + 1
        wanted = (keys, keys, keys + 1, keys - 1, (x + 1)[:, -1:])
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_a_tuple_does_not_say_which_value_is_a_memory(tmp_path):
    model = made(xlnet)
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)), torch.no_grad():
        model(IDS, return_dict=False)
    with open_dump(tmp_path) as reader:
        reasons = reader.run_info()["counts"]["skipped_by_reason"]
        assert [r for r in reasons if r.startswith("cache: none was given")]
