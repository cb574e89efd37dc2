"""dump_last_logits: the model's own last logits, the scores after its processors, the token."""

import pytest
import torch
from transformers import LogitsProcessor

from hf_dumper import DumpConfig, open_dump, register_hook

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
OPTIONS = {"attention_mask": LEFT, "max_new_tokens": 3, "do_sample": False}


def plain(model, **options):
    """Return tokens, the logits of each forward in the model's dtype, and what a processor sees."""
    logits, scores = [], []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, given):
            scores.append(given.clone())
            return given

    handle = model.register_forward_hook(lambda _m, _i, out: logits.append(out.logits.clone()))
    tokens = model.generate(IDS, **OPTIONS | options, logits_processor=[Spy()])
    handle.remove()
    return tokens, logits, scores


def dump(model, path, **options):
    with register_hook(model, DumpConfig(path, "all", dump_last_logits=True)):
        model.generate(IDS, **OPTIONS | options)
    return open_dump(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_logits_are_those_of_the_model_in_its_dtype(tiny_llama, tmp_path, dtype):
    model = tiny_llama().to(dtype)
    _, logits, _ = plain(model)
    with dump(model, tmp_path) as reader:
        for token, want in enumerate(logits):
            got = reader.load("root", "logits", token)
            assert got.dtype is dtype
            assert torch.equal(got, want[:, -1])


def test_the_scores_are_those_after_the_processors_of_the_model(tiny_llama, tmp_path):
    model = tiny_llama()
    _, logits, scores = plain(model, repetition_penalty=1.5)
    with dump(model, tmp_path, repetition_penalty=1.5) as reader:
        for token, want in enumerate(scores):
            assert torch.equal(reader.load("root", "scores", token), want)
        assert not torch.equal(scores[0], logits[0][:, -1])


def test_the_token_is_the_chosen_one(tiny_llama, tmp_path):
    model = tiny_llama()
    tokens, _, _ = plain(model)
    with dump(model, tmp_path) as reader:
        got = [reader.load("root", "token_ids", token) for token in range(3)]
    assert torch.equal(torch.stack(got, dim=1), tokens[:, 7:])


def test_nothing_else_is_dumped(tiny_llama, tmp_path):
    with dump(tiny_llama(), tmp_path) as reader:
        found = [(k.module, k.slot, k.forward) for k in reader.keys(run=0)]
    slots = ("logits", "scores", "token_ids")
    assert sorted(found) == sorted(("root", slot, t) for slot in slots for t in range(3))


def test_a_chunked_prefill_gives_one_record_per_token(tiny_llama, tmp_path):
    model = tiny_llama()
    _, logits, _ = plain(model, prefill_chunk_size=3)
    with dump(model, tmp_path, prefill_chunk_size=3) as reader:
        rows = [r for r in reader.index(0).to_pylist() if r["slot"] == "logits"]
        assert [row["token"] for row in rows] == [0, 1, 2]
        assert torch.equal(reader.load("root", "logits", 0), logits[2][:, -1])


def test_a_generation_without_cache_gives_the_last_column(tiny_llama, tmp_path):
    model = tiny_llama()
    _, logits, _ = plain(model, use_cache=False)
    with dump(model, tmp_path, use_cache=False) as reader:
        for token, want in enumerate(logits):
            assert torch.equal(reader.load("root", "logits", token), want[:, -1])


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_bare_forward_gives_the_last_unmasked_column(tiny_llama, tmp_path, side):
    mask = {
        "left": LEFT,
        "right": LEFT.flip(1),
        "both": torch.tensor([[0, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]),
    }[side]
    model = tiny_llama()
    want = model(IDS, attention_mask=mask).logits
    last = [max(i for i, real in enumerate(row) if real) for row in mask.tolist()]
    with register_hook(model, DumpConfig(tmp_path, dump_last_logits=True)):
        model(IDS, attention_mask=mask)
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root", "logits"), want[[0, 1], last])


def test_only_the_selected_tokens_are_dumped(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path, [0, 2], dump_last_logits=True)):
        model.generate(IDS, **OPTIONS)
    with open_dump(tmp_path) as reader:
        assert {row["token"] for row in reader.index(0).to_pylist()} == {0, 2}


def test_logits_returned_in_a_tuple_are_found(tiny_llama, tmp_path):
    model = tiny_llama()
    want = model(IDS, labels=IDS, return_dict=False)[1]
    with register_hook(model, DumpConfig(tmp_path, dump_last_logits=True)):
        model(IDS, labels=IDS, return_dict=False)
    with open_dump(tmp_path) as reader:
        assert torch.equal(reader.load("root", "logits"), want[:, -1])
