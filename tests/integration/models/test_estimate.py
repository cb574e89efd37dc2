"""What `describe` says a dump would weigh is within a tenth of what real dumps do weigh."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MixtralConfig,
    T5Config,
)

from hf_dumper import DEMO_MODEL, DumpConfig, register_hook
from hf_dumper.model import empty_model
from hf_dumper.models.estimate import estimate

TOKENS = 24
WAYS = {
    "tensors": {},
    "statistics": {"dump_statistics_mode": 1},
    "both": {"dump_statistics_mode": 2},
    "last_logits": {"dump_last_logits": True},
}
RANDOM = {
    "llama": LlamaConfig(
        num_hidden_layers=3,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        eos_token_id=None,
    ),
    "mixtral": MixtralConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        num_local_experts=4,
        eos_token_id=None,
    ),
    "gpt2": GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=300, eos_token_id=None),
}


@pytest.fixture(scope="module", params=["demo", *RANDOM])
def folder(request, tmp_path_factory):
    """Return the folder of the embedded model, or of a random one."""
    if request.param == "demo":
        return DEMO_MODEL
    path = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(RANDOM[request.param]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def guess(folder):
    model = empty_model(folder)
    dtype = model.config.dtype
    return estimate(model.to(dtype), DumpConfig("d").to_dict(), tokens=TOKENS, rows=2)


def dumped(folder, path, last, options):
    """Return the bytes of a dump of tokens 0 to `last`, and its records by forward."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) + 3
    with register_hook(model, DumpConfig(str(path), range(last + 1), **options)):
        model.generate(ids, max_new_tokens=last + 1, min_new_tokens=last + 1, pad_token_id=0)
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("way", WAYS)
def test_it_is_within_a_tenth_of_real_dumps(way, folder, guess, tmp_path):
    size = guess.sizes[way]
    one, three = (dumped(folder, tmp_path / str(last), last, WAYS[way]) for last in (0, 2))
    assert size.once + size.prefill == pytest.approx(one, rel=0.1)
    assert size.once + size.prefill + 2 * size.token == pytest.approx(three, rel=0.1)


def test_a_decoded_token_alone_is_within_a_tenth_where_tensors_are_kept(folder, guess, tmp_path):
    one, three = (dumped(folder, tmp_path / str(last), last, {}) for last in (0, 2))
    assert guess.sizes["tensors"].token == pytest.approx((three - one) / 2, rel=0.1)


def with_images():
    sizes = RANDOM["llama"].to_dict()
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    made = LlavaForConditionalGeneration.__name__
    return LlavaConfig(text_config=sizes, vision_config=vision, architectures=[made])


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (with_images(), "of text alone: what an image or sound adds is not counted"),
        (MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=96), ""),
        (BertConfig(num_hidden_layers=2, hidden_size=24, architectures=["BertModel"]), ""),
        (T5Config(num_layers=2, d_model=32, d_ff=48, num_heads=4), ""),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_architectures_are_known(config, why, tmp_path):
    config.save_pretrained(tmp_path)
    guess = estimate(empty_model(tmp_path), DumpConfig("d").to_dict(), tokens=8, rows=1)
    assert guess.why == why
    generates = config.model_type != "bert"
    assert (guess.sizes["tensors"].token is not None) == generates


def test_a_model_whose_forward_needs_values_says_so(tmp_path):
    class Reads(LlamaForCausalLM):
        def forward(self, input_ids, **_more):
            return input_ids.sum().item()

    with torch.device("meta"):
        model = Reads(RANDOM["llama"])
    guess = estimate(model, DumpConfig("d").to_dict(), tokens=8, rows=1)
    assert (guess.sizes, guess.records) == (None, None)
    assert guess.why.startswith("a forward without values is not possible: ")


def test_a_longer_prompt_weighs_more_and_a_decoded_token_much_the_same():
    short, long = (
        estimate(empty_model(DEMO_MODEL), DumpConfig("d").to_dict(), tokens=n, rows=1).sizes
        for n in (8, 64)
    )
    assert long["tensors"].prefill > 4 * short["tensors"].prefill
    assert long["tensors"].token == short["tensors"].token
    assert long["statistics"].prefill == short["statistics"].prefill


def test_the_model_is_left_without_hooks():
    model = empty_model(DEMO_MODEL)
    estimate(model, DumpConfig("d").to_dict(), tokens=4, rows=1)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(m, name) for m in model.modules() for name in hooks)
