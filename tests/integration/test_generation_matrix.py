"""Every way of generating: the plain model's tokens and logits, and the right token and positions.

What is expected is worked out from the call alone: which columns each forward takes in, and which
of them are real.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_dumper import (
    DumpConfig,
    FollowTokens,
    open_dump,
    register_hook,
)

PROMPT, NEW = 7, 4
IDS = torch.randint(5, 128, (2, PROMPT), generator=torch.Generator().manual_seed(0))
FULL = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * PROMPT])
OUTPUTS = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": NEW}


def steps(prefill):
    """Return (token, first column, end) per forward of a generation with a cache."""
    return prefill + [(t, PROMPT + t - 1, PROMPT + t) for t in range(1, NEW)]


ONE_PREFILL = steps([(0, 0, PROMPT)])
CHUNKED = steps([(0, 0, 3), (0, 3, 6), (0, 6, 7)])
CONTINUED = steps([(0, 5, PROMPT)])
NO_CACHE = [(t, 0, PROMPT + t) for t in range(NEW)]


class Case(NamedTuple):
    options: dict
    forwards: list
    mask: torch.Tensor = FULL
    rows_per_prompt: int = 1


CASES = {
    "greedy": Case({"do_sample": False}, ONE_PREFILL),
    "sampling": Case({"do_sample": True, "temperature": 0.8, "top_k": 20}, ONE_PREFILL),
    "left padding": Case({"do_sample": False}, ONE_PREFILL, LEFT),
    "left padding, sampled": Case({"do_sample": True}, ONE_PREFILL, LEFT),
    "several sequences": Case(
        {"do_sample": True, "num_return_sequences": 3}, ONE_PREFILL, LEFT, rows_per_prompt=3
    ),
    "chunked prefill": Case({"do_sample": False, "prefill_chunk_size": 3}, CHUNKED),
    "chunked prefill, padded": Case({"do_sample": False, "prefill_chunk_size": 3}, CHUNKED, LEFT),
    "no cache": Case({"do_sample": False, "use_cache": False}, NO_CACHE),
    "no cache, padded": Case({"do_sample": False, "use_cache": False}, NO_CACHE, LEFT),
    "configuration object": Case(
        {"generation_config": GenerationConfig(do_sample=False, pad_token_id=0)}, ONE_PREFILL
    ),
    "repetition penalty": Case({"do_sample": False, "repetition_penalty": 1.3}, ONE_PREFILL),
}


def expected_positions(mask, forwards, ends=None):
    """Return {(forward, row, column): position}; `ends` is the column at which a row is padding."""
    columns = torch.cat([mask, torch.ones(len(mask), NEW, dtype=mask.dtype)], dim=1)
    for row, end in (ends or {}).items():
        columns[row, end:] = 0
    table = {}
    for f, (_, start, stop) in enumerate(forwards):
        for row, real in enumerate(columns.tolist()):
            for column in range(start, stop):
                before = sum(real[:column])
                table[f, row, column - start] = before if real[column] else -1
    return table


def recorded_positions(reader, run):
    table = reader.positions(run).to_pydict()
    keys = zip(table["forward"], table["row"], table["column"], strict=True)
    return dict(zip(keys, table["position"], strict=True))


def recorded_tokens(reader, run):
    """Return {forward: the tokens that its records claim}."""
    table = reader.index(run).to_pydict()
    found = {}
    for forward, token in zip(table["forward"], table["token"], strict=True):
        found.setdefault(forward, set()).add(token)
    return found


def check(reader, run, result, forwards, *, prompt, positions):
    new = result.sequences[:, prompt:]
    assert recorded_tokens(reader, run) == {f: {t} for f, (t, _, _) in enumerate(forwards)}
    assert recorded_positions(reader, run) == positions
    for token in range(new.shape[1]):
        assert torch.equal(reader.load("root", "token_ids", token, run=run), new[:, token])
        logits = reader.load("root", "output.logits", token, run=run)[:, -1]
        assert torch.equal(logits, result.logits[token])
    assert reader.run_info(run)["complete"]
    assert reader.run_info(run)["generated_ids"] == new.tolist()


def same(plain, dumped):
    assert torch.equal(plain.sequences, dumped.sequences)
    assert len(plain.logits) == len(dumped.logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, dumped.logits, strict=True))


def generate(model, seed=5, **options):
    torch.manual_seed(seed)
    return model.generate(**{"input_ids": IDS, "attention_mask": FULL} | OUTPUTS | options)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


@pytest.mark.parametrize("name", CASES)
def test_a_generation_is_followed(model, tmp_path, name):
    case = CASES[name]
    options = {"attention_mask": case.mask} | case.options
    plain = generate(model, **options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, **options)
    same(plain, dumped)
    mask = case.mask.repeat_interleave(case.rows_per_prompt, dim=0)
    with open_dump(tmp_path) as reader:
        positions = expected_positions(mask, case.forwards)
        check(reader, 0, dumped, case.forwards, prompt=PROMPT, positions=positions)


@pytest.mark.parametrize("cache", [True, False])
def test_a_row_that_ends_early_is_padding_from_its_end_token_on(model, tmp_path, cache):
    first, second = generate(model, do_sample=True).sequences[:, PROMPT:].tolist()
    end = first[1]
    assert end != first[0]
    assert end not in second
    options = {"do_sample": True, "eos_token_id": end, "pad_token_id": 0, "use_cache": cache}
    plain = generate(model, **options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, **options)
    same(plain, dumped)
    assert dumped.sequences[0, PROMPT + 2 :].tolist() == [0, 0]
    forwards = ONE_PREFILL if cache else NO_CACHE
    positions = expected_positions(FULL, forwards, ends={0: PROMPT + 1})
    with open_dump(tmp_path) as reader:
        check(reader, 0, dumped, forwards, prompt=PROMPT, positions=positions)


def test_embeddings_are_a_prompt_without_ids(model, tmp_path):
    embeds = model.get_input_embeddings()(IDS).detach()
    options = {"input_ids": None, "inputs_embeds": embeds, "attention_mask": LEFT}
    plain = generate(model, **options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, **options)
    same(plain, dumped)
    with open_dump(tmp_path) as reader:
        positions = expected_positions(LEFT, ONE_PREFILL)
        check(reader, 0, dumped, ONE_PREFILL, prompt=0, positions=positions)


def test_a_cache_from_before_counts(model, tmp_path):
    with torch.no_grad():
        cache = model(IDS[:, :5], attention_mask=LEFT[:, :5], use_cache=True).past_key_values
    options = {"attention_mask": LEFT, "do_sample": False}
    plain = generate(model, past_key_values=copy.deepcopy(cache), **options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, past_key_values=copy.deepcopy(cache), **options)
    same(plain, dumped)
    with open_dump(tmp_path) as reader:
        positions = expected_positions(LEFT, CONTINUED)
        check(reader, 0, dumped, CONTINUED, prompt=PROMPT, positions=positions)


@pytest.mark.parametrize("passed", ["none", "processor", "criteria", "both", "plain lists"])
def test_the_callbacks_may_be_passed_or_left_out(model, tmp_path, passed):
    plain = generate(model)
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        half = {
            "none": {},
            "processor": {"logits_processor": session.logits_processor},
            "criteria": {"stopping_criteria": session.stopping_criteria},
        }
        half["both"] = half["processor"] | half["criteria"]
        half["plain lists"] = {name: list(given) for name, given in half["both"].items()}
        dumped = generate(model, **half[passed])
    same(plain, dumped)
    with open_dump(tmp_path) as reader:
        positions = expected_positions(FULL, ONE_PREFILL)
        check(reader, 0, dumped, ONE_PREFILL, prompt=PROMPT, positions=positions)


def test_consecutive_generations_are_runs_that_start_at_token_0(model, tmp_path):
    with register_hook(model, DumpConfig(tmp_path, "all")) as session:
        results = [generate(model), generate(model, attention_mask=LEFT)]
        model(IDS)
        results.append(generate(model))
        assert session.runs == (0, 1, 2, 3)
    with open_dump(tmp_path) as reader:
        for run, result, mask in zip((0, 1, 3), results, (FULL, LEFT, FULL), strict=True):
            positions = expected_positions(mask, ONE_PREFILL)
            check(reader, run, result, ONE_PREFILL, prompt=PROMPT, positions=positions)
        assert recorded_tokens(reader, 2) == {0: {0}}


def test_a_bare_forward_has_the_positions_of_its_mask(model, tmp_path):
    right = LEFT.flip(1)
    want = model(IDS, attention_mask=right).logits
    with register_hook(model, DumpConfig(tmp_path, [3])):
        got = model(IDS, attention_mask=right).logits
    assert torch.equal(want, got)
    with open_dump(tmp_path) as reader:
        assert recorded_positions(reader, 0) == expected_positions(right, [(0, 0, PROMPT)])
        assert torch.equal(reader.load("root", "output.logits"), want)


def test_following_tokens_leads_the_model_and_records_its_own_logits(model, tmp_path):
    golden = torch.randint(5, 128, (2, NEW), generator=torch.Generator().manual_seed(3))
    plain = generate(model, logits_processor=[FollowTokens(golden)])
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, logits_processor=[FollowTokens(golden)])
    same(plain, dumped)
    assert torch.equal(dumped.sequences[:, PROMPT:], golden)
    with open_dump(tmp_path) as reader:
        positions = expected_positions(FULL, ONE_PREFILL)
        check(reader, 0, dumped, ONE_PREFILL, prompt=PROMPT, positions=positions)


@pytest.mark.parametrize("sample", [False, True])
def test_an_encoder_and_its_decoder_are_followed(tmp_path, sample):
    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=128, decoder_start_token_id=0, eos_token_id=None, **sizes)
    ).eval()
    options = {"attention_mask": LEFT.flip(1), "do_sample": sample}
    plain = generate(model, **options)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = generate(model, **options)
    same(plain, dumped)
    forwards = [(t, t, t + 1) for t in range(NEW)]
    positions = {(t, row, 0): t for t in range(NEW) for row in range(2)}
    with open_dump(tmp_path) as reader:
        check(reader, 0, dumped, forwards, prompt=1, positions=positions)
        assert {k.forward for k in reader.keys(module="encoder")} == {0}


def small_bert():
    return BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )


def test_a_bare_encoder_is_dumped(tmp_path):
    model = BertModel(small_bert()).eval()
    right = LEFT.flip(1)
    want = model(IDS, attention_mask=right)
    with register_hook(model, DumpConfig(tmp_path)):
        got = model(IDS, attention_mask=right)
    assert torch.equal(want.last_hidden_state, got.last_hidden_state)
    with open_dump(tmp_path) as reader:
        assert recorded_positions(reader, 0) == expected_positions(right, [(0, 0, PROMPT)])
        assert torch.equal(reader.load("pooler"), want.pooler_output)


def test_a_plain_module_is_dumped(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x = torch.randn(5, 3)
    with register_hook(model, DumpConfig(tmp_path)):
        want = model(x)
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root"), want)
        assert recorded_positions(reader, 0) == {}


def test_a_state_space_model_has_its_tokens_and_positions(tmp_path):
    config = MambaConfig(
        vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, intermediate_size=64
    )
    model, ids = MambaForCausalLM(config).eval(), torch.arange(1, 6)[None]
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    with register_hook(model, DumpConfig(tmp_path / "dump", "all")):
        assert torch.equal(model.generate(ids, **options), plain)
    with open_dump(tmp_path / "dump") as dump:
        assert dump.run_info()["complete"]
        positions = dump.positions().to_pydict()
    assert positions["position"] == [0, 1, 2, 3, 4, 5, 6]
    assert positions["forward"] == [0] * 5 + [1, 2]
