"""A fault is named exactly: the module, the kind, the token; what it spreads to is not."""

import json

import pytest
import torch
from transformers.models.llama import modeling_llama

from hf_dumper import Verdict, compare
from tests.demo_dumps import PROMPTS, load, make_dump, patched_forward


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("golden") / "dump", prompts=PROMPTS[:2])


@pytest.fixture
def faulty(golden, tmp_path):
    """Return a function that dumps a model following the golden tokens, and compares it."""

    def run(model, **options):
        path = make_dump(
            tmp_path / "dump", prompts=PROMPTS[:2], model=model, follow=golden, **options
        )
        return compare(golden, path)

    return run


def named(comparison):
    found = comparison.divergence
    return found.kind, found.module, found.token


def changed(change):
    """Return a wrapper that applies `change` to a copy of what a forward returns."""

    def wrap(forward, *args, **kwargs):
        output = forward(*args, **kwargs).clone()
        change(output)
        return output

    return wrap


class TestSources:
    def test_a_missing_scale(self, faulty):
        model = load()
        with patched_forward(model.model.layers[2].mlp.down_proj, changed(lambda y: y.mul_(1.02))):
            comparison = faulty(model)
        assert comparison.verdict == Verdict.FAIL
        assert named(comparison) == ("source", "model.layers.2.mlp.down_proj", 0)

    def test_one_channel(self, faulty):
        model = load()
        with patched_forward(
            model.model.layers[1].mlp.up_proj, changed(lambda y: y[..., 17].neg_())
        ):
            comparison = faulty(model)
        assert named(comparison) == ("source", "model.layers.1.mlp.up_proj", 0)
        row = comparison.results.filter(
            (comparison.results.column("module").to_numpy() == "model.layers.1.mlp.up_proj")
            & (comparison.results.column("slot").to_numpy() == "output")
        ).to_pylist()[0]
        assert row["channel"] == 17

    def test_one_position(self, faulty):
        model = load()
        with patched_forward(
            model.model.layers[1].self_attn.v_proj, changed(lambda y: y[:, 2:3].mul_(0.5))
        ):
            comparison = faulty(model)
        assert named(comparison) == ("source", "model.layers.1.self_attn.v_proj", 0)
        assert (comparison.divergence.row, comparison.divergence.position) == (0, 2)

    def test_the_epsilon_of_a_norm(self, faulty):
        model = load()
        model.model.layers[3].post_attention_layernorm.variance_epsilon = 1e-2
        assert named(faulty(model)) == ("source", "model.layers.3.post_attention_layernorm", 0)

    def test_a_sign_of_the_rotary_embedding(self, faulty):
        model = load()

        def flipped(forward, *args, **kwargs):
            cos, sin = forward(*args, **kwargs)
            return cos, -sin

        with patched_forward(model.model.rotary_emb, flipped):
            comparison = faulty(model)
        assert named(comparison) == ("source", "model.rotary_emb", 0)
        assert comparison.divergence.slot == "output.1"

    def test_a_fault_of_a_bf16_candidate(self, faulty):
        model = load(torch.bfloat16)
        with patched_forward(model.model.layers[2].mlp.down_proj, changed(lambda y: y.mul_(1.1))):
            comparison = faulty(model)
        assert named(comparison) == ("source", "model.layers.2.mlp.down_proj", 0)


