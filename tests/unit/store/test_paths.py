"""Names of files: what stays legible, what is escaped, and that no two tensors share one."""

from pathlib import PurePosixPath

import pytest

from hf_dumper.core.types import Phase, Tick
from hf_dumper.store.paths import MOST, Paths, escaped


def at(forward=0, token=0, paths=None):
    paths = paths or Paths(".pth")
    paths.begin(Tick(0, forward, Phase.PREFILL, token))
    return paths


@pytest.mark.parametrize(
    ("module", "slot", "name"),
    [
        ("model.norm", "input.0", "root.model.norm/input_0.pth"),
        ("model.norm", "input.hidden_states", "root.model.norm/input_hidden_states.pth"),
        ("model.norm", "input.1.0", "root.model.norm/input_1_0.pth"),
        ("model.norm", "output", "root.model.norm/output.pth"),
        ("model.norm", "output.0", "root.model.norm/output_0.pth"),
        ("root", "output.logits", "root/output_logits.pth"),
        ("root", "logits", "root.lm_head/output.pth"),
        ("root", "token_ids", "root/token_ids.pth"),
    ],
)
def test_a_tensor_lies_where_msit_has_it(module, slot, name):
    assert at(token=3).file(module, slot, "", 0) == f"3/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/abs",
        "a/b",
        "..",
        "a\\b",
        "C:",
        "nul\0",
        "line\nbreak",
        "é~%",
        "\ud800",
    ],
)
def test_a_name_never_leaves_its_folder(name):
    file = at().file(name, f"output.{name}", name, 0)
    assert len(PurePosixPath(file).parts) == 3
    assert ".." not in PurePosixPath(file).parts
    assert all(c.isascii() and (c.isalnum() or c in "_.-%/") for c in file)


def test_different_names_stay_different():
    names = ["a/b", "a%2Fb", "a~b", "a%7Eb", "a b", "a_b"]
    assert len({escaped(name) for name in names}) == len(names)


def test_a_long_name_fits_and_stays_different():
    first, second = escaped("x" * 1000), escaped("x" * 999 + "y")
    assert len(first) == len(second) == MOST
    assert first != second


def test_slots_that_come_out_alike_get_names_of_their_own():
    paths = at()
    slots = ["output.a.b", "output.a_b", "output.A_b"]
    files = [paths.file("m", slot, "", 0).casefold() for slot in slots]
    assert files == [f"0/root.m/output_a_b{n}.pth" for n in ("", "+1", "+2")]


def test_calls_and_forwards_of_one_token_have_folders_of_their_own():
    paths = at()
    assert paths.file("m", "output", "", 1) == "0/root.m~1/output.pth"
    at(1, 0, paths)
    assert paths.file("m", "output", "", 0) == "0/root.m@1/output.pth"
    at(2, 1, paths)
    assert paths.file("m", "output", "", 0) == "1/root.m/output.pth"


def test_the_same_forward_may_begin_again():
    paths = at(paths=at())
    assert paths.file("m", "output", "", 0) == "0/root.m/output.pth"


@pytest.mark.parametrize(("op", "folder"), [("softmax.0", "softmax"), ("softmax.2", "softmax.2")])
def test_a_function_lies_beside_its_module(op, folder):
    assert at().file("m", "output", op, 0) == f"0/root.m.{folder}/output.pth"
