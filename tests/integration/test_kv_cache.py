"""What each token added to the cache, for every kind of cache.

Two references without hf_dumper: what the model's layers hand to the cache, seen by a spy on
`Cache.update`, and the cache itself after each forward of a plain loop.
"""

import pytest
import torch
from transformers import (
    Cache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import Fp8QuantizedLayer, QuantizedLayer

from hf_dumper import DumpConfig, KeyNotFoundError, compare, open_dump, register_hook

PROMPT, NEW = 7, 6
IDS = torch.randint(5, 128, (2, PROMPT), generator=torch.Generator().manual_seed(0))
FULL = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * PROMPT])
PLAIN = {"input_ids": IDS, "attention_mask": FULL, "max_new_tokens": NEW, "do_sample": False}
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": 1,
}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**SIZES | options))


def mistral():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES | ALTERNATING))


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | ALTERNATING))


MODELS = {"dynamic": llama, "sliding": mistral, "gemma2": gemma2, "gemma3": gemma3}


def made(make):
    torch.manual_seed(0)
    return make().eval()


class Spy:
    """Keeps what goes into the cache at each forward, and how long its layers are after it."""

    def __init__(self, model, monkeypatch):
        self.forwards, self.kept = [], []
        update = Cache.update
        spy = self

        def see(cache, keys, values, layer_idx, *args, **kwargs):
            spy.forwards[-1][layer_idx] = (keys.clone(), values.clone())
            result = update(cache, keys, values, layer_idx, *args, **kwargs)
            spy.kept[-1][layer_idx] = cache.layers[layer_idx].keys.shape[2]
            return result

        def begin(*_):
            spy.forwards.append({})
            spy.kept.append({})

        monkeypatch.setattr(Cache, "update", see)
        self.handle = model.register_forward_pre_hook(begin)

    def added(self, forward, layer):
        """Return keys and values that a forward added to a layer, as far as the layer keeps any."""
        kept = self.kept[forward][layer]
        return [tensor[:, :, -kept:] for tensor in self.forwards[forward][layer]]


def generated(model, path, tokens="all", config=None, **options):
    """Generate plain under no spy, then dumped; the tokens are equal."""
    plain = model.generate(**PLAIN | options)
    with register_hook(model, DumpConfig(path, tokens, dump_kv_cache=True, **config or {})):
        assert torch.equal(model.generate(**PLAIN | options), plain)
    return open_dump(path)


def spied(model, monkeypatch, **options):
    with monkeypatch.context() as patch:
        spy = Spy(model, patch)
        model.generate(**PLAIN | options)
        spy.handle.remove()
    return spy


def slots(reader, run=0):
    rows = reader.index(run).to_pylist()
    return [row for row in rows if row["slot"].startswith("kv.")]


def agrees(reader, spy, forwards, layers=2):
    for forward in range(forwards):
        for layer in range(layers):
            token = max(0, forward - (forwards - NEW))
            for name, want in zip(("key", "value"), spy.added(forward, layer), strict=True):
                slot = f"kv.{layer}.{name}"
                got = reader.load("root", slot, token, forward=forward)
                assert torch.equal(got, want), (forward, slot)
    assert len(slots(reader)) == 2 * forwards * layers
    assert {row["module"] for row in slots(reader)} == {"root"}


