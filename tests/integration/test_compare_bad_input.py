"""Bad input is a verdict or one clear line: never a pass, never a traceback."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_dumper import (
    ConfigError,
    DumpConfig,
    DumpFormatError,
    DumpNotFoundError,
    NotYetError,
    Verdict,
    compare,
    register_hook,
)
from tests.demo_dumps import PROMPTS, load, make_dump, patched_forward

ONE = {"prompts": PROMPTS[:1]}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("golden") / "dump", **ONE)


@pytest.fixture
def copy(golden, tmp_path):
    return Path(shutil.copytree(golden, tmp_path / "copy"))


@pytest.fixture
def low(golden, tmp_path):
    """Return a candidate whose hashes all differ from the golden ones."""
    return make_dump(tmp_path / "low", model=load(torch.bfloat16), follow=golden, **ONE)


def rank(path):
    return path / "runs" / "000000" / "rank-0"


def run_facts(path):
    return path / "runs" / "000000" / "run.json"


class TestDamaged:
    def test_a_flipped_byte_of_a_shard(self, copy, low):
        table = pq.read_table(rank(copy) / "index.parquet").to_pylist()
        row = next(r for r in table if r["module"] == "model.norm" and r["slot"] == "output")
        with (rank(copy) / row["shard"]).open("r+b") as shard:
            shard.seek(row["offset"] + 5)
            byte = shard.read(1)[0]
            shard.seek(row["offset"] + 5)
            shard.write(bytes([byte ^ 1]))
        with pytest.raises(DumpFormatError, match=r"damaged: the bytes of 'model.norm' 'output'"):
            compare(copy, low)

    def test_a_shard_that_was_cut(self, copy, low):
        shard = next(rank(copy).glob("shard-*"))
        shard.write_bytes(shard.read_bytes()[:5000])
        with pytest.raises(DumpFormatError, match="is damaged"):
            compare(low, copy)

    def test_an_index_of_other_bytes(self, copy, golden):
        (rank(copy) / "index.parquet").write_bytes(b"PAR1 no table PAR1")
        with pytest.raises(DumpFormatError, match=r"index.parquet is damaged"):
            compare(golden, copy)

    def test_an_index_with_holes(self, copy, golden):
        path = rank(copy) / "index.parquet"
        table = pq.read_table(path)
        field = table.schema.field("forward")
        holes = pa.array([None, *table.column("forward").to_pylist()[1:]], field.type)
        at = table.schema.get_field_index("forward")
        pq.write_table(table.set_column(at, field, holes), path)
        with pytest.raises(DumpFormatError, match="column 'forward' has nulls"):
            compare(golden, copy)

    def test_facts_of_a_run_that_are_no_json(self, copy, golden):
        run_facts(copy).write_text("{", "utf-8")
        with pytest.raises(DumpFormatError):
            compare(golden, copy)

    def test_nothing_at_the_path(self, golden, tmp_path):
        with pytest.raises(DumpNotFoundError, match="no dump at"):
            compare(golden, tmp_path / "absent")


class TestNeverPass:
    def test_an_incomplete_run(self, copy, golden):
        facts = json.loads(run_facts(copy).read_text("utf-8"))
        facts |= {"complete": False, "incomplete": "KeyboardInterrupt"}
        run_facts(copy).write_text(json.dumps(facts), "utf-8")
        comparison = compare(golden, copy)
        assert comparison.verdict == Verdict.NOT_COMPUTABLE
        assert "KeyboardInterrupt" in comparison.regime[0].meaning

    def test_a_run_that_was_killed(self, copy, golden):
        run_facts(copy).unlink()
        assert not compare(golden, copy).passed

    def test_dumps_of_other_prompts(self, golden, tmp_path):
        other = make_dump(tmp_path / "dump", prompts=("Everyone is",))
        comparison = compare(golden, other)
        assert comparison.verdict == Verdict.INPUTS
        assert comparison.results.num_rows == 0

    def test_dumps_without_a_common_module(self, tmp_path):
        first = make_dump(tmp_path / "a", config={"layer_name": "*.0.mlp"}, **ONE)
        second = make_dump(tmp_path / "b", config={"layer_name": "*.1.mlp"}, **ONE)
        comparison = compare(first, second)
        assert set(comparison.results.column("slot").to_pylist()) == {"token_ids"}
        assert comparison.verdict == Verdict.NOTHING

    def test_a_dump_without_runs(self, copy, golden):
        shutil.rmtree(copy / "runs")
        assert not compare(golden, copy).passed

    def test_two_dumps_without_runs(self, copy):
        shutil.rmtree(copy / "runs")
        assert not compare(copy, copy).passed

    def test_another_model(self, golden, tmp_path, tiny_llama):
        model = tiny_llama()
        with register_hook(model, DumpConfig(tmp_path / "dump", "all")):
            model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
        comparison = compare(golden, tmp_path / "dump")
        assert comparison.verdict == Verdict.INPUTS
        assert "config hidden_size" in {finding.subject for finding in comparison.inputs}

    def test_an_output_of_another_shape(self, golden, tmp_path):
        model = load()
        with patched_forward(
            model.model.layers[3].self_attn,
            lambda forward, *args, **kwargs: (forward(*args, **kwargs)[0], torch.ones(1, 3)),
        ):
            first = make_dump(tmp_path / "first", model=model, **ONE)
        with patched_forward(
            model.model.layers[3].self_attn,
            lambda forward, *args, **kwargs: (forward(*args, **kwargs)[0], torch.ones(3, 1)),
        ):
            second = make_dump(tmp_path / "second", model=model, **ONE)
        comparison = compare(first, second)
        found = comparison.divergence
        assert comparison.verdict == Verdict.SHAPE
        assert (found.kind, found.module) == ("functional", "model.layers.3.self_attn")
        assert found.evidence[0] == "shape [1, 3] against [3, 1]"


class TestArguments:
    def test_a_floor_is_not_there_yet(self, golden):
        with pytest.raises(NotYetError, match="floor"):
            compare(golden, golden, floor=golden)

    def test_limits_of_an_unknown_name(self, golden):
        with pytest.raises(ConfigError, match="Did you mean 'rel_l2'"):
            compare(golden, golden, limits={"float32": {"rel_l3": 1.0}})

    def test_a_metric_of_an_unknown_name(self, golden):
        with pytest.raises(ConfigError, match="No metric named 'mine'"):
            compare(golden, golden, metrics=["mine"])
