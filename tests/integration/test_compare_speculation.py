"""Plain greedy decoding against speculative decoding of the same model, position by position."""

import pytest
import torch
from transformers import AutoTokenizer

from hf_dumper import DEMO_MODEL, Verdict, compare, open_dump
from tests.demo_dumps import load, make_dump, patched_forward
from tests.speculation import Spy, constant, other_tokenizer, perturb, renumber

PROMPTS = (
    "You may copy and distribute copies of the Program. You may copy and",
    "If you modify the Program, you must",
)
TOKENS = 12
PLAIN = {"prompts": PROMPTS, "max_new_tokens": TOKENS, "min_new_tokens": None}
CONFIGS = {"all": {"dump_kv_cache": True}, "logits": {"dump_last_logits": True}}


def lookup(count=5):
    return {"prompt_lookup_num_tokens": count}


def assistant(scale=0.1, seed=9):
    return {"assistant_model": constant(perturb(load(), scale, seed))}


DRAFTERS = {"lookup": lookup, "assistant": assistant}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of dumps: plain, with a lookup and with an assistant, as each of CONFIGS."""
    path = tmp_path_factory.mktemp("dumps")
    for name, config in CONFIGS.items():
        make_dump(path / f"plain-{name}", config=config, **PLAIN)
        for drafter, options in DRAFTERS.items():
            make_dump(path / f"{drafter}-{name}", config=config, **PLAIN, **options())
    return path


def speculation(path):
    with open_dump(path) as reader:
        return [reader.run_info(run)["speculation"] for run in reader.runs()]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_both_agree_whichever_is_golden(folder, drafter, name):
    facts = speculation(folder / f"{drafter}-{name}")
    assert sum(f["accepted"] for f in facts)
    assert sum(f["rejected"] for f in facts)
    both = folder / f"plain-{name}", folder / f"{drafter}-{name}"
    for golden, candidate in (both, both[::-1]):
        result = compare(golden, candidate)
        assert result.verdict == Verdict.PASS, result.divergence
        assert result.divergence is None
        assert result.coverage["positions missing"] == 0
        assert "pairs not computable" not in result.coverage
        chosen = result.tokens.to_pylist()
        assert len(chosen) == len(PROMPTS) * TOKENS
        assert all(row["kl"] is not None and row["kl"] < 1e-6 for row in chosen)
        assert {f.subject for f in result.regime} == {"speculation"}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ways_to_draft_agree_though_they_reject_other_drafts(folder, name):
    result = compare(folder / f"lookup-{name}", folder / f"assistant-{name}")
    assert result.verdict == Verdict.PASS
    assert result.coverage["positions missing"] == 0


def test_values_that_differ_in_rejected_columns_alone_agree(tmp_path):
    dumps = [
        make_dump(tmp_path / str(seed), **PLAIN | {"max_new_tokens": 4}, **assistant(5.0, seed))
        for seed in (1, 2)
    ]
    result = compare(*dumps)
    assert result.passed
    with open_dump(dumps[0]) as first, open_dump(dumps[1]) as second:
        both = [
            reader.load("model.embed_tokens", forward=1, token=1, run=0)
            for reader in (first, second)
        ]
    assert torch.equal(both[0][:, 0], both[1][:, 0])
    assert not torch.equal(*both)


def test_every_accepted_position_is_compared_once(folder):
    """The values of a module, over all pairs, are those of every token that went in."""
    result = compare(folder / "plain-all", folder / "assistant-all")
    with open_dump(folder / "plain-all") as reader:
        went_in = sum(
            p >= 0 for run in reader.runs() for p in reader.positions(run)["position"].to_pylist()
        )
    rows = [
        row
        for row in result.results.to_pylist()
        if row["module"] == "model.layers.2.mlp" and row["slot"] == "output"
    ]
    assert sum(row["elements"] for row in rows) == went_in * 128


@pytest.mark.parametrize("swapped", [False, True])
def test_a_fault_of_verifying_forwards_alone_is_found(folder, tmp_path, swapped):
    """A kernel that is wrong for several new columns, from the second on."""

    def wrong(forward, *args, **kwargs):
        output = forward(*args, **kwargs)
        if 1 < output.shape[1] <= 5:
            output = output.clone()
            output[:, 1] *= 1.02
        return output

    model = load()
    with patched_forward(model.model.layers[2].mlp.down_proj, wrong):
        path = make_dump(tmp_path / "faulty", model=model, **PLAIN, **assistant())
    token = min(
        t + 1 for f in speculation(path) for _, t, _, accepted in f["verified"] if t and accepted
    )
    both = (folder / "plain-all", path)
    result = compare(*both[::-1] if swapped else both)
    assert result.verdict == Verdict.FAIL
    found = result.divergence
    assert (found.kind, found.module) == ("source", "model.layers.2.mlp.down_proj")
    assert found.token == (token - 1 if swapped else token)


def test_a_fault_in_every_forward_is_found(folder, tmp_path):
    def wrong(forward, *args, **kwargs):
        output = forward(*args, **kwargs).clone()
        output[..., 17].neg_()
        return output

    model = load()
    with patched_forward(model.model.layers[1].mlp.up_proj, wrong):
        path = make_dump(tmp_path / "faulty", model=model, **PLAIN, **lookup())
    result = compare(folder / "plain-all", path)
    assert result.verdict == Verdict.FAIL
    assert result.divergence.module == "model.layers.1.mlp.up_proj"
    assert result.divergence.token == 0


class TestStatistics:
    """They are of whole tensors, columns of rejected drafts included."""

    @pytest.fixture
    def dump(self, tmp_path):
        def make(name, **options):
            config = {"dump_statistics_mode": 1}
            return make_dump(tmp_path / name, config=config, **PLAIN, **options)

        return make

    def test_they_are_not_judged_against_other_columns(self, dump):
        result = compare(dump("plain"), dump("lookup", **lookup()))
        assert result.verdict == Verdict.NOT_COMPUTABLE
        assert result.divergence is None

    def test_they_are_not_judged_where_other_drafts_were_rejected(self, dump):
        """Both reject whatever is drafted, so that the columns stand at the same positions."""
        first, second = (dump(str(seed), **assistant(5.0, seed)) for seed in (1, 2))
        facts = speculation(first)
        assert facts == speculation(second)
        assert sum(f["accepted"] for f in facts) == 0 < sum(f["rejected"] for f in facts)
        result = compare(first, second)
        assert result.verdict == Verdict.NOT_COMPUTABLE
        found = {row["verdict"]: row["reason"] for row in result.results.to_pylist()}
        assert set(found) <= {"identical", "pass", "not computable"}
        assert found["not computable"].endswith("rejected drafts")

    def test_the_same_bytes_agree(self, dump):
        assert compare(dump("one", **lookup()), dump("two", **lookup())).verdict == Verdict.PASS


def test_an_assistant_may_have_another_tokenizer(tmp_path, monkeypatch):
    """Greedy: one plain sampled run in some 30 differs from the others (transformers 5.23)."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)

    def options():
        # Fresh ones each time: transformers prunes the assistant, and remembers the tokenizers.
        other, new = other_tokenizer(tmp_path)
        drafter = constant(perturb(renumber(load(), new), 0.03))
        return {
            **{"assistant_model": drafter, "tokenizer": tokenizer, "assistant_tokenizer": other},
            "do_sample": False,
        }

    model, inputs = load(), tokenizer(PROMPTS[1], return_tensors="pt")
    with monkeypatch.context() as patch:
        spy = Spy(model, patch)
        want = model.generate(**inputs, max_new_tokens=TOKENS, stopping_criteria=[spy], **options())
    path = make_dump(
        tmp_path / "dump", model=model, **PLAIN | {"prompts": PROMPTS[1:]}, **options()
    )
    with open_dump(path) as reader:
        info = reader.run_info(0)
        length = inputs["input_ids"].shape[1]
        assert info["generated_ids"] == want[:, length:].tolist()
        assert info["speculation"]["drafter"] == "assistant model with another tokenizer"
        assert info["speculation"]["verified"] == [
            [f, before - length, drafted, after - before - 1]
            for f, (before, drafted, after) in enumerate(spy.iterations)
        ]
        assert info["speculation"]["rejected"]
