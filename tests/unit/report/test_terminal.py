"""What a terminal shows of a dump; the reader is a small fake with an index."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from rich.console import Console

from hf_dumper.core.statistics import FIELDS, describe
from hf_dumper.errors import KeyNotFoundError
from hf_dumper.report.terminal import entries, lines, module, overview, ranges, tensor, tree
from hf_dumper.store.layout import INDEX_SCHEMA

FULL = {"forward": 0, "token": 0, "class": "Linear", "param": "", "status": "stored", "reason": ""}


class FakeReader:
    """Records made by hand; `values` are what load_key gives."""

    def __init__(self, rows, *, info=None, manifest=None):
        self.rows, self.loaded = rows, 0
        self.path = Path("dump")
        self.manifest = manifest or {"identity": {"class": "Net", "dtype": "torch.float32"}}
        self.info = info or {"complete": True, "prompt": {"text": ["a b"]}, "kind": "generate"}
        self.values = torch.tensor([[1.0, 3.0]])

    def runs(self):
        return (0,)

    def run_info(self, run=None):
        return self.info

    def index(self, run=None):
        return pa.Table.from_pylist(self.rows, schema=INDEX_SCHEMA)

    def load_key(self, key):
        self.loaded += 1
        return self.values


def fake(rows, **facts) -> Any:
    return FakeReader(rows, **facts)


def record(name, slot, *, mean=0.5, status="stored", tensor="kept", statistics=True, **more):
    values = torch.tensor([[mean, mean]], dtype=torch.float64)
    found = describe([values])[0] if statistics else None
    known = dict.fromkeys(FIELDS) if found is None else found._asdict()
    place = {"shard": tensor and "s", "tensor": tensor, "offset": 0, "nbytes": 2048, "hash": 1}
    key = {"run": 0, "rank": 0, "call": 0, "op": "", "phase": "prefill", "axes": ""}
    kind = {"dtype": "float32", "shape": [1, 2], "device": "cpu"}
    numbered = {"seq_in": 0, "seq_out": 0, "module": name, "slot": slot, "status": status}
    return {**FULL, **key, **kind, **place, **known, **numbered, **more}


def text(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(renderable, soft_wrap=True)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def layered(count):
    rows = [record(f"layers.{i}", "output", mean=i, seq_in=2 * i) for i in range(count)]
    rows += [record(f"layers.{i}.mlp", "output", seq_in=2 * i + 1) for i in range(count)]
    return fake([record("root", "output", seq_in=-1), *rows])


def test_lines_have_the_documented_format():
    reader = fake([record("model.layers.0.input_layernorm", "input.0")])
    expected = "Layer model.layers.0.input_layernorm input - mean: 0.5, sum: 1, shape: (1, 2)"
    assert list(lines(reader, 0, 0)) == [expected]


def test_lines_write_the_whole_slot_where_a_module_has_several():
    reader = fake([record("a", s) for s in ("input.0", "input.mask", "output.0")])
    assert [line.partition(" - ")[0] for line in lines(reader, 0, 0)] == [
        "Layer a input.0",
        "Layer a input.mask",
        "Layer a output",
    ]


def test_lines_say_which_call_it_is():
    reader = fake([record("a", "output"), record("a", "output", call=1)])
    names = [line.partition(" - ")[0] for line in lines(reader, 0, 0)]
    assert names == ["Layer a output", "Layer a output call 1"]


def test_lines_show_null_as_a_dash_and_leave_out_what_was_skipped():
    bare = record("a", "output", statistics=False, tensor=None)
    skipped = record("a", "input.0", status="skipped", statistics=False, tensor=None)
    assert list(lines(fake([bare, skipped]), 0, 0)) == [
        "Layer a output - mean: -, sum: -, shape: (1, 2)"
    ]


def test_the_tree_shows_modules_with_their_class_and_tensors():
    shown = text(tree(layered(1), 0, 0), 50)
    assert shown == [
        "module, tensor type shape mean std absmax",
        "root  Linear",
        "  output       f32  1x2    0.5   0    0.5",
        "  layers.0  Linear",
        "    output     f32  1x2      0   0      0",
        "    mlp  Linear",
        "      output   f32  1x2    0.5   0    0.5",
    ]


def test_repeated_layers_are_folded():
    shown = text(tree(layered(4), 0, 0))
    assert "  layers.1 to layers.3: the same 2 tensors each, other values (--all)" in shown
    assert not any(line.startswith("  layers.2 ") for line in shown)


def test_repeated_layers_are_unfolded_on_request():
    shown = text(tree(layered(4), 0, 0, fold=False))
    assert sum(line.startswith("  layers.") for line in shown) == 4


def test_a_layer_of_another_form_is_not_folded_away():
    reader = layered(3)
    reader.rows[2]["shape"] = [1, 4]
    assert sum(line.startswith("  layers.") for line in text(tree(reader, 0, 0))) == 3


def test_a_wide_terminal_names_the_owner_of_shared_memory():
    owned = record("b", "input.0", status="aliased", tensor="0/a:output:0", seq_in=1)
    reader = fake([record("a", "output"), owned])
    wide, narrow = text(tree(reader, 0, 0), 120), text(tree(reader, 0, 0), 60)
    assert any(line.endswith("= a output") for line in wide)
    assert any(line.endswith("2.05 kB") for line in wide)
    assert any(line.lstrip().startswith("= input.0") for line in narrow)
    assert narrow[-1].startswith("= shares the memory")


def test_the_tree_points_at_values_that_are_not_finite():
    reader = fake([record("a", "output", nan=2, pos_inf=1)])
    assert any("3 values not finite" in line for line in text(tree(reader, 0, 0), 40))


def test_the_tree_says_why_a_tensor_was_skipped():
    row = record("a", "output", status="skipped", reason="meta tensor", statistics=False)
    assert any("meta tensor" in line for line in text(tree(fake([row]), 0, 0)))


def test_an_empty_run_says_so():
    assert text(tree(fake([]), 0, 0)) == ["Nothing was recorded."]


def test_shared_bytes_without_statistics_are_described_once():
    rows = [record(n, "output", statistics=False, tensor="0/a:output:0") for n in ("a", "b")]
    reader = fake(rows)
    assert [e.statistics["mean"] for e in entries(reader, 0, 0)] == [2, 2]
    assert reader.loaded == 1


def test_an_unknown_token_lists_those_there_are():
    reader = fake([record("a", "output", token=t) for t in (0, 1, 2, 8)])
    with pytest.raises(KeyNotFoundError, match=r"no token 5. Recorded: 0-2, 8"):
        entries(reader, 0, 5)


def test_ranges():
    assert ranges([]) == "none"
    assert ranges([3]) == "3"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_the_overview_names_a_run_that_is_not_whole():
    info = {"complete": False, "kind": "generate", "prompt": {"text": ["a b"]}}
    reader = fake([record("a", "output")], info=info)
    shown = " ".join(text(overview(reader)))
    assert "Run 0 is INCOMPLETE: still running, or stopped before its end" in shown


def test_a_long_prompt_leaves_room_for_the_sums_and_the_answer():
    talk = {"prompt": {"text": ["first " * 40 + "last"]}, "generated_text": ["answer " * 40]}
    info = {"complete": True, "kind": "generate", **talk}
    shown = text(overview(fake([record("a", "output")], info=info)))[-1]
    assert shown.startswith("  0       0        1  2.05 kB  …")
    assert "last → answer" in shown
    assert shown.endswith("…")
    assert len(shown) == 80


def test_the_overview_keeps_control_characters_from_the_terminal():
    info = {"complete": True, "kind": "generate", "prompt": {"text": ["a\x1b[31m\nb"]}}
    shown = " ".join(text(overview(fake([record("a", "output")], info=info))))
    assert "\x1b" not in shown
    assert "a\ufffd[31m b" in shown


def test_the_overview_tells_a_failed_self_check():
    check = {"identical": False, "first_difference": "logits of token 0: x", "compared": "all"}
    reader = fake([record("a", "output")], manifest={"self_check": check})
    assert "FAILED: logits of token 0: x" in " ".join(text(overview(reader)))


def test_a_tensor_is_shown_with_its_values():
    entry = entries(fake([record("a", "output")]), 0, 0)[0]
    shown = text(tensor(entry, torch.tensor([[1.0, 2.5]], dtype=torch.bfloat16)))
    assert shown[0] == "a output"
    assert shown[-1] == "[[1. , 2.5]]"


def test_a_large_tensor_shows_its_corners_unless_all_is_asked_for():
    entry = entries(fake([record("a", "output")]), 0, 0)[0]
    values = torch.arange(2000)
    assert "..." in text(tensor(entry, values))[-1]
    assert "..." not in " ".join(text(tensor(entry, values, whole=True)))


def test_a_tensor_whose_values_were_not_kept_says_so():
    entry = entries(fake([record("a", "output", tensor=None)]), 0, 0)[0]
    assert text(tensor(entry, None))[-1] == "The values were not kept, only statistics."


def test_a_module_is_shown_with_a_line_per_tensor():
    found = entries(fake([record("a", s) for s in ("input.0", "output")]), 0, 0)
    assert [line.split()[0] for line in text(module(found))] == ["a", "slot", "input.0", "output"]