class TestFunctional:
    def test_interleaved_rotary_halves(self, faulty, monkeypatch):
        original = modeling_llama.apply_rotary_pos_emb
        calls = iter(range(10**6))

        def rotated(x):
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

        def interleaved(q, k, cos, sin, unsqueeze_dim=1):
            if next(calls) % 4 != 1:  # the calls of layer 1
                return original(q, k, cos, sin, unsqueeze_dim)
            cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
            return q * cos + rotated(q) * sin, k * cos + rotated(k) * sin

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
        assert named(faulty(load())) == ("functional", "model.layers.1.self_attn", 0)

    def test_a_mask_that_attention_leaves_out(self, golden, tmp_path, monkeypatch):
        options = {"prompts": PROMPTS[:2], "follow": golden}
        eager = load(attn_implementation="eager")
        reference = make_dump(tmp_path / "golden", model=eager, **options)
        original = modeling_llama.eager_attention_forward

        def forward(module, query, key, value, mask, *args, **kwargs):
            mask = None if module.layer_idx == 2 else mask
            return original(module, query, key, value, mask, *args, **kwargs)

        monkeypatch.setattr(modeling_llama, "eager_attention_forward", forward)
        broken = make_dump(tmp_path / "broken", model=load(attn_implementation="eager"), **options)
        found = named(compare(reference, broken))
        assert found == ("functional", "model.layers.2.self_attn", 0)

    def test_a_cache_that_was_overwritten_shows_at_decode_only(self, faulty):
        model = load()

        def forgetful(forward, *args, **kwargs):
            cache = kwargs["past_key_values"]
            if kwargs["hidden_states"].shape[1] == 1:
                cache.layers[2].keys[:, :, 0] = 0
            return forward(*args, **kwargs)

        with patched_forward(model.model.layers[2].self_attn, forgetful):
            comparison = faulty(model)
        assert named(comparison) == ("functional", "model.layers.2.self_attn", 1)

    def test_a_residual_that_is_left_out(self, faulty):
        model = load()
        layer = model.model.layers[1]

        def forward(hidden_states, **kwargs):
            attended = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden_states), **kwargs
            )[0]
            return attended + layer.mlp(layer.post_attention_layernorm(attended))

        with patched_forward(layer, lambda _, *args, **kwargs: forward(*args, **kwargs)):
            comparison = faulty(model)
        assert named(comparison) == ("functional", "model.layers.1", 0)


class TestNonFinite:
    def test_the_birth_of_a_nan(self, faulty):
        model = load()

        def poison(y):
            if y.shape[1] > 2:
                y[0, 2, 5] = torch.nan

        with patched_forward(model.model.layers[2].input_layernorm, changed(poison)):
            comparison = faulty(model)
        found = comparison.divergence
        assert comparison.verdict == Verdict.NON_FINITE
        assert named(comparison) == ("source", "model.layers.2.input_layernorm", 0)
        assert (found.row, found.position) == (0, 2)

    def test_nan_everywhere_on_both_sides_does_not_pass(self, tmp_path):
        def broken():
            model = load()
            with torch.no_grad():
                model.model.embed_tokens.weight.fill_(torch.nan)
            return model

        options = {"prompts": PROMPTS[:1], "config": {"hash_weights": False}}
        first = make_dump(tmp_path / "first", model=broken(), **options)
        second = make_dump(tmp_path / "second", model=broken(), **options)
        assert compare(first, second).verdict == Verdict.NON_FINITE


class TestInputs:
    def test_other_weights(self, faulty):
        model = load()
        with torch.no_grad():
            model.model.layers[1].mlp.gate_proj.weight[3, 4] += 0.01
        comparison = faulty(model)
        assert comparison.verdict == Verdict.INPUTS
        assert named(comparison) == ("weights", "model.layers.1.mlp.gate_proj", 0)
        assert comparison.divergence.slot == "weight.weight"

    def test_tied_weights_are_named_where_they_are_used_first(self, faulty):
        model = load()
        with torch.no_grad():
            model.model.embed_tokens.weight[100] += 0.01
        assert named(faulty(model)) == ("weights", "model.embed_tokens", 0)

    def test_weights_without_hashes_are_found_by_what_they_compute(self, faulty):
        model = load()
        with torch.no_grad():
            model.model.layers[1].mlp.gate_proj.weight[3, 4] += 0.01
        comparison = faulty(model, config={"hash_weights": False})
        assert named(comparison) == ("source", "model.layers.1.mlp.gate_proj", 0)
        assert "weights" in {finding.subject for finding in comparison.regime}

    def test_another_prompt(self, golden, tmp_path):
        other = make_dump(tmp_path / "dump", prompts=(PROMPTS[0], "Everyone is"))
        comparison = compare(golden, other)
        assert comparison.verdict == Verdict.INPUTS
        assert comparison.divergence.kind == "inputs"
        assert comparison.inputs[0].subject == "prompt of run 1, row 0"

    def test_another_configuration(self, golden, tmp_path):
        other = load(rms_norm_eps=1e-2)
        comparison = compare(golden, make_dump(tmp_path / "dump", prompts=PROMPTS[:2], model=other))
        assert comparison.verdict == Verdict.INPUTS
        assert "rms_norm_eps is 1e-06 against 0.01" in comparison.divergence.evidence[0]