@pytest.mark.parametrize("mask", [FULL, LEFT])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_forward_added_is_what_its_layers_handed_over(name, mask, tmp_path, monkeypatch):
    model = made(MODELS[name])
    spy = spied(model, monkeypatch, attention_mask=mask)
    with generated(model, tmp_path, attention_mask=mask) as reader:
        agrees(reader, spy, NEW)
        assert reader.run_info()["complete"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_is_that_of_the_cache(dtype, tmp_path, monkeypatch):
    model = made(llama).to(dtype)
    spy = spied(model, monkeypatch)
    with generated(model, tmp_path) as reader:
        agrees(reader, spy, NEW)


def test_a_plain_loop_reads_the_same_from_its_cache(tmp_path):
    model, ids = made(llama), IDS
    want = model.generate(**PLAIN)
    cache, seen = None, []
    with torch.no_grad():
        for token in range(NEW):
            columns = ids if cache is None else ids[:, -1:]
            output = model(columns, past_key_values=cache, use_cache=True)
            cache, ids = (
                output.past_key_values,
                torch.cat([ids, output.logits[:, -1:].argmax(-1)], dim=1),
            )
            start = PROMPT + token - 1 if token else 0
            seen.append([(x.keys[:, :, start:], x.values[:, :, start:]) for x in cache.layers])
    assert torch.equal(ids, want)
    with generated(model, tmp_path) as reader:
        for token, layers in enumerate(seen):
            for layer, tensors in enumerate(layers):
                for name, tensor in zip(("key", "value"), tensors, strict=True):
                    assert torch.equal(reader.load("root", f"kv.{layer}.{name}", token), tensor)


def test_chunks_of_a_prompt_are_joined_by_the_reader(tmp_path, monkeypatch):
    model = made(llama)
    spy = spied(model, monkeypatch, prefill_chunk_size=3)
    with generated(model, tmp_path, prefill_chunk_size=3) as reader:
        agrees(reader, spy, NEW + 2)
        chunks = [spy.added(forward, 1)[0] for forward in range(3)]
        assert torch.equal(reader.load("root", "kv.1.key", 0), torch.cat(chunks, dim=2))


def test_a_chunk_longer_than_the_window_keeps_its_end(tmp_path):
    with generated(made(mistral), tmp_path) as reader:
        assert reader.load("root", "kv.0.key", 0).shape[2] == 4  # a window of 5 keeps one less
        assert reader.load("root", "kv.0.key", 1).shape[2] == 1
        (row,) = [r for r in slots(reader) if r["slot"] == "kv.0.key" and r["token"] == 0]
        assert row["axes"] == "row,-,pos,-"


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_the_axes_are_known_whatever_the_sizes(heads, tmp_path):
    sizes = {"num_key_value_heads": heads, "num_attention_heads": heads, "head_dim": 8}
    model = made(lambda: llama(**sizes))
    ids = torch.arange(16).reshape(2, 8) + 5  # as many columns as channels
    with generated(model, tmp_path, input_ids=ids, attention_mask=torch.ones_like(ids)) as reader:
        assert {row["axes"] for row in slots(reader)} == {"row,-,pos,-"}


@pytest.mark.parametrize("make", [llama, mistral, gemma2])
def test_a_static_cache_gives_what_is_new_in_it(make, tmp_path, monkeypatch):
    model = made(make)

    def run():
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.no_grad():
            for start, stop in ((0, 5), (5, 6), (6, 9), (9, 10)):
                ids = torch.cat([IDS, IDS], dim=1)[:, start:stop]
                model(ids, past_key_values=cache, use_cache=True)

    with monkeypatch.context() as patch:
        spy = Spy(model, patch)
        run()
        spy.handle.remove()
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)):
        run()
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0, 1, 2, 3)
        for forward in range(4):
            for layer in range(2):
                for name, want in zip(("key", "value"), spy.added(forward, layer), strict=True):
                    got = reader.load("root", f"kv.{layer}.{name}", run=forward)
                    assert torch.equal(got, want), (forward, layer, name)


def test_a_cache_from_before_is_not_taken_again(tmp_path):
    model = made(llama)
    with torch.no_grad():
        cache = model(IDS[:, :5], use_cache=True).past_key_values
    before = [layer.keys.clone() for layer in cache.layers]
    with register_hook(model, DumpConfig(tmp_path, "all", dump_kv_cache=True)):
        model.generate(**PLAIN, past_key_values=cache)
    with open_dump(tmp_path) as reader:
        for layer, old in enumerate(before):
            keys = [reader.load("root", f"kv.{layer}.key", token) for token in range(NEW)]
            assert torch.equal(torch.cat([old, *keys], dim=2), cache.layers[layer].keys)


def test_an_encoder_decoder_adds_its_cross_attention_once(tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = made(
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=128, decoder_start_token_id=0, eos_token_id=None, **sizes)
        )
    )
    with generated(model, tmp_path) as reader:
        for token in range(NEW):
            assert reader.load("root", "kv.1.key", token).shape == (2, 4, 1, 8)
        assert reader.load("root", "kv.1.cross.value", 0).shape == (2, 4, PROMPT, 8)
        with pytest.raises(KeyNotFoundError):
            reader.load("root", "kv.1.cross.value", 1)
        axes = {row["slot"].count("."): row["axes"] for row in slots(reader)}
        assert axes == {2: "row,-,pos,-", 3: "row,-,-,-"}


@pytest.fixture
def updates(monkeypatch):
    """Keep the keys that every forward hands to a quantised layer, in order."""
    kept = []
    for layer in (QuantizedLayer, Fp8QuantizedLayer):

        def update(self, keys, values, *args, _update=layer.update, **kwargs):
            kept.append((self, keys.clone()))
            return _update(self, keys, values, *args, **kwargs)

        monkeypatch.setattr(layer, "update", update)
    return kept


def test_what_is_quantised_already_is_recorded_as_attention_reads_it(tmp_path, updates):
    cache = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with generated(made(llama), tmp_path, **cache) as reader:
        recorded = [reader.load("root", "kv.1.key", token) for token in range(NEW)]
        assert "quantised" not in str(reader.run_info()["counts"])
    layers = {id(layer): layer for layer, _ in updates}
    ours = [keys for layer, keys in updates if layer is list(layers.values())[1]]
    scale = (ours[0].abs().amax() / torch.finfo(torch.float8_e4m3fn).max).float()
    for keys, found in zip(ours, recorded, strict=True):
        expected = (keys / scale).to(torch.float8_e4m3fn).float() * scale
        assert torch.equal(found, expected)
        assert not torch.equal(found, keys)


