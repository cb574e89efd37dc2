"""What cannot be followed is refused before the first token, and leaves nothing behind."""

import functools

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from hf_dumper import (
    CompiledModelError,
    DumpConfig,
    UnsupportedGenerationError,
    open_dump,
    register_hook,
)

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
PLAIN = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 3}


class Nested(LogitsProcessor):
    """Generates with the model while it generates."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, scores):
        self.model.generate(input_ids, max_new_tokens=1)
        return scores


REFUSED = {
    "group beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "paged cache": {"cache_implementation": "paged"},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "contrastive layers": {"dola_layers": "high"},
    "custom": {"custom_generate": lambda model, **kwargs: None},
    "drafts of heads for several tokens": {"use_mtp": True},
    "drafts of a block": {"speculation_type": "dflash", "assistant_model": object()},
    "an assistant of Gemma 4": {"assistant_model": type("Gemma4AssistantForCausalLM", (), {})()},
    "constrained beams": {"num_beams": 2, "force_words_ids": [[[5]]]},
    "contrastive by configuration": {
        "generation_config": GenerationConfig(penalty_alpha=0.6, top_k=4)
    },
    "contrastive over a configuration": {
        "generation_config": GenerationConfig(),
        "penalty_alpha": 0.6,
        "top_k": 4,
    },
}


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.fixture
def forwards(model):
    """Count the forwards that really begin, with a hook of the test's own."""
    begun = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: begun.append(1))
    return begun


def refused(model, path, options):
    with register_hook(model, DumpConfig(path, "all")) as session:
        with pytest.raises(UnsupportedGenerationError):
            model.generate(**PLAIN | options)
        assert session.runs == ()
        model.generate(**PLAIN)


@pytest.mark.parametrize("name", REFUSED)
def test_a_way_of_generating_is_refused_before_any_forward(model, forwards, tmp_path, name):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(UnsupportedGenerationError):
            model.generate(**PLAIN | REFUSED[name])
        assert (forwards, session.runs) == ([], ())
        model.generate(**PLAIN)


@pytest.mark.parametrize("name", ["group beams", "custom", "paged cache"])
def test_after_a_refusal_the_model_generates_and_is_dumped(model, tmp_path, name):
    want = model.generate(**PLAIN)
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        with pytest.raises(UnsupportedGenerationError):
            model.generate(**PLAIN | REFUSED[name])
        assert torch.equal(model.generate(**PLAIN), want)
        assert session.runs == (0,)
    with open_dump(tmp_path) as reader:
        assert reader.runs() == (0,)
        assert reader.run_info(0)["complete"]


def test_a_way_of_the_models_own_configuration_is_refused(model, forwards, tmp_path):
    model.generation_config.penalty_alpha = 0.6
    model.generation_config.top_k = 4
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(UnsupportedGenerationError, match="contrastive"):
            model.generate(**PLAIN)
        assert forwards == []
        model.generate(**PLAIN, penalty_alpha=None, top_k=None)
        assert session.runs == (0,)


def test_generate_batch_is_refused(model, forwards, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        with pytest.raises(UnsupportedGenerationError, match="generate_batch"):
            model.generate_batch([IDS[0].tolist()])
        assert forwards == []
        model(IDS)


def test_a_generate_inside_a_generate_is_refused(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with pytest.raises(UnsupportedGenerationError, match="inside a generate"):
            model.generate(**PLAIN, logits_processor=[Nested(model)])
        assert torch.equal(model.generate(**PLAIN)[:, :7], IDS)
        assert session.runs == (0, 1)
    with open_dump(tmp_path) as reader:
        assert [reader.run_info(run)["complete"] for run in (0, 1)] == [False, True]


def test_a_refused_way_works_while_the_session_pauses(model, tmp_path):
    call = PLAIN | {"custom_generate": lambda model, input_ids, **_: input_ids + 1}
    want = model.generate(**call)
    with register_hook(model, DumpConfig(tmp_path)) as session:
        with session.pause():
            got = model.generate(**call)
        model(IDS)
    assert torch.equal(got, want)


def test_the_message_says_what_to_use_instead(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        with pytest.raises(
            UnsupportedGenerationError, match="Use greedy search, sampling or beams"
        ):
            model.generate(**PLAIN, cache_implementation="paged")
        model(IDS)


def test_a_compiled_model_is_refused(model, tmp_path):
    model.compile(backend="eager")
    with pytest.raises(CompiledModelError, match="The model"):
        register_hook(model, DumpConfig(tmp_path))


def test_a_compiled_layer_is_refused_by_its_name(model, tmp_path):
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(CompiledModelError, match=r"model\.layers\.1"):
        register_hook(model, DumpConfig(tmp_path))


def test_an_optimized_module_is_refused(model, tmp_path):
    with pytest.raises(CompiledModelError, match="OptimizedModule"):
        register_hook(torch.compile(model, backend="eager"), DumpConfig(tmp_path))


def test_an_optimized_layer_is_refused(model, tmp_path):
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with pytest.raises(CompiledModelError, match=r"model\.layers\.0"):
        register_hook(model, DumpConfig(tmp_path))


def test_a_compiled_forward_is_refused(model, tmp_path):
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(CompiledModelError):
        register_hook(model, DumpConfig(tmp_path))


def test_a_refused_model_is_left_as_it_was(model, tmp_path):
    before = set(model.__dict__)
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(CompiledModelError):
        register_hook(model, DumpConfig(tmp_path))
    assert set(model.__dict__) == before
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["generate", "forward"])
def test_a_layer_compiled_after_arming_is_refused(model, tmp_path, how):
    session = register_hook(model, DumpConfig(tmp_path))
    model.model.layers[0].compile(backend="eager")
    run = functools.partial(model.generate, **PLAIN) if how == "generate" else lambda: model(IDS)
    with pytest.raises(CompiledModelError):
        run()
    assert session.runs == ()


def test_generate_does_not_compile_the_model_by_itself(model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "get_compiled_call", lambda *_: pytest.fail("compiled"))
    config = GenerationConfig(max_new_tokens=2)
    with register_hook(model, DumpConfig(tmp_path)):
        model.generate(IDS, generation_config=config)
    assert not config.disable_compile
