"""`hf-dumper compare` and `judge`, as a user meets them."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from hf_dumper.cli.failures import DONE, FAILED, IMPOSSIBLE
from hf_dumper.config import DumpConfig
from hf_dumper.model import register_hook
from hf_dumper.store import open_dump
from hf_dumper.testing import turned_rotary
from tests.commands import run_tiny

IDS = torch.tensor([[5, 6, 7, 8, 9]])
BAD, NORM = "model.layers.1.self_attn", ("model.norm", "output")


@pytest.fixture
def make(tiny_llama):
    """Return a function that makes a dump of the tiny model, perhaps changed before."""

    def dump(path, change=lambda model: None, *, ids=IDS, seed=0, shape=None, **options):
        model = tiny_llama(seed=seed, **shape or {})
        change(model)
        config = DumpConfig(path, **{"token_range": "all", **options})
        with register_hook(model, config):
            model.generate(ids, attention_mask=ids > 0, max_new_tokens=2)
        return path

    return dump


@pytest.fixture
def golden(place, make):
    """Make the dump `g`."""
    return make(place / "g")


@pytest.fixture
def broken(golden, place, tiny_llama):
    """Make the dump `c` of the same model with a fault in the attention of layer 1."""
    model = tiny_llama()
    with (
        turned_rotary(model.model.layers[1].self_attn),
        register_hook(model, DumpConfig(place / "c", "all")),
    ):
        model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=2)
    return place / "c"


def test_the_same_run_twice_is_identical(golden, make, place, cli):
    make(place / "c")
    status, out, err = cli("compare", "g", "c")
    assert (status, err) == (DONE, "")
    assert out.startswith("IDENTICAL  ")


def test_a_dump_agrees_with_itself(golden, cli):
    assert cli("compare", "g", "g")[0] == DONE


def test_another_dtype_is_no_fault(golden, make, place, cli):
    make(place / "c", lambda model: model.to(torch.bfloat16))
    status, out, err = cli("compare", "g", "c")
    assert (status, err) == (DONE, "")
    assert out.startswith("PASS  ")
    assert "bfloat16" in out


def test_a_fault_is_named(broken, cli):
    status, out, err = cli("compare", "g", "c")
    assert (status, err) == (FAILED, "")
    assert out.startswith(f"FAIL  first at {BAD} output")
    assert "functional: " in out


def test_the_evidence_is_of_the_values(broken, cli):
    assert "evidence   Largest difference at row 0" in cli("compare", "g", "c")[1]


def test_what_was_done_to_a_tensor_is_named(golden, place, tiny_llama, cli):
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, _a, out: -out)
    with register_hook(model, DumpConfig(place / "c", "all")):
        model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=2)
    out = cli("compare", "g", "c")[1]
    assert out.startswith("FAIL  first at model.layers.1.mlp.down_proj output")
    assert "All values: negated" in out


def test_the_snippet_runs_as_it_is_printed(broken, place, cli):
    out = cli("compare", "g", "c")[1]
    code = out.split("To see it in Python:\n")[1]
    lines = "\n".join(line.removeprefix("  ") for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_a_screen_is_80_columns_wide_and_not_too_long(broken, cli):
    out = cli("compare", "g", "c")[1].split("\nTo see it in Python:")[0]
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 45


def test_json_is_all_of_stdout(broken, cli):
    status, out, _ = cli("compare", "g", "c", "--json")
    facts = json.loads(out)
    assert status == FAILED
    assert (facts["divergence"]["module"], facts["divergence"]["kind"]) == (BAD, "functional")


def test_reports_are_written(broken, place, cli):
    names = ("r.json", "r.csv", "r.parquet", "r.xml", "r.msit.csv")
    reports = [part for name in names for part in ("--report", name)]
    assert cli("compare", "g", "c", *reports)[0] == FAILED
    assert all((place / name).stat().st_size for name in names)


def test_top_shows_so_many_of_the_farthest(broken, cli):
    def shown(top):
        out = cli("compare", "g", "c", "--top", top)[1]
        part = out.split("Farthest apart:\n")[1] if top else ""
        return part.split("\n\n")[0].splitlines()[1:]

    assert [len(shown(top)) for top in (0, 2, 7)] == [0, 2, 7]


def test_a_metric_of_the_users_own_is_measured(broken, place, cli):
    (place / "m.py").write_text("def largest(g, c):\n    return (g - c).abs().max()\n")
    facts = json.loads(cli("compare", "g", "c", "--metric", "m.py:largest", "--json")[1])
    worst = max(row["extra"].get("largest", 0.0) for row in facts["results"])
    assert worst == pytest.approx(max(row["max_abs"] or 0.0 for row in facts["results"]))


def test_a_kept_comparison_is_judged_again_without_the_dumps(broken, place, cli):
    assert cli("compare", "g", "c", "--out", "kept")[0] == FAILED
    for name in ("g", "c"):
        shutil.rmtree(place / name)
    status, out, err = cli("judge", "kept")
    assert (status, err) == (FAILED, "")
    assert f"first at {BAD} output" in out


def test_other_limits_change_the_verdict(golden, make, place, cli):
    make(place / "c", lambda model: model.to(torch.bfloat16))
    assert cli("compare", "g", "c", "--out", "kept")[0] == DONE
    (place / "strict.toml").write_text(
        "[bfloat16]\nrel_l2 = 1e-9\ntoken_rel_l2 = 1e-9\nchannel_rel_l2 = 1e-9\n"
    )
    assert cli("judge", "kept", "--limits", "strict.toml")[0] == FAILED
    assert cli("compare", "g", "c", "--limits", "strict.toml")[0] == FAILED


# --- what cannot pass -----------------------------------------------------------------------------


def scaled(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)


def poisoned(model):
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(torch.nan)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"change": scaled}, "lm_head.weight"),
        ({"ids": IDS + 1}, "INPUTS DIFFER"),
        ({"shape": {"rms_norm_eps": 0.5}}, "rms_norm_eps"),
        ({"change": poisoned}, "model.embed_tokens"),
    ],
    ids=["weights", "prompts", "model", "nan"],
)
def test_another_input_is_a_verdict(golden, make, place, cli, options, said):
    make(place / "c", **options)
    status, out, err = cli("compare", "g", "c")
    assert (status, err) == (FAILED, "")
    assert said in out


def test_nan_everywhere_on_both_sides_does_not_pass(make, place, cli):
    for name in ("g", "c"):
        make(place / name, poisoned)
    status, out, _ = cli("compare", "g", "c")
    assert status != DONE, out


def test_nothing_in_common_is_status_2(make, place, cli):
    make(place / "g", token_range=[0])
    make(place / "c", token_range=[1])
    status, out, err = cli("compare", "g", "c")
    assert (status, err) == (IMPOSSIBLE, "")
    assert out.startswith("NOTHING COMPARED  ")


def test_what_one_side_lacks_is_said_first_of_all(golden, make, place, cli):
    make(place / "c", token_range=[0])
    out = " ".join(cli("compare", "g", "c")[1].split())
    assert "81 records could not be compared golden" in out
    assert "81 records of the golden unmatched" in out


def test_without_inputs_the_source_is_not_claimed(broken, make, place, tiny_llama, cli):
    shutil.rmtree(place / "g")
    shutil.rmtree(place / "c")
    make(place / "g", tensor_part=1)
    model = tiny_llama()
    with (
        turned_rotary(model.model.layers[1].self_attn),
        register_hook(model, DumpConfig(place / "c", "all", tensor_part=1)),
    ):
        model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=2)
    out = cli("compare", "g", "c")[1]
    assert "first failing: its inputs were not checked" in " ".join(out.split())


def test_an_incomplete_run_does_not_pass(golden, make, place, cli):
    make(place / "c")
    facts = place / "c" / "runs" / "000000" / "run.json"
    told = json.loads(facts.read_text()) | {"complete": False, "incomplete": "the disk is full"}
    facts.write_text(json.dumps(told))
    status, out, err = cli("compare", "g", "c")
    assert status != DONE
    assert "incomplete" in out + err


@pytest.mark.parametrize("damage", ["shard", "index", "manifest"])
def test_a_damaged_dump_is_one_line(golden, make, place, cli, damage):
    folder = make(place / "c", lambda model: model.to(torch.bfloat16))
    names = {"shard": "shard-00000.safetensors", "index": "index.parquet"}
    rank = folder / "runs" / "000000" / "rank-0"
    path = rank / names[damage] if damage in names else folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    status, out, err = cli("compare", "g", "c")
    assert (status, out, err.count("\n")) == (IMPOSSIBLE, "", 1)
    assert "Traceback" not in err


def test_bytes_that_changed_on_disk_are_one_line(golden, make, place, cli):
    make(place / "c", lambda model: model.to(torch.bfloat16))
    path = place / "c" / "runs" / "000000" / "rank-0" / "shard-00000.safetensors"
    table = open_dump(place / "c").index(0).to_pylist()
    (norm,) = [r for r in table if (r["module"], r["slot"], r["token"]) == (*NORM, 0)]
    with path.open("r+b") as file:
        file.seek(norm["offset"])
        file.write(b"\xa5" * 64)
    status, out, err = cli("compare", "g", "c")
    assert (status, out, err.count("\n")) == (IMPOSSIBLE, "", 1)
    assert "'model.norm' 'output'" in err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compare g", "Missing argument 'CANDIDATE'"),
        ("compare g nope", "There is no dump at 'nope'"),
        ("compare nope g", "There is no dump at 'nope'"),
        ("compare g tiny", "'tiny' is no dump that a reader recognises"),
        ("compare g g --limits nope.toml", "Cannot read limits from 'nope.toml'"),
        ("compare g g --limits broken.toml", "broken.toml"),
        ("compare g g --limits typo.toml", "Did you mean 'rel_l2'"),
        ("compare g g --metric nope.py:f", "there is no file 'nope.py'"),
        ("compare g g --metric m.py:nope", "has no function 'nope'"),
        ("compare g g --metric nope", "No metric named 'nope'"),
        ("compare g g --report r.pdf", "what kind of report"),
        ("compare g g --report nope/r.json", "Cannot write 'nope/r.json'"),
        ("compare g g --out m.py", "Cannot save the comparison to 'm.py'"),
        ("compare g g --top -1", "Invalid value for '--top'"),
        ("judge nope", "nope"),
        ("judge tiny", "tiny"),
    ],
)
def test_bad_input_is_one_line_and_status_2(golden, place, cli, command, said):
    (place / "broken.toml").write_text("=")
    (place / "typo.toml").write_text("[bfloat16]\nrel_12 = 1\n")
    (place / "m.py").write_text("x = 1\n")
    status, _, err = cli(*command.split())
    assert status == IMPOSSIBLE
    assert err.count("\n") == 1
    assert err.startswith("hf-dumper")
    assert said in err


def test_a_dump_of_logits_only_is_compared(place, cli):
    for name in ("g", "c"):
        assert (
            cli(*run_tiny("--dump", name, "--token-range", "all", "--dump-last-logits"))[0] == DONE
        )
    assert cli("compare", "g", "c")[0] == DONE


def test_dumps_of_statistics_are_compared(golden, make, place, cli):
    for name in ("s", "t"):
        make(place / name, dump_statistics_mode=1)
    assert cli("compare", "s", "t")[0] == DONE


@pytest.mark.parametrize("layout", ["native", "msit"])
def test_the_text_of_tokens_is_shown(place, cli, layout):
    cli(*run_tiny("--token-range", "all", "--layout", layout))
    assert cli("compare", "d", "d", "--json")[0] == DONE
    facts = json.loads(cli("compare", "d", "d", "--json")[1])
    ids = open_dump(place / "d").run_info(0)["generated_ids"][0]
    assert [row["golden_text"] for row in facts["tokens"]] == [chr(n) for n in ids]
