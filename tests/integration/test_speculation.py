"""Speculative decoding: every way to draft, against what transformers does without hf_dumper.

A spy inside transformers says how many tokens were drafted and how long the ids became; from that
alone follow token, phase, positions and what was rejected. Values are those of one plain forward
over the ids that came out.
"""

import pytest
import torch

from hf_dumper import DumpConfig, open_dump, register_hook
from tests.speculation import Spy, constant, perturb

IDS = torch.randint(5, 128, (1, 7), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
PROMPT, NEW = IDS.shape[1], 24
FULL = torch.ones_like(IDS)
LEFT = torch.cat([torch.zeros(1, 3, dtype=torch.int64), FULL[:, 3:]], dim=1)
OUTPUTS = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": NEW}


def lookup(model, make):
    return {"prompt_lookup_num_tokens": 4}


def assistant(model, make):
    return {"assistant_model": constant(perturb(make(), 0.05))}


def itself(model, make):
    return {"assistant_model": constant(model)}


def early_exit(model, make):
    constant(model)
    return {"assistant_early_exit": 1}


def relative(model, make):
    """Draft with a model that shares modules with the one that verifies."""
    other = constant(perturb(make(), 0.05))
    other.model.embed_tokens = model.model.embed_tokens
    other.model.layers[0] = model.model.layers[0]
    return {"assistant_model": other}


DRAFTERS = {
    "prompt lookup": lookup,
    "assistant": assistant,
    "itself": itself,
    "early exit": early_exit,
    "a relative": relative,
}
NAMES = {"prompt lookup": "prompt lookup", "early exit": "early exit"}
CASES = {
    **{name: (name, {"do_sample": False}) for name in DRAFTERS},
    **{f"{name}, sampled": (name, {"do_sample": True, "top_k": 3}) for name in DRAFTERS},
    **{
        f"{name}, padded": (name, {"do_sample": False, "attention_mask": LEFT}) for name in DRAFTERS
    },
    "with a penalty": ("assistant", {"do_sample": False, "repetition_penalty": 1.2}),
    "lookup with a penalty": ("prompt lookup", {"do_sample": False, "repetition_penalty": 1.05}),
    "a short one": ("assistant", {"do_sample": False, "max_new_tokens": 3}),
    "one token": ("prompt lookup", {"do_sample": False, "max_new_tokens": 1}),
}


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def generate(model, seed=5, **options):
    torch.manual_seed(seed)
    return model.generate(**{"input_ids": IDS, "attention_mask": FULL} | OUTPUTS | options)


def spied(model, options, ids=PROMPT):
    """Generate under a spy, without hf_dumper; return the result and what the spy saw."""
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(model, patch)
        result = generate(model, stopping_criteria=[spy], **options)
    assert spy.iterations[0].before == ids
    assert spy.iterations[-1].after == result.sequences.shape[1]
    return result, spy.iterations


def dumped(model, path, options, tokens="all", **config):
    with register_hook(model, DumpConfig(path, tokens, **config)):
        return generate(model, **options)


def same(plain, dumped):
    assert torch.equal(plain.sequences, dumped.sequences)
    assert len(plain.logits) == len(dumped.logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, dumped.logits, strict=True))


def expected_positions(iterations, mask):
    """Return {(forward, row, column): position} of what a spy saw."""
    pads = int((mask == 0).sum())
    table = {}
    for forward, (before, drafted, after) in enumerate(iterations):
        cached = before - 1 if forward else 0
        for place in range(cached, before + drafted):
            position = max(place - pads, -1)
            # The last id that came out has not gone in yet; what follows was never generated.
            table[forward, 0, place - cached] = position if place < after - 1 else -2 - position
    return table


def recorded_positions(reader):
    table = reader.positions(0).to_pydict()
    keys = zip(table["forward"], table["row"], table["column"], strict=True)
    return dict(zip(keys, table["position"], strict=True))


def recorded_forwards(reader):
    """Return {forward: {(token, phase)}} of the records."""
    table = reader.index(0).to_pydict()
    found = {}
    for forward, token, phase in zip(
        *(table[n] for n in ("forward", "token", "phase")), strict=True
    ):
        found.setdefault(forward, set()).add((token, phase))
    return found


