"""The self-check: what it proves, and that it can fail."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from hf_dumper.config import DumpConfig
from hf_dumper.diagnose import self_check
from hf_dumper.diagnose.selfcheck import first_difference
from hf_dumper.errors import CaptureError
from hf_dumper.model import register_hook

INPUTS = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}


def numpy_state():
    state: Any = np.random.get_state()
    return state[1].tolist()


def nudge_while_dumped(model):
    """Make the model misbehave as a hook that writes would: only while it is dumped."""

    def hook(module, args, output):
        return output + 1e-6 if "dump" in model.__dict__ else None

    model.lm_head.register_forward_hook(hook)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("token_range", [None, "all", [40]])
def test_an_honest_dump_passes(tiny_llama, mode, token_range):
    config = DumpConfig(token_range=token_range, dump_statistics_mode=mode)
    check = self_check(tiny_llama(), INPUTS, config, max_new_tokens=4)
    assert (check.identical, check.tokens, check.first_difference) == (True, 4, None)
    assert check.compared == "token ids and raw logits of 4 tokens, byte for byte"


def test_last_logits_pass(tiny_llama):
    assert self_check(
        tiny_llama(), INPUTS, DumpConfig(dump_last_logits=True), max_new_tokens=2
    ).identical


def test_a_dump_that_changes_the_logits_fails(tiny_llama):
    model = tiny_llama()
    nudge_while_dumped(model)
    check = self_check(model, INPUTS, DumpConfig(), max_new_tokens=3)
    assert not check.identical
    assert check.repeatable
    assert str(check.first_difference).startswith(
        "logits of token 0: 128 of 128 values differ, first"
    )


def test_a_model_that_does_not_repeat_itself_is_told_from_a_dump_that_changes_it(tiny_llama):
    model = tiny_llama()
    calls: list[None] = []

    def drift(module, args, output):
        calls.append(None)
        return output + len(calls)

    model.lm_head.register_forward_hook(drift)
    check = self_check(model, INPUTS, DumpConfig(), max_new_tokens=2)
    assert (check.identical, check.repeatable) == (False, False)


@pytest.mark.parametrize("seed", [None, 7])
def test_sampling_passes_and_leaves_the_generators_as_they_were(tiny_llama, seed):
    model = tiny_llama()
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    check = self_check(model, INPUTS, DumpConfig(seed=seed), max_new_tokens=8, do_sample=True)
    assert check.identical
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), numpy_state()) == before[1:]


def test_a_model_without_a_head_is_checked_by_its_forward(tiny_llama):
    check = self_check(tiny_llama().model, INPUTS, DumpConfig())
    assert check.identical
    assert check.tokens == 0
    assert check.compared.startswith("output.last_hidden_state")


def test_nothing_is_left_behind(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    model = tiny_llama()
    before = set(model.__dict__)
    self_check(model, INPUTS, DumpConfig(tmp_path / "dump"), max_new_tokens=2)
    assert list(tmp_path.iterdir()) == []
    assert set(model.__dict__) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_is_being_dumped_is_refused(tiny_llama, tmp_path):
    model = tiny_llama()
    with register_hook(model, DumpConfig(tmp_path / "dump")):
        with pytest.raises(CaptureError, match="needs the plain model"):
            self_check(model, INPUTS, DumpConfig())
        model.generate(**INPUTS, max_new_tokens=1)
    assert self_check(model, INPUTS, DumpConfig(), max_new_tokens=1).identical


NAN = torch.tensor([1, float("nan")])


@pytest.mark.parametrize(
    ("golden", "candidate", "said"),
    [
        (NAN, NAN.clone(), None),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 values differ, first at [0]: 0.0"),
        (torch.ones(2, 2), torch.ones(4), "float32 [2, 2] without dumping and float32 [4] with"),
        (torch.ones(2), torch.ones(2).half(), "float32 [2] without dumping and float16 [2]"),
        (torch.tensor(1), torch.tensor(2), "first at []: 1 without dumping and 2 with"),
        (torch.empty(0), torch.empty(0), None),
        (torch.tensor([True, False]), torch.tensor([True, True]), "first at [1]: False"),
    ],
)
def test_bytes_are_compared(golden, candidate, said):
    found = first_difference({"x": golden}, {"x": candidate})
    assert found is None if said is None else said in str(found)


def test_a_missing_step_is_a_difference():
    assert first_difference({"x": NAN}, {}) == "x: only without dumping"
