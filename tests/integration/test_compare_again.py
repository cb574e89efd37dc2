"""A comparison is saved, loaded and judged again without its dumps; metrics of the user's own."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import hf_dumper
from hf_dumper import (
    DumpConfig,
    DumpFormatError,
    DumpNotFoundError,
    Verdict,
    compare,
    judge,
    load_comparison,
    open_dump,
    register_hook,
)
from tests.demo_dumps import PROMPTS, load, make_dump, patched_forward

ONE = {"prompts": PROMPTS[:1]}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dumps")
    golden = make_dump(folder / "golden", **ONE)
    model = load()

    def scaled(forward, *args):
        return forward(*args) * 1.02

    with patched_forward(model.model.layers[2].mlp.down_proj, scaled):
        return golden, make_dump(folder / "scaled", model=model, follow=golden, **ONE)


@pytest.fixture(scope="module")
def comparison(dumps):
    return compare(*dumps)


class TestSave:
    def test_what_is_loaded_is_what_was_saved(self, comparison, tmp_path):
        comparison.save(tmp_path / "saved")
        loaded = load_comparison(tmp_path / "saved")
        assert loaded == comparison

    def test_saving_twice_replaces(self, comparison, tmp_path):
        comparison.save(tmp_path)
        comparison.save(tmp_path)
        assert load_comparison(tmp_path).verdict == comparison.verdict

    def test_there_is_nothing_to_load(self, tmp_path):
        with pytest.raises(DumpNotFoundError, match="no saved comparison"):
            load_comparison(tmp_path)

    def test_another_version_is_named(self, comparison, tmp_path):
        comparison.save(tmp_path)
        path = tmp_path / "comparison.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
        with pytest.raises(DumpFormatError, match="version 99"):
            load_comparison(tmp_path)

    def test_a_table_of_other_columns_is_refused(self, comparison, tmp_path):
        comparison.save(tmp_path)
        shutil.copy(tmp_path / "tokens.parquet", tmp_path / "results.parquet")
        with pytest.raises(DumpFormatError, match=r"results.parquet"):
            load_comparison(tmp_path)


class TestJudge:
    def test_the_same_limits_give_the_same_comparison(self, comparison):
        assert judge(comparison, limits=None) == comparison

    def test_wider_limits_pass_without_the_dumps(self, comparison, tmp_path):
        comparison.save(tmp_path / "saved")
        wide = dict.fromkeys(
            ("rel_l2", "token_rel_l2", "channel_rel_l2", "kl", "delta_logprob"), 1.0
        )
        again = judge(tmp_path / "saved", limits={"float32": wide})
        assert again.verdict == Verdict.PASS
        assert again.divergence is None

    def test_narrower_limits_fail_what_passed(self, dumps, tmp_path):
        eager = make_dump(tmp_path / "dump", model=load(attn_implementation="eager"), **ONE)
        passed = compare(dumps[0], eager)
        again = judge(passed, limits={"float32": {"rel_l2": 1e-12}})
        assert (passed.verdict, again.verdict) == (Verdict.PASS, Verdict.FAIL)

    def test_limits_come_from_a_file(self, comparison, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text("warn = 1e9\n")
        assert judge(comparison, limits=path).verdict == Verdict.WARN

    def test_evidence_is_kept_for_the_same_divergence(self, comparison):
        again = judge(comparison, limits={"warn": 1.5})
        assert again.divergence == comparison.divergence


class TestEvidence:
    def test_the_snippet_runs_and_shows_the_difference(self, comparison):
        snippet = comparison.divergence.snippet
        done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first = done.stdout.splitlines()[0]
        where = comparison.results.column("module").to_pylist()
        rows = [
            r
            for r, module in zip(comparison.results.to_pylist(), where, strict=True)
            if module == comparison.divergence.module and r["slot"] == "output" and not r["token"]
        ]
        assert f"{rows[0]['max_abs']:.4f}"[:6] in first

    def test_open_readers_stay_open(self, dumps):
        with open_dump(dumps[0]) as golden, open_dump(dumps[1]) as candidate:
            compare(golden, candidate)
            assert golden.load("lm_head", run=0).shape[-1] == 1024


class TestMetrics:
    def test_a_function_of_the_users_own(self, dumps):
        metrics = {"sign": lambda g, c: float((g.sign() != c.sign()).double().mean())}
        rows = compare(*dumps, metrics=metrics).results.to_pylist()
        assert all(dict(row["extra"]).keys() == {"sign"} for row in rows if row["elements"])

    def test_a_function_in_a_file(self, dumps, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text("def largest(g, c):\n    return float(c.abs().max())\n")
        rows = compare(*dumps, metrics=[f"{path}:largest"]).results.to_pylist()
        assert dict(rows[0]["extra"]).keys() == {"largest"}


class TestNames:
    def test_compare_is_the_function(self):
        assert callable(hf_dumper.compare)

    @pytest.mark.parametrize(
        "before", ["import hf_dumper.compare.metrics", "from hf_dumper.compare import judge"]
    )
    def test_compare_is_the_function_after_the_package_was_imported(self, before):
        code = (
            f"{before}\nfrom hf_dumper import compare\nprint(compare.__name__, callable(compare))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.split() == ["compare", "True"], done.stderr

    def test_the_package_can_be_imported_from_after_the_function(self):
        code = "from hf_dumper import compare\nfrom hf_dumper.compare.limits import load_limits"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_one_wrong_token_of_many_fails(tmp_path):
    model = load()
    ids = torch.randint(5, 1000, (1, 500), generator=torch.Generator().manual_seed(1))

    def dumped(name):
        with register_hook(model, DumpConfig(tmp_path / name)), torch.no_grad():
            model(ids)
        return tmp_path / name

    golden = dumped("golden")

    def wrong(forward, *args):
        output = forward(*args).clone()
        output[0, 401] = output[0, 400]
        return output

    with patched_forward(model.model.layers[0].self_attn.o_proj, wrong):
        candidate = dumped("candidate")
    found = compare(golden, candidate).divergence
    assert (found.module, found.position) == ("model.layers.0.self_attn.o_proj", 401)