def test_what_waits_to_be_quantised_is_recorded_as_it_is(tmp_path, updates):
    pytest.importorskip("optimum.quanto", reason="this cache is made by optimum-quanto")
    config = {"backend": "quanto", "q_group_size": 8, "residual_length": 8}
    cache = {"cache_implementation": "quantized", "cache_config": config}
    with generated(made(llama), tmp_path, **cache) as reader:
        recorded = [reader.load("root", "kv.1.key", token) for token in range(NEW)]
    layers = {id(layer): layer for layer, _ in updates}
    layer = list(layers.values())[1]
    ours = [keys for one, keys in updates if one is layer]
    first = layer._dequantize(layer._quantize(ours[0].contiguous(), axis=layer.axis_key))
    assert torch.equal(recorded[0], first)
    assert not torch.equal(recorded[0], ours[0])
    assert all(map(torch.equal, recorded[1:], ours[1:]))


def test_a_generation_without_cache_says_so(tmp_path):
    with generated(made(llama), tmp_path, use_cache=False) as reader:
        assert slots(reader) == []
        counts = reader.run_info()["counts"]["skipped_by_reason"]
        assert counts["cache: the forward had none"] == NEW


class Strange:
    """A cache of a kind that nobody knows."""


def test_a_cache_of_an_unknown_kind_is_counted(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x, past_key_values=None):
            return x + 1

    with register_hook(Odd(), DumpConfig(tmp_path, dump_kv_cache=True)) as session:
        session._model(torch.ones(2, 3), past_key_values=Strange())
    with open_dump(tmp_path) as reader:
        counts = reader.run_info()["counts"]["skipped_by_reason"]
        assert counts["cache: what a Strange holds cannot be read"] == 1


def test_what_else_a_layer_holds_is_a_state_of_it(tmp_path):
    model = made(llama)
    with torch.no_grad():
        cache = model(IDS[:, :5], use_cache=True).past_key_values
    cache.layers[0].extra = {"a": [torch.ones(2)], "b": torch.zeros(3, 2)}
    cache.seen = torch.arange(4)
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)), torch.no_grad():
        model(IDS[:, 5:], past_key_values=cache, use_cache=True)
    with open_dump(tmp_path) as reader:
        axes = {row["slot"]: row["axes"] for row in slots(reader)}
        others = {slot: axes[slot] for slot in axes if not slot.endswith(("key", "value"))}
        assert others == {"kv.0.extra.a.0": "row", "kv.0.extra.b": "-,-", "kv.seen": "-"}
        assert torch.equal(reader.load("root", "kv.seen"), torch.arange(4))
        assert len(slots(reader)) == 4 + 3


def test_only_selected_tokens_have_their_cache(tmp_path, monkeypatch):
    model = made(llama)
    spy = spied(model, monkeypatch)
    with generated(model, tmp_path, [2, 4]) as reader:
        assert {row["token"] for row in slots(reader)} == {2, 4}
        assert torch.equal(reader.load("root", "kv.1.value", 4), spy.added(4, 1)[1])


def test_last_logits_and_cache_go_together(tmp_path, monkeypatch):
    model = made(llama)
    spy = spied(model, monkeypatch)
    with generated(model, tmp_path, config={"dump_last_logits": True}) as reader:
        agrees(reader, spy, NEW)
        assert len(reader.index()) == NEW * (4 + 3)


def test_statistics_are_made_of_the_cache_too(tmp_path, monkeypatch):
    model = made(llama)
    spy = spied(model, monkeypatch)
    with generated(model, tmp_path, config={"dump_statistics_mode": 1}) as reader:
        rows = {(r["token"], r["slot"]): r for r in reader.statistics().to_pylist()}
        keys = spy.added(3, 0)[0]
        assert rows[3, "kv.0.key"]["count"] == keys.numel()
        assert rows[3, "kv.0.key"]["sum"] == pytest.approx(keys.double().sum().item())


def test_what_is_recorded_does_not_change_with_the_cache(tmp_path, monkeypatch):
    """A static cache is written in place: the copy is made at once."""
    model = made(llama)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with register_hook(model, DumpConfig(tmp_path, dump_kv_cache=True)), torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
        want = cache.layers[0].keys[:, :, :PROMPT].clone()
        cache.layers[0].keys.zero_()
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root", "kv.0.key"), want)


def test_two_dumps_with_caches_are_compared(tmp_path):
    model = made(llama)
    with generated(model, tmp_path / "a"), generated(model, tmp_path / "b"):
        pass
    result = compare(tmp_path / "a", tmp_path / "b")
    assert result.passed
    assert "kv.1.key" in result.results.column("slot").to_pylist()
