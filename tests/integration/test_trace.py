"""The trace of a generation: what went in, what there was to choose, what was chosen, and why.

What is expected comes from hooks and arguments of the test's own.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_dumper import DumpConfig, KeyNotFoundError, open_dump, register_hook
from hf_dumper.capture import trace as capture_trace
from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from tests.commands import run_tiny

PROMPT, NEW = 7, 4
IDS = torch.randint(5, 128, (2, PROMPT), generator=torch.Generator().manual_seed(0))
FULL = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * PROMPT])
PLAIN = {"input_ids": IDS, "attention_mask": FULL, "max_new_tokens": NEW, "do_sample": False}


class Spy:
    """Keeps what each forward of the model was given and returned, by hooks of its own."""

    def __init__(self, model):
        self.given, self.logits = [], []
        self.handles = [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after),
        ]

    def before(self, _module, args, kwargs):
        cache = kwargs.get("past_key_values")
        length = None if cache is None else int(cache.get_seq_length())
        tensors = {n: v.clone() for n, v in kwargs.items() if isinstance(v, torch.Tensor)}
        self.given.append({**tensors, "cache": cache and type(cache).__name__, "length": length})

    def after(self, _module, _args, output):
        self.logits.append(output.logits.clone())

    def leave(self):
        for handle in self.handles:
            handle.remove()


def traced(model, path, tokens="all", **options):
    """Generate plain under a spy, then dumped; return (spy, plain ids, trace rows, run info)."""
    options = PLAIN | options
    spy = Spy(model)
    torch.manual_seed(5)
    plain = model.generate(**copy.deepcopy(options))
    spy.leave()
    with register_hook(model, DumpConfig(path, tokens)):
        torch.manual_seed(5)
        dumped = model.generate(**copy.deepcopy(options))
    assert torch.equal(plain, dumped)
    with open_dump(path) as reader:
        return spy, plain, reader.trace().to_pylist(), reader.run_info()


def of(rows, token):
    return [row for row in rows if row["token"] == token]


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.mark.parametrize("tokens", ["all", [0], [2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_has_its_choice_whatever_is_dumped(tiny_llama, tmp_path, tokens, dtype):
    spy, plain, rows, _ = traced(tiny_llama().to(dtype), tmp_path, tokens, do_sample=True)
    assert [(r["token"], r["row"]) for r in rows] == [(t, r) for t in range(NEW) for r in (0, 1)]
    for token, logits in enumerate(spy.logits):
        last = logits[:, -1].to(torch.float64)
        share = last.softmax(-1)
        for row, found in enumerate(of(rows, token)):
            chosen = plain[row, PROMPT + token].item()
            assert found["chosen_id"] == chosen
            assert found["chosen_probability"] == pytest.approx(share[row, chosen].item(), rel=1e-5)
            assert found["chosen_rank"] == 1 + (last[row] > last[row, chosen]).sum().item()
            best = last[row].topk(5).values
            assert last[row, found["top_ids"]].tolist() == best.tolist()
            assert found["top_probabilities"] == pytest.approx(
                share[row].topk(5).values.tolist(), rel=1e-5
            )
            assert found["margin"] == (best[0] - best[1]).item()
            assert found["logits_shape"] == list(logits.shape)


@pytest.mark.parametrize("mask", [FULL, LEFT])
def test_what_went_in_is_what_the_model_was_given(model, tmp_path, mask):
    spy, _, rows, _ = traced(model, tmp_path, attention_mask=mask)
    for token, given in enumerate(spy.given):
        for row, found in enumerate(of(rows, token)):
            cols = given["input_ids"].shape[1]
            places = given["position_ids"].expand(2, -1)
            assert found["input_ids"] == given["input_ids"][row].tolist()
            assert found["position_ids"] == places[row].tolist()
            assert found["cache"] == given["cache"] == "DynamicCache"
            assert found["cache_length"] == given["length"]
            assert found["use_cache"] is True
            if "attention_mask" in given:
                assert found["mask"] == given["attention_mask"][row, -cols:].tolist()
            else:
                assert found["mask"] is None
    first, second = of(rows, 0)
    want = [-1, -1, -1, 0, 1, 2, 3] if mask is LEFT else [0, 1, 2, 3, 4, 5, 6]
    assert first["positions"] == want
    assert second["positions"] == [0, 1, 2, 3, 4, 5, 6]
    assert [r["positions"] for r in of(rows, 1)] == [[want[-1] + 1], [7]]


def test_chunks_of_a_prompt_are_one_token(model, tmp_path):
    _, _, rows, _ = traced(model, tmp_path, prefill_chunk_size=3)
    assert [r["forward"] for r in rows if not r["row"]] == [2, 3, 4, 5]
    assert [r["input_ids"] for r in of(rows, 0)] == IDS.tolist()
    assert [r["cache_length"] for r in rows if not r["row"]] == [0, 7, 8, 9]


def test_a_generation_without_cache_takes_in_all_columns_again(model, tmp_path):
    _, plain, rows, _ = traced(model, tmp_path, use_cache=False)
    for token in range(NEW):
        assert [r["input_ids"] for r in of(rows, token)] == plain[:, : PROMPT + token].tolist()
        assert {r["cache"] for r in of(rows, token)} == {None}
        assert {r["use_cache"] for r in of(rows, token)} == {False}


def test_embeddings_have_no_ids(model, tmp_path):
    embeds = model.get_input_embeddings()(IDS).detach()
    _, plain, rows, _ = traced(model, tmp_path, input_ids=None, inputs_embeds=embeds)
    assert [r["input_ids"] for r in of(rows, 0)] == [None, None]
    assert [r["input_ids"] for r in of(rows, 1)] == plain[:, :1].tolist()
    assert [len(r["positions"]) for r in of(rows, 0)] == [PROMPT, PROMPT]


class Forbid(LogitsProcessor):
    """Forbids what the model likes best."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, scores.argmax(1, keepdim=True), -math.inf)


