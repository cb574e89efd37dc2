"""What changes no meaning raises no alarm: batches, padding, chunks, cache, kernels, types."""

import pytest
import torch

from hf_dumper import Verdict, compare, open_dump
from tests.demo_dumps import PROMPTS, load, make_dump


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("golden") / "dump")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("batch") / "dump", batch=True)


def count(comparison, *verdicts):
    return sum(v in verdicts for v in comparison.results.column("verdict").to_pylist())


class TestSameNumbers:
    def test_a_dump_is_identical_to_itself(self, golden):
        assert compare(golden, golden).verdict == Verdict.IDENTICAL

    def test_every_record_is_paired(self, golden):
        comparison = compare(golden, golden)
        assert comparison.coverage["pairs"] == comparison.coverage["golden records"] > 0
        assert comparison.unmatched.num_rows == 0

    def test_the_order_of_runs_does_not_matter(self, golden, tmp_path):
        other = make_dump(tmp_path / "dump", prompts=PROMPTS[::-1])
        comparison = compare(golden, other)
        assert comparison.verdict == Verdict.IDENTICAL
        assert comparison.coverage["rows"] == len(PROMPTS)

    def test_equal_prompts_are_matched_in_order(self, tmp_path):
        first = make_dump(tmp_path / "first", prompts=(PROMPTS[0], PROMPTS[0]))
        assert compare(first, first).coverage["rows"] == 2


class TestOtherShapes:
    def test_padded_rows_of_a_batch_against_single_runs(self, golden, batch):
        comparison = compare(golden, batch)
        assert comparison.verdict == Verdict.PASS
        assert comparison.coverage["pairs"] == comparison.coverage["golden records"]

    def test_single_runs_against_padded_rows_of_a_batch(self, golden, batch):
        comparison = compare(batch, golden)
        assert comparison.verdict == Verdict.PASS
        assert comparison.coverage["positions missing"] == 0

    def test_padding_is_never_compared(self, batch, golden):
        comparison = compare(batch, golden)
        rows = comparison.results.to_pylist()
        (embedded,) = [
            r
            for r in rows
            if r["module"] == "model.embed_tokens" and r["slot"] == "output" and not r["forward"]
        ]
        assert embedded["elements"] == 128 * sum(prompt_lengths(golden))

    def test_chunks_against_a_whole_prompt(self, golden, tmp_path):
        chunked = make_dump(tmp_path / "dump", prefill_chunk_size=3)
        comparison = compare(golden, chunked)
        assert comparison.verdict == Verdict.PASS
        assert comparison.coverage["pairs"] == comparison.coverage["golden records"]

    def test_a_whole_prompt_against_chunks(self, golden, tmp_path):
        chunked = make_dump(tmp_path / "dump", prefill_chunk_size=3)
        assert compare(chunked, golden).verdict == Verdict.PASS

    def test_no_cache_against_a_cache(self, golden, tmp_path):
        uncached = make_dump(tmp_path / "dump", use_cache=False)
        assert compare(golden, uncached).verdict == Verdict.PASS

    def test_a_cache_against_no_cache(self, golden, tmp_path):
        uncached = make_dump(tmp_path / "dump", use_cache=False)
        comparison = compare(uncached, golden)
        assert comparison.verdict == Verdict.PASS
        assert comparison.coverage["pairs"] == comparison.coverage["golden records"]

    def test_a_padded_batch_against_no_cache(self, tmp_path, batch):
        uncached = make_dump(tmp_path / "dump", use_cache=False)
        assert compare(batch, uncached).verdict == Verdict.PASS

    def test_chunks_of_a_padded_batch_against_single_runs(self, tmp_path, golden):
        chunked = make_dump(tmp_path / "dump", batch=True, prefill_chunk_size=4)
        assert compare(golden, chunked).verdict == Verdict.PASS


class TestOtherKernels:
    def test_another_attention_implementation(self, golden, tmp_path):
        eager = make_dump(tmp_path / "dump", model=load(attn_implementation="eager"))
        comparison = compare(golden, eager)
        assert comparison.verdict == Verdict.PASS
        assert "attn_implementation" in {finding.subject for finding in comparison.regime}

    def test_attention_weights_and_masks_are_aligned_by_key(self, tmp_path):
        single = make_dump(tmp_path / "s", model=load(attn_implementation="eager"))
        batched = make_dump(tmp_path / "b", model=load(attn_implementation="eager"), batch=True)
        comparison = compare(single, batched)
        assert comparison.verdict == Verdict.PASS
        assert not count(comparison, Verdict.NOT_COMPUTABLE, Verdict.SHAPE)

    def test_another_number_of_threads(self, golden, tmp_path):
        before = torch.get_num_threads()
        torch.set_num_threads(1 if before > 1 else 2)
        try:
            other = make_dump(tmp_path / "dump")
        finally:
            torch.set_num_threads(before)
        assert compare(golden, other).passed

    def test_bf16_that_follows_the_golden_tokens(self, golden, tmp_path):
        low = make_dump(tmp_path / "dump", model=load(torch.bfloat16), follow=golden)
        comparison = compare(golden, low)
        assert comparison.verdict == Verdict.PASS
        assert comparison.inputs == ()

    def test_fewer_layers_are_compared_up_to_the_cut(self, golden, tmp_path):
        cut = make_dump(tmp_path / "dump", model=load(num_hidden_layers=2), follow=golden)
        comparison = compare(golden, cut)
        assert comparison.verdict == Verdict.IDENTICAL
        assert comparison.coverage["golden records unmatched"] > 0
        modules = set(comparison.results.column("module").to_pylist())
        assert "model.layers.1.mlp" in modules
        assert "model.norm" not in modules


class TestLessThanTensors:
    def test_statistics_of_equal_bytes(self, golden, tmp_path):
        statistics = make_dump(tmp_path / "dump", config={"dump_statistics_mode": 1})
        assert compare(golden, statistics).passed

    def test_statistics_of_a_padded_batch_cannot_be_compared_with_single_rows(
        self, golden, tmp_path
    ):
        statistics = make_dump(tmp_path / "dump", batch=True, config={"dump_statistics_mode": 1})
        assert compare(golden, statistics).verdict == Verdict.NOT_COMPUTABLE

    def test_last_logits_against_a_dump_of_every_module(self, golden, tmp_path):
        last = make_dump(tmp_path / "dump", config={"dump_last_logits": True})
        comparison = compare(golden, last)
        assert comparison.passed
        assert set(comparison.tokens.column("verdict").to_pylist()) == {"identical"}

    def test_last_logits_of_a_batch_against_single_runs(self, tmp_path):
        config = {"dump_last_logits": True}
        single = make_dump(tmp_path / "single", config=config)
        batched = make_dump(tmp_path / "batch", config=config, batch=True)
        comparison = compare(single, batched)
        assert comparison.verdict == Verdict.PASS
        assert set(comparison.results.column("slot").to_pylist()) == {
            "logits",
            "scores",
            "token_ids",
        }


def prompt_lengths(path):
    with open_dump(path) as dump:
        return [len(dump.run_info(run)["prompt"]["input_ids"][0]) for run in dump.runs()]
