"""Comparing runs whose rows change places, and runs with forwards beside the sequence."""

import pytest
import torch

from hf_dumper import DumpConfig, compare, open_dump, register_hook
from hf_dumper.cli import main
from tests.generation.modes import MODES, Mode, demo, generate


@pytest.fixture(scope="module")
def subject():
    return demo()


def dumped(subject, path, *modes, rows=slice(None)):
    model, inputs = subject
    own = {name: value[rows] for name, value in inputs.items()}
    with register_hook(model, DumpConfig(path, "all")):
        return [generate(model, own, mode) for mode in modes]


def test_several_runs_of_one_prompt_agree_each_with_its_own(subject, tmp_path):
    modes = [MODES[name] for name in ("beams", "greedy", "guidance", "beams, no cache")]
    for name in ("golden", "candidate"):
        dumped(subject, tmp_path / name, *modes)
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict == "identical"
    assert found.coverage["candidate rows unmatched"] == 0
    assert found.unmatched.num_rows == 0


def test_beams_in_another_order_of_prompts_agree(subject, tmp_path):
    dumped(subject, tmp_path / "golden", MODES["beams"])
    dumped(subject, tmp_path / "candidate", MODES["beams"], rows=torch.tensor([1, 0]))
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict in ("pass", "identical")  # as the kernels treat other rows
    assert found.coverage["candidate rows unmatched"] == 0
    assert found.coverage["positions missing"] == found.coverage["positions truncated"] == 0


def test_greedy_search_is_compared_as_far_as_a_beam_goes_with_it(subject, tmp_path):
    dumped(subject, tmp_path / "greedy", MODES["greedy"])
    dumped(subject, tmp_path / "beams", MODES["beams"])
    found = compare(tmp_path / "greedy", tmp_path / "beams")
    assert found.coverage["rows"] == 2
    assert found.coverage["pairs"] > 0
    verdicts = set(found.results.column("verdict").to_pylist())
    assert verdicts <= {"identical", "pass", "not computable"}


@pytest.mark.parametrize("name", ["beams", "guidance"])
def test_a_fault_is_found_where_it_is(subject, tmp_path, name):
    model, _ = subject
    dumped(subject, tmp_path / "golden", MODES[name])
    weight = model.model.layers[2].mlp.down_proj.weight
    handle = model.model.layers[2].mlp.down_proj.register_forward_hook(
        lambda _m, _a, out: out * torch.tensor(1.001)
    )
    dumped(subject, tmp_path / "candidate", MODES[name])
    handle.remove()
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert weight is model.model.layers[2].mlp.down_proj.weight
    assert found.verdict in ("fail", "warn")
    assert found.divergence.module == "model.layers.2.mlp.down_proj"


def test_a_swap_of_two_rows_is_found(subject, tmp_path):
    model, _ = subject
    dumped(subject, tmp_path / "golden", MODES["beams"])

    def swap(_module, _args, out):
        return out[[1, 0, *range(2, len(out))]] if out.shape[1] == 1 else None

    handle = model.model.layers[1].mlp.register_forward_hook(swap)
    dumped(subject, tmp_path / "candidate", Mode(MODES["beams"].options))
    handle.remove()
    found = compare(tmp_path / "golden", tmp_path / "candidate")
    assert found.verdict == "fail"
    assert found.divergence.module == "model.layers.1.mlp"


def test_dumps_of_beams_are_told_verified_run_again_and_converted(subject, tmp_path, capsys):
    dumped(subject, tmp_path / "d", MODES["beams"], MODES["guidance"])

    def ran(*arguments):
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([str(a) for a in arguments]))
        return end.value.code, capsys.readouterr().out

    status, told = ran("trace", tmp_path / "d", "--run", "0")
    assert status == 0
    assert "continues row" in told
    assert ran("verify", tmp_path / "d")[0] == 0
    assert ran("convert", tmp_path / "d", "--to", "msit", tmp_path / "m")[0] == 0
    with open_dump(tmp_path / "d") as ours, open_dump(tmp_path / "m") as theirs:
        assert ours.trace(0).equals(theirs.trace(0))
    assert compare(tmp_path / "d", tmp_path / "m").verdict == "identical"