class TestLessCaptured:
    def test_without_inputs_it_is_the_first_failing_one(self, golden, tmp_path):
        options = {"prompts": PROMPTS[:2], "follow": golden, "config": {"tensor_part": 1}}
        reference = make_dump(tmp_path / "golden", **options)
        model = load()
        with patched_forward(model.model.layers[2].mlp.down_proj, changed(lambda y: y.mul_(1.02))):
            other = make_dump(tmp_path / "other", model=model, **options)
        found = named(compare(reference, other))
        assert found == ("first failing", "model.layers.2.mlp.down_proj", 0)

    def test_statistics_alone_find_a_scale(self, golden, tmp_path):
        options = {"prompts": PROMPTS[:2], "follow": golden}
        reference = make_dump(tmp_path / "golden", config={"dump_statistics_mode": 1}, **options)
        model = load()
        with patched_forward(model.model.layers[2].mlp.down_proj, changed(lambda y: y.mul_(1.02))):
            other = make_dump(tmp_path / "other", model=model, **options)
        comparison = compare(reference, other)
        assert named(comparison) == ("source", "model.layers.2.mlp.down_proj", 0)
        assert comparison.divergence.evidence[0].startswith("statistics.")

    def test_a_missing_prompt_does_not_pass(self, golden, tmp_path):
        fewer = make_dump(tmp_path / "dump", prompts=PROMPTS[:1])
        assert compare(golden, fewer).verdict == Verdict.UNMATCHED


class TestTokens:
    def test_what_comes_after_another_token_is_truncated(self, golden, tmp_path):
        model = load()
        with patched_forward(model.lm_head, changed(lambda y: y[..., 84].sub_(100))):
            other = make_dump(tmp_path / "dump", prompts=PROMPTS[:2], model=model)
        comparison = compare(golden, other)
        assert named(comparison) == ("source", "lm_head", 0)
        verdicts = [row["verdict"] for row in comparison.tokens.to_pylist() if row["run"] == 0]
        assert verdicts == ["diverged", "truncated", "truncated", "truncated"]
        assert comparison.coverage["golden records truncated"] > 0

    def test_another_draw_is_no_fault_but_no_pass_either(self, tmp_path):
        def sampled(name, seed):
            torch.manual_seed(seed)
            options = {"prompts": ("Everyone",), "do_sample": True, "temperature": 5.0}
            return make_dump(tmp_path / name, **options)

        comparison = compare(sampled("a", 1), sampled("b", 2))
        assert comparison.verdict == Verdict.TRUNCATED
        assert comparison.divergence is None
        assert "sampled" in comparison.tokens.to_pylist()[0]["reason"]


class TestAbsence:
    def test_an_output_that_the_candidate_lacks_is_no_pass(self, golden, tmp_path):
        # A dump of another tool, say: it does not tell what it was asked to hold.
        other = make_dump(tmp_path / "dump", config={"layer_name": "model.layers.0*"})
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["identity"]["dump_config"] = {}
        (other / "manifest.json").write_text(json.dumps(manifest))
        comparison = compare(golden, other)
        assert comparison.verdict == Verdict.UNMATCHED
        assert not comparison.passed

    def test_what_the_candidate_was_not_asked_for_is_not_missing(self, golden, tmp_path):
        fewer = make_dump(tmp_path / "dump", config={"layer_name": "model.layers.0*"})
        comparison = compare(golden, fewer)
        assert comparison.passed
        reasons = set(comparison.unmatched.column("reason").to_pylist())
        assert "the candidate was not asked for it" in reasons
