"""Runs of a golden dump, and which of them can be followed."""

import pytest
import torch

from hf_dumper.config import DumpConfig
from hf_dumper.errors import DumpWarning, PromptError
from hf_dumper.model import register_hook
from hf_dumper.prompts import golden_runs
from hf_dumper.prompts.golden import golden_run
from hf_dumper.store import open_dump

IDS = torch.tensor([[5, 6, 7], [0, 8, 9]])
MASK = torch.tensor([[1, 1, 1], [0, 1, 1]])


@pytest.fixture
def golden(tiny_llama, tmp_path):
    """Return a function that makes a dump of what another function does with a model."""

    def make(work, **options):
        model = tiny_llama(**options)
        with register_hook(model, DumpConfig(tmp_path / "golden")):
            work(model)
        return open_dump(tmp_path / "golden")

    return make


def generate(model, ids=IDS, mask=MASK, **options):
    model.generate(ids, attention_mask=mask, **{"max_new_tokens": 2, **options})


def test_a_run_has_the_ids_and_the_mask_of_its_prompt(golden):
    (run,) = golden_runs(golden(generate))
    assert torch.equal(run.inputs["input_ids"], IDS)
    assert torch.equal(run.inputs["attention_mask"], MASK)


def test_a_run_has_the_generated_ids_of_every_row(golden):
    dump = golden(generate)
    (run,) = golden_runs(dump)
    assert run.ids is not None
    assert run.ids.tolist() == dump.run_info(0)["generated_ids"]


def test_options_that_shape_the_scores_are_repeated(golden):
    dump = golden(lambda model: generate(model, repetition_penalty=1.5, eos_token_id=3))
    options = golden_run(dump, 0).options
    assert (options["repetition_penalty"], options["eos_token_id"]) == (1.5, 3)


def test_an_end_that_the_golden_did_not_have_is_taken_off(golden):
    assert golden_run(golden(generate), 0).options["eos_token_id"] is None


def test_several_return_sequences_are_asked_for_again(golden):
    dump = golden(lambda model: generate(model, do_sample=True, num_return_sequences=3))
    options = golden_run(dump, 0).options
    assert (options["num_return_sequences"], options["temperature"]) == (3, 1.0)


def test_a_bare_forward_keeps_as_many_logits(golden):
    dump = golden(lambda model: model(IDS, attention_mask=MASK, logits_to_keep=2))
    run = golden_run(dump, 0)
    assert run.ids is None
    assert run.options == {"logits_to_keep": 2}


def test_embeddings_in_place_of_ids_cannot_be_followed(golden):
    def work(model):
        model.generate(inputs_embeds=model.get_input_embeddings()(IDS), max_new_tokens=1)

    dump = golden(work)
    with pytest.raises(PromptError, match=r"Run 0 of .* cannot be followed: it holds no token ids"):
        golden_run(dump, 0)


def test_an_input_that_the_facts_lack_cannot_be_followed(golden):
    dump = golden(lambda model: model(IDS, position_ids=torch.arange(3)[None]))
    with pytest.raises(PromptError, match="the model was given position_ids as well"):
        golden_run(dump, 0)


def fail(model):
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model)


@pytest.mark.filterwarnings("ignore:Run . in .* is incomplete")
def test_an_incomplete_run_cannot_be_followed(golden):
    with pytest.raises(PromptError, match=r"it is incomplete .*ZeroDivisionError"):
        golden_runs(golden(fail))


@pytest.mark.filterwarnings("ignore:Run . in .* is incomplete")
def test_the_others_are_followed_and_the_missing_one_is_told(golden):
    def work(model):
        generate(model)
        fail(model)

    dump = golden(work)
    with pytest.warns(DumpWarning, match="Run 1 of .* cannot be followed"):
        assert [run.run for run in golden_runs(dump)] == [0]