def test_probabilities_are_the_models_and_the_choice_is_that_of_the_scores(model, tmp_path):
    spy, plain, rows, _ = traced(model, tmp_path, logits_processor=[Forbid()])
    for token, logits in enumerate(spy.logits):
        for row, found in enumerate(of(rows, token)):
            assert found["top_ids"][0] == logits[row, -1].argmax().item()
            assert found["chosen_id"] == plain[row, PROMPT + token].item()
            assert found["chosen_id"] == found["top_ids"][1]
            assert found["chosen_rank"] == 2


def test_an_encoder_decoder_has_the_ids_of_its_decoder(tmp_path):
    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=128, decoder_start_token_id=0, eos_token_id=None, **sizes)
    ).eval()
    _, plain, rows, info = traced(model, tmp_path, attention_mask=LEFT.flip(1))
    for token in range(NEW):
        assert [r["input_ids"] for r in of(rows, token)] == plain[:, token : token + 1].tolist()
    assert info["length"]["max_new_tokens"] == NEW


def test_a_row_that_ended_is_padding(model, tmp_path):
    first, second = model.generate(**PLAIN)[:, PROMPT:].tolist()
    end = first[1]
    assert end not in [*second, first[0]]
    _, _, rows, info = traced(model, tmp_path, eos_token_id=end, pad_token_id=0)
    assert [r["positions"] for r in rows if not r["row"]][1:] == [[7], [-1], [-1]]
    assert info["ended"] == [
        {"token": 1, "reason": "end of sequence", "id": end},
        {"token": NEW - 1, "reason": "length"},
    ]


