"""Capture adds no operator, no synchronisation and no conversion to the model's forward."""

from collections import Counter

import pytest
import torch

from hf_dumper import DumpConfig, register_hook
from tests.guards.counting import HEAVY, MODES, Operators, counted, generate

pytestmark = pytest.mark.usefixtures("kind_of_hooks")

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
READING = ("item", "tolist", "cpu", "cuda", "to", "numpy", "clone", "contiguous", "copy_")
"""Methods that wait for an accelerator, or copy."""


def operators(run):
    with Operators() as seen:
        run()
    return seen.counts


def added(model, path, run, options):
    """Return the operators that dumping adds to a run, and those that it takes away."""
    run()  # whatever is computed once
    plain = operators(run)
    with register_hook(model, DumpConfig(path, "all", **options)):
        dumped = operators(run)
    assert sum(plain.values()) > 100
    return dumped - plain, plain - dumped


def of_callbacks(tokens, mode):
    """Return what the callbacks of `generate()` dispatch, however many modules there are."""
    expected = {
        "aten.select.int": tokens,  # the column of the chosen tokens
        "aten.zeros.default": tokens,  # criteria that never stop, and
        "aten.bitwise_or.Tensor": tokens,  # what transformers makes of them
        "aten.slice.Tensor": 1,  # the generated ids, at the end of the run
    }
    if mode == "last logits":
        expected["aten.select.int"] += tokens  # the last column
        expected["aten.detach.default"] = tokens
    return expected


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_no_operator_is_dispatched_for_the_tensors_of_a_generation(
    tiny_llama, tmp_path, mode, layers
):
    model = tiny_llama(num_hidden_layers=layers, **HEAVY)
    more, less = added(model, tmp_path, lambda: generate(model, 5), MODES[mode])
    assert more == of_callbacks(5, mode)
    assert less == {}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_mask_is_copied_without_an_operator(tiny_llama, tmp_path, dtype):
    model, mask = tiny_llama(**HEAVY), LEFT.to(dtype)
    more, _ = added(model, tmp_path, lambda: generate(model, 4, attention_mask=mask), {})
    in_the_prompt = Counter({"aten._to_copy.default": 1})
    assert more == Counter(of_callbacks(4, "tensors")) + in_the_prompt


@pytest.mark.parametrize("mode", ["tensors", "statistics", "both"])
def test_a_bare_forward_dispatches_nothing_more(tiny_llama, tmp_path, mode):
    model, ids = tiny_llama(**HEAVY), torch.arange(5, 12)[None]
    more, less = added(model, tmp_path, lambda: model(ids), MODES[mode])
    assert (more, less) == ({}, {})


def calls(monkeypatch, run):
    """Count what reads values of tensors in this thread, or waits for a device in any."""
    counts = Counter()
    with monkeypatch.context() as patch:
        for name in READING:
            counted(patch, torch.Tensor, name, counts, of_this_thread=True)
        for device in (torch.cuda, torch.accelerator, torch.cuda.Event, torch.cuda.Stream):
            counted(patch, device, "synchronize", counts)
        run()
    return counts


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("mode", MODES)
def test_no_value_is_read_and_no_device_is_waited_for(
    tiny_llama, tmp_path, monkeypatch, mode, tokens
):
    model = tiny_llama(**HEAVY)
    generate(model, tokens)
    plain = calls(monkeypatch, lambda: generate(model, tokens))
    with register_hook(model, DumpConfig(tmp_path, "all", **MODES[mode])):
        dumped = calls(monkeypatch, lambda: generate(model, tokens))
    # The ids of the prompt and of the result, for run.json, and the chosen ids.
    assert dumped - plain == {"tolist": 2 + tokens}


def test_the_chosen_ids_are_read_once_per_token(tiny_llama, tmp_path, monkeypatch):
    model = tiny_llama(**HEAVY)
    run = lambda: generate(model, 6, eos_token_id=3, min_new_tokens=6)  # noqa: E731
    run()
    plain = calls(monkeypatch, run)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        dumped = calls(monkeypatch, run)
    assert dumped - plain == {"tolist": 2 + 6}
