import json
import os
import random
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch

from hf_dumper.capture import seeding
from hf_dumper.capture.seeding import (
    CUBLAS_WORKSPACE,
    ENVIRONMENT_OF_INTEREST,
    FLAGS,
    determinism_facts,
    environment_flags,
    seeded,
)
from hf_dumper.errors import ConfigError

NPU = {
    "HCCL_DETERMINISTIC": "true",
    "LCCL_DETERMINISTIC": "1",
    "ATB_MATMUL_SHUFFLE_K_ENABLE": "0",
}

OTHER = {
    "float32_matmul_precision": "medium",
    "deterministic_debug_mode": 0,
    "threads": torch.get_num_threads() + 1,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": (True, True),
    "cuda.matmul.allow_bf16_reduced_precision_reduction": (True, True),
}
"""A value that each flag does not have inside; the rest are precisions and booleans."""

by_name = pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)


def other(flag):
    if flag.name in OTHER:
        return OTHER[flag.name]
    return "tf32" if flag.name.endswith("fp32_precision") else not flag.get()


def table():
    return {flag.name: flag.read() for flag in FLAGS}


def draw():
    return [
        random.random(),
        random.gauss(),
        np.random.rand(),
        np.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    ]


@pytest.fixture(autouse=True)
def _untouched_process(monkeypatch):
    for name in ENVIRONMENT_OF_INTEREST:
        monkeypatch.delenv(name, raising=False)
    before = [(flag, flag.read()) for flag in FLAGS]
    yield
    for flag, value in before:
        if flag.read() != value:
            flag.set(value)


@by_name
def test_a_flag_is_as_wanted_inside_and_restored_after(flag):
    changed = other(flag)
    flag.set(changed)
    before = table()
    with seeded(1):
        inside = flag.get()
    assert inside in (flag.wanted or (changed,))
    assert table() == before


@by_name
def test_a_flag_changed_inside_is_restored(flag):
    before = table()
    with seeded(1):
        flag.set(other(flag))
    assert table() == before


@by_name
def test_a_flag_is_restored_after_an_error(flag):
    flag.set(other(flag))
    before = table()
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert table() == before


@by_name
def test_a_flag_is_restored_when_another_cannot_be_set(flag, monkeypatch):
    def refuse(value):
        raise KeyError

    flag.set(other(flag))
    before = table()
    bad = seeding.Flag("bad", lambda: 0, refuse, (1,))
    monkeypatch.setattr(seeding, "FLAGS", (*FLAGS, bad))
    with pytest.raises(KeyError), seeded(1):
        pass
    assert table() == before
    assert determinism_facts()["seed"] is None


def test_every_flag_is_as_wanted_inside():
    with seeded(None):
        assert all(flag.get() in flag.wanted for flag in FLAGS if flag.wanted)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_old_names_of_tf32_can_be_read_inside_and_after(precision):
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True
    with seeded(1):
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cuda.matmul.allow_tf32 is (precision != "highest")
    assert torch.backends.cudnn.allow_tf32 is True


def test_deterministic_algorithms_warn_inside():
    with seeded(1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_process_that_asked_for_errors_keeps_them():
    torch.use_deterministic_algorithms(True)
    with seeded(1):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)


def test_random_streams_go_on_as_if_the_block_had_not_run():
    with seeded(3):
        expected = [draw(), draw()]
    with seeded(3):
        actual = [draw()]
        with seeded(4):
            draw()
        actual.append(draw())
    assert actual == expected


def test_random_streams_go_on_after_an_error():
    state = random.getstate(), torch.get_rng_state().tolist()
    with suppress(KeyError), seeded(4):
        draw()
        raise KeyError
    assert (random.getstate(), torch.get_rng_state().tolist()) == state


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, 2**64 - 1])
def test_the_same_seed_gives_the_same_numbers(seed):
    drawn = []
    for _ in range(2):
        draw()
        with seeded(seed):
            drawn.append(draw())
    assert drawn[0] == drawn[1]


def test_other_seeds_give_other_numbers():
    with seeded(1):
        first = draw()
    with seeded(2):
        second = draw()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_no_seed_leaves_the_streams_alone():
    with seeded(5):
        expected = [draw(), draw()]
    with seeded(5):
        with seeded(None):
            actual = [draw()]
        actual.append(draw())
    assert actual == expected


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_what_is_no_seed_is_refused(seed):
    before = table()
    with pytest.raises(ConfigError, match="seed must be an integer"), seeded(seed):
        pass
    assert table() == before


@pytest.mark.parametrize("value", [None, ":16:8", ":4096:8"])
def test_the_environment_is_restored(value, monkeypatch):
    if value is not None:
        monkeypatch.setenv(CUBLAS_WORKSPACE, value)
    before = dict(os.environ)
    with suppress(KeyError), seeded(1):
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
        raise KeyError
    assert dict(os.environ) == before


def test_without_an_npu_its_environment_is_left_alone():
    with seeded(1):
        assert not NPU.keys() & os.environ.keys()


def test_with_an_npu_only_the_environment_changes(monkeypatch):
    monkeypatch.setattr(seeding, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setenv("LCCL_DETERMINISTIC", "0")
    assert [f.name for f in environment_flags()] == [CUBLAS_WORKSPACE, *NPU]
    before = dict(os.environ)
    with seeded(1) as facts:
        assert NPU.items() <= os.environ.items()
        assert facts["environment"] == NPU | {CUBLAS_WORKSPACE: ":4096:8"}
        assert "torch_npu" not in sys.modules
    assert dict(os.environ) == before


def test_the_facts_are_plain_and_complete():
    with seeded(9) as facts:
        assert json.loads(json.dumps(facts)) == facts == determinism_facts()
    assert facts["seed"] == 9
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert {flag.name for flag in FLAGS} <= facts.keys()


def test_the_facts_tell_the_innermost_seed():
    with seeded(1):
        with seeded(2), seeded(None) as facts:
            assert facts["seed"] == 2
        assert determinism_facts()["seed"] == 1
    assert determinism_facts()["seed"] is None


def test_the_facts_show_settings_that_torch_cannot_read():
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has one interface only")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert determinism_facts()["float32_matmul_precision"] == "mixed"


@pytest.mark.parametrize(
    ("started", "value", "expected"),
    [
        (False, None, "set before CUDA was initialised"),
        (True, None, "set after CUDA was initialised"),
        (True, ":16:8", "set after CUDA was initialised"),
        (True, ":4096:8", "set beforehand"),
    ],
)
def test_the_facts_tell_when_the_cublas_workspace_was_set(started, value, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    if value is not None:
        monkeypatch.setenv(CUBLAS_WORKSPACE, value)
    with seeded(None) as facts, seeded(None) as nested:
        assert facts["cublas_workspace"] == nested["cublas_workspace"] == expected


def test_the_facts_tell_that_the_cublas_workspace_is_not_set():
    assert determinism_facts()["cublas_workspace"] == "not set"


@pytest.mark.gpu
def test_random_streams_of_cuda_go_on_as_if_the_block_had_not_run():
    torch.cuda.manual_seed_all(3)
    expected = [torch.rand(2, device="cuda").tolist() for _ in range(2)]
    torch.cuda.manual_seed_all(3)
    actual = [torch.rand(2, device="cuda").tolist()]
    with seeded(3):
        assert torch.rand(2, device="cuda").tolist() == expected[0]
    actual.append(torch.rand(2, device="cuda").tolist())
    assert actual == expected