def check_forwards(reader, iterations, mask, prompt=PROMPT):
    expected = {
        f: {(before - prompt, "decode" if f else "prefill")}
        for f, (before, _, _) in enumerate(iterations)
    }
    assert recorded_forwards(reader) == expected
    assert recorded_positions(reader) == expected_positions(iterations, mask)
    facts = reader.run_info(0)["speculation"]
    assert facts["verified"] == [
        [f, before - prompt, drafted, after - before - 1]
        for f, (before, drafted, after) in enumerate(iterations)
    ]
    assert facts["drafted"] == sum(i.drafted for i in iterations)
    assert facts["accepted"] == sum(i.after - i.before - 1 for i in iterations)
    assert facts["rejected"] == facts["drafted"] - facts["accepted"]


def check_tokens(reader, result, iterations, prompt=PROMPT):
    ids = result.sequences[0].tolist()
    assert reader.run_info(0)["generated_ids"] == [ids[prompt:]]
    rows = reader.trace(0).to_pylist()
    assert [row["token"] for row in rows] == list(range(len(ids) - prompt))
    for forward, (before, drafted, after) in enumerate(iterations):
        for length in range(before, after):
            row, token = rows[length - prompt], length - prompt
            first = (before - 1 if forward else 0) if length == before else length - 1
            assert (row["forward"], row["chosen_id"]) == (forward, ids[length])
            assert (row["drafted"], row["accepted"]) == (drafted, after - before - 1)
            assert row["input_ids"] == ids[first:length]
            assert row["cache_length"] == first
            logits = result.logits[token]
            assert row["top_ids"][0] == logits.argmax().item()
            assert torch.equal(reader.load("root", "output.logits", token)[:, -1], logits)
            chosen = reader.load("root", "token_ids", token)
            assert torch.equal(chosen, result.sequences[:, length])


def replayed(model, ids, mask):
    """Return the output of each module that has one per position, of one plain forward."""
    found, handles = {}, []

    def see(name):
        def hook(_module, _args, output):
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, torch.Tensor) and value.shape[:2] == ids.shape:
                slot = "output.0" if isinstance(output, tuple) else "output"
                found[name, slot] = value.clone()

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(see(name)))
    full = torch.cat([mask, torch.ones(1, ids.shape[1] - mask.shape[1], dtype=mask.dtype)], dim=1)
    places = (full.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(ids, attention_mask=full, position_ids=places, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def check_values(reader, model, result, mask):
    """Check every accepted column of every module; return how many rejected ones differ."""
    ids = result.sequences
    want, pads = replayed(model, ids, mask), int((mask == 0).sum())
    assert len(want) > 20
    differing = 0
    layouts = {}
    for (forward, _, column), position in recorded_positions(reader).items():
        layouts.setdefault(forward, {})[column] = position
    for (name, slot), values in want.items():
        if not name or name == "lm_head":  # which see the last columns only
            continue
        for forward, layout in layouts.items():
            (key,) = reader.keys(run=0, module=name, slot=slot, forward=forward)
            got = reader.load_key(key)
            for column, position in layout.items():
                if position >= 0:
                    there = values[:, position + pads]
                    assert torch.allclose(got[:, column], there, atol=2e-4), (name, forward, column)
                elif position < -1 and -2 - position + pads < ids.shape[1]:
                    there = values[:, -2 - position + pads]
                    differing += not torch.allclose(got[:, column], there, atol=2e-4)
    return differing


@pytest.mark.parametrize("name", CASES)
def test_a_speculative_generation_is_followed(model, tiny_llama, tmp_path, name):
    drafter, options = CASES[name]
    mask = options.get("attention_mask", FULL)
    plain, iterations = spied(model, DRAFTERS[drafter](model, tiny_llama) | options)
    got = dumped(model, tmp_path, DRAFTERS[drafter](model, tiny_llama) | options)
    same(plain, got)
    with open_dump(tmp_path) as reader:
        assert reader.run_info(0)["complete"]
        check_forwards(reader, iterations, mask)
        check_tokens(reader, got, iterations)
        check_values(reader, model, got, mask)


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_cases_accept_and_reject(model, tiny_llama, name):
    """Both happen for every drafter, so that the tests above look at both."""
    found = []
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 3}):
        found += spied(model, DRAFTERS[name](model, tiny_llama) | options)[1]
    assert any(i.after - i.before > 1 for i in found)
    if name != "itself":
        assert any(i.after - i.before <= i.drafted for i in found)


def test_rejected_columns_hold_other_values_than_what_was_generated(model, tiny_llama, tmp_path):
    got = dumped(model, tmp_path, assistant(model, tiny_llama) | {"do_sample": False})
    with open_dump(tmp_path) as reader:
        assert check_values(reader, model, got, FULL) > 100