class StopAt(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        over = input_ids.shape[1] >= self.length
        return torch.full((len(input_ids),), over, dtype=torch.bool)


def test_a_stopping_criterion_is_named(model, tmp_path):
    *_, info = traced(model, tmp_path, stopping_criteria=[StopAt(PROMPT + 2)])
    assert info["ended"] == [{"token": 1, "reason": "StopAt"}] * 2


def test_a_criterion_that_may_have_stopped_at_the_length_is_not_ruled_out(model, tmp_path):
    *_, info = traced(model, tmp_path, stopping_criteria=[StopAt(PROMPT + NEW)])
    assert info["ended"] == [{"token": NEW - 1, "reason": "length or StopAt"}] * 2


LIMITS = {
    "tokens": ({"max_new_tokens": 3}, {}, "max_new_tokens", 3, "an argument of generate()", 3),
    "length": ({"max_length": 9}, {}, "max_length", 9, "an argument of generate()", 2),
    "both": (
        {"max_length": 9, "max_new_tokens": 3},
        {},
        *("max_new_tokens", 3, "an argument of generate()", 3),
    ),
    "configuration": (
        {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=False)},
        {},
        *("max_new_tokens", 3, "the generation_config given to generate()", 3),
    ),
    "model": ({}, {"max_new_tokens": 3}, "max_new_tokens", 3, "the model's generation config", 3),
    "model's length": (
        {},
        {"max_length": 10},
        *("max_length", 10, "the model's generation config", 3),
    ),
    "default": ({}, {}, "max_length", 20, "the default of transformers", 20),
}


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("name", LIMITS)
def test_the_run_says_where_the_longest_length_comes_from(model, tmp_path, name):
    options, own, limit, value, set_by, tokens = LIMITS[name]
    for key, setting in own.items():
        setattr(model.generation_config, key, setting)
    with register_hook(model, DumpConfig(tmp_path)):
        ids = model.generate(IDS, attention_mask=FULL, **options)
    assert ids.shape[1] == PROMPT + tokens
    with open_dump(tmp_path) as reader:
        assert reader.run_info()["length"] == {
            "name": limit,
            "value": value,
            "set_by": set_by,
            "prompt_length": PROMPT,
            "max_new_tokens": tokens,
        }


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_default_is_bounded_by_the_positions_of_the_model(tiny_llama, tmp_path):
    model = tiny_llama(max_position_embeddings=PROMPT + 5)
    with register_hook(model, DumpConfig(tmp_path)):
        assert model.generate(IDS, attention_mask=FULL).shape[1] == PROMPT + 5
    with open_dump(tmp_path) as reader:
        assert reader.run_info()["length"]["max_new_tokens"] == 5


class Breaks(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == PROMPT + 2:
            raise ValueError("broken")
        return scores


@pytest.mark.filterwarnings("ignore::hf_dumper.DumpWarning")
def test_a_generation_that_raised_keeps_what_was_chosen(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, "all")), pytest.raises(ValueError, match="bro"):
        model.generate(**PLAIN, logits_processor=[Breaks()])
    with open_dump(tmp_path) as reader:
        assert [r["token"] for r in reader.trace().to_pylist()] == [0, 0, 1, 1]
        assert reader.run_info()["length"]["value"] == NEW
        assert "ended" not in reader.run_info()


