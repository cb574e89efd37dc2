"""A candidate that follows a golden dump generates its tokens, whatever it would say itself."""

import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from hf_dumper.config import DumpConfig
from hf_dumper.errors import PromptError
from hf_dumper.model import DEMO_MODEL, DumpingModel, register_hook
from hf_dumper.runner import dump_golden
from hf_dumper.store import open_dump

IDS = torch.tensor([[5, 6, 7], [0, 8, 9]])
MASK = torch.tensor([[1, 1, 1], [0, 1, 1]])


class Codes:
    """A tokenizer whose ids are the codes of characters."""

    def decode(self, ids):
        return "".join(map(chr, ids.tolist()))

    def batch_decode(self, rows):
        return ["".join(map(chr, row)) for row in rows]

    def save_pretrained(self, save_directory):
        pass


@pytest.fixture
def follow(tiny_llama, tmp_path):
    """Return a function: work of a golden model, then another model follows; both dumps."""

    def make(work, *, seed=1, golden_options=None, **options):
        model = tiny_llama(**golden_options or {})
        with register_hook(model, DumpConfig(tmp_path / "golden", "all", dump_last_logits=True)):
            work(model)
        golden = open_dump(tmp_path / "golden")
        model = tiny_llama(seed=seed, **options)
        config = DumpConfig(tmp_path / "candidate", "all", dump_last_logits=True)
        with register_hook(model, config):
            dump_golden(model, Codes(), golden)
        return golden, open_dump(tmp_path / "candidate")

    return make


def generate(model, ids=IDS, mask=MASK, **options):
    model.generate(ids, attention_mask=mask, **{"max_new_tokens": 5, **options})


def ids_of(dump, run=0):
    return dump.run_info(run)["generated_ids"]


def test_another_model_generates_the_golden_tokens_in_every_row(follow):
    golden, candidate = follow(generate)
    assert ids_of(candidate) == ids_of(golden)


def test_the_logits_and_scores_are_those_of_the_model_itself(follow, tiny_llama):
    golden, candidate = follow(generate)
    model = tiny_llama(seed=1)
    made = torch.tensor(ids_of(golden))
    with torch.no_grad():
        full = model(torch.cat([IDS, made], 1), attention_mask=torch.cat([MASK, made >= 0], 1))
    for slot in ("logits", "scores"):
        own = candidate.load("root", slot, 3)
        torch.testing.assert_close(own, full.logits[:, 5], msg=slot)


def test_a_row_that_ended_early_ends_at_the_same_token(follow, tiny_llama):
    free = tiny_llama().generate(IDS, attention_mask=MASK, max_new_tokens=5)[:, 3:].tolist()
    end = free[0][1]
    assert end not in free[1]
    golden, candidate = follow(lambda model: generate(model, eos_token_id=end))
    assert ids_of(golden)[0][2:] == [0, 0, 0]
    assert ids_of(candidate) == ids_of(golden)
    assert candidate.positions(0).equals(golden.positions(0))


def test_an_end_of_the_candidates_own_is_not_obeyed(follow, tiny_llama):
    free = tiny_llama().generate(IDS, attention_mask=MASK, max_new_tokens=5)[:, 3:].tolist()
    golden, candidate = follow(generate, eos_token_id=free[0][1])
    assert ids_of(candidate) == ids_of(golden)


def test_sampled_return_sequences_are_followed(follow):
    torch.manual_seed(0)
    golden, candidate = follow(
        lambda model: generate(model, do_sample=True, temperature=5.0, num_return_sequences=2)
    )
    assert len(ids_of(golden)) == 4
    assert ids_of(candidate) == ids_of(golden)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"prefill_chunk_size": 2}])
def test_the_golden_way_of_computing_is_followed(follow, options):
    golden, candidate = follow(lambda model: generate(model, **options))
    assert ids_of(candidate) == ids_of(golden)
    assert candidate.positions(0).equals(golden.positions(0))


def test_an_encoder_decoder_is_followed(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 4}
        return T5ForConditionalGeneration(
            T5Config(**sizes, num_layers=1, decoder_start_token_id=0, eos_token_id=None)
        ).eval()

    model = make(0)
    with register_hook(model, DumpConfig(tmp_path / "golden")):
        generate(model)
    with open_dump(tmp_path / "golden") as golden:
        model = make(1)
        with register_hook(model, DumpConfig(tmp_path / "candidate")):
            dump_golden(model, Codes(), golden)
        assert ids_of(open_dump(tmp_path / "candidate")) == ids_of(golden)


def test_every_run_is_followed_in_order(follow):
    def work(model):
        generate(model, max_new_tokens=2)
        generate(model, IDS[:1], MASK[:1], max_new_tokens=3)

    golden, candidate = follow(work)
    assert [ids_of(candidate, run) for run in (0, 1)] == [ids_of(golden, run) for run in (0, 1)]


def test_a_bare_forward_is_repeated(follow):
    golden, candidate = follow(lambda model: model(IDS, attention_mask=MASK))
    assert candidate.run_info(0)["kind"] == "forward"
    assert candidate.run_info(0)["prompt"] == golden.run_info(0)["prompt"]


def test_the_run_says_which_golden_run_it_followed(follow):
    golden, candidate = follow(generate)
    assert candidate.run_info(0)["followed"] == {"golden": str(golden.path), "run": 0}
    assert golden.run_info(0)["followed"] is None


def test_padding_stays_where_it_was(follow):
    golden, candidate = follow(generate)
    assert candidate.run_info(0)["prompt"] == golden.run_info(0)["prompt"]
    assert candidate.positions(0).equals(golden.positions(0))


def test_a_smaller_vocabulary_is_told_before_the_model_runs(follow):
    with pytest.raises(PromptError, match=r"token id \d+, and this model knows 10 ids"):
        follow(generate, vocab_size=10)


def test_a_model_without_a_head_cannot_follow_a_generation(tiny_llama, follow, tmp_path):
    golden, _ = follow(generate)
    model = tiny_llama().model
    with (
        pytest.raises(PromptError, match="A LlamaModel cannot generate, but run 0 of"),
        register_hook(model, DumpConfig(tmp_path / "headless")),
    ):
        dump_golden(model, Codes(), golden)


def test_bfloat16_follows_float32(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    inputs = tokenizer("If you modify the Program, you must", return_tensors="pt")
    model = DumpingModel.from_pretrained(
        DEMO_MODEL, dump_config=DumpConfig(tmp_path / "golden"), dtype="float32"
    )
    model.generate(**inputs, max_new_tokens=16)
    model.dump.close()
    golden = open_dump(tmp_path / "golden")
    model = DumpingModel.from_pretrained(
        DEMO_MODEL, dump_config=DumpConfig(tmp_path / "candidate"), dtype="bfloat16"
    )
    (result,) = dump_golden(model, tokenizer, golden)
    model.dump.close()
    candidate = open_dump(tmp_path / "candidate")
    assert ids_of(candidate) == ids_of(golden)
    assert result.text == tokenizer.decode(ids_of(golden)[0])
    assert candidate.load("lm_head").dtype == torch.bfloat16