def test_a_mistake_of_ours_makes_the_run_incomplete_and_nothing_else(model, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("unranked")

    want = model.generate(**PLAIN)
    monkeypatch.setattr(capture_trace, "rank_candidates", fail)
    with (
        register_hook(model, DumpConfig(tmp_path, "all")),
        pytest.warns(UserWarning, match="unranked"),
    ):
        assert torch.equal(model.generate(**PLAIN), want)
    with open_dump(tmp_path) as reader:
        assert not reader.run_info()["complete"]
        assert len(reader.index()) > NEW


def test_a_bare_forward_has_no_trace(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        model(IDS)
    with open_dump(tmp_path) as reader, pytest.raises(KeyNotFoundError, match="no trace"):
        reader.trace()


def test_each_run_has_its_own_trace(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path)):
        model.generate(**PLAIN)
        model.generate(**PLAIN | {"max_new_tokens": 2})
    with open_dump(tmp_path) as reader:
        assert [len(reader.trace(run)) for run in (0, 1)] == [2 * NEW, 2 * 2]


def test_many_tokens_outside_of_the_selection_are_ranked_on_the_way(model, tmp_path, monkeypatch):
    waiting = []
    rank = capture_trace.TraceRecorder.rank

    def count(recorder):
        waiting.append(len(recorder._waiting))
        rank(recorder)

    monkeypatch.setattr(capture_trace.TraceRecorder, "rank", count)
    _, _, rows, _ = traced(model, tmp_path, [0], max_new_tokens=40)
    assert len(rows) == 80
    assert all(r["top_ids"] for r in rows)
    assert max(waiting) == capture_trace._MOST + 1


def test_large_logits_do_not_pile_up(model, tmp_path, monkeypatch):
    monkeypatch.setattr(capture_trace, "_MOST_BYTES", 2 * 128 * 4)
    waiting, rank = [], capture_trace.TraceRecorder.rank

    def count(recorder):
        waiting.append(len(recorder._waiting))
        rank(recorder)

    monkeypatch.setattr(capture_trace.TraceRecorder, "rank", count)
    _, _, rows, _ = traced(model, tmp_path, [0], max_new_tokens=10)
    assert max(waiting) == 2  # one is allowed to wait
    assert np.isfinite([r["margin"] for r in rows]).all()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_walks_through_a_generation(place, cli):
    assert cli(*run_tiny())[0] == DONE
    status, out, err = cli("trace", "d")
    assert (status, err) == (DONE, "")
    lines = out.splitlines()
    assert lines[0] == "Run 0: 2 tokens"
    assert 'prompt  "one"' in out
    assert "limit  max_new_tokens=2, an argument of generate()" in out
    assert sum(line.startswith("token ") for line in lines) == 2
    assert sum("top 5: " in line for line in lines) == 2
    assert "3 columns in, DynamicCache holding 0, use_cache=True, logits (1, 1, 128)" in out
    codes = " ".join(str(ord(c)) for c in "one")
    assert f'    in  ids {codes} "o" "n" "e", position_ids 0 1 2, no mask' in lines
    assert "config  do_sample=False" in out
    assert lines[-1] == "ended  after token 1: length"


@pytest.mark.parametrize("layout", ["native", "msit"])
def test_the_command_gives_json(place, cli, layout):
    assert cli(*run_tiny("--layout", layout))[0] == DONE
    status, out, _ = cli("trace", "d", "--json")
    facts = json.loads(out)
    assert status == DONE
    assert facts["ended"] == [{"token": 1, "reason": "length"}]
    assert facts["length"]["value"] == 2
    assert [row["token"] for row in facts["tokens"]] == [0, 1]
    assert all(len(row["top_texts"]) == 5 for row in facts["tokens"])
    assert facts["tokens"][0]["input_ids"] == [ord(c) for c in "one"]
    assert facts["tokens"][0]["chosen_text"] == chr(facts["tokens"][0]["chosen_id"])


def test_the_command_shows_ids_without_a_tokenizer_and_every_row(model, tmp_path, cli):
    traced(model, tmp_path)
    status, out, _ = cli("trace", tmp_path, "--run", 0)
    assert status == DONE
    assert "Run 0: 4 tokens in 2 rows" in out
    assert out.count("row 1  ") == NEW
    assert "ended 1  after token 3: length" in out


def test_the_command_shows_mask_and_positions_of_every_row(model, tmp_path, cli):
    traced(model, tmp_path, attention_mask=LEFT, do_sample=True, temperature=0.5)
    _, out, _ = cli("trace", tmp_path)
    ids = " ".join(map(str, IDS[0].tolist()))
    assert f"    in 0  ids {ids}, position_ids " in out
    assert ", mask 0 0 0 1 1 1 1\n" in out
    assert ", mask 1 1 1 1 1 1 1\n" in out
    assert "do_sample=True" in out
    assert "temperature=0.5" in out


def test_the_command_says_that_embeddings_went_in_and_cuts_what_is_long(model, tmp_path, cli):
    ids = torch.arange(30)[None] + 5
    embeds = model.get_input_embeddings()(ids).detach()
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 2}
    with register_hook(model, DumpConfig(tmp_path)):
        model.generate(inputs_embeds=embeds, do_sample=False, **given)
        model.generate(ids, do_sample=False, **given)
    assert "    in  embeddings, position_ids … 22 23" in cli("trace", tmp_path)[1]
    assert "    in  ids … 27 28 29" in cli("trace", tmp_path, "--run", 1)[1]


@pytest.mark.filterwarnings("ignore::hf_dumper.DumpWarning")
def test_the_command_says_that_a_run_is_incomplete(model, tmp_path, cli):
    with register_hook(model, DumpConfig(tmp_path)), pytest.raises(ValueError, match="bro"):
        model.generate(**PLAIN, logits_processor=[Breaks()])
    status, out, _ = cli("trace", tmp_path)
    assert status == FAILED
    assert "INCOMPLETE: ValueError: broken" in out


def test_the_command_refuses_what_has_no_trace(model, tmp_path, cli):
    with register_hook(model, DumpConfig(tmp_path)):
        model(IDS)
    status, _, err = cli("trace", tmp_path)
    assert status == IMPOSSIBLE
    assert "no trace" in err
