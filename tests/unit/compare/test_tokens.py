"""What is said of generated tokens: identical, pass, tie, diverged."""

import pytest

from hf_dumper.compare.limits import load_limits
from hf_dumper.compare.tokens import judge_logits, judge_tokens
from hf_dumper.core.verdicts import Verdict
from tests.unit.compare.tables import tokens

LIMITS = load_limits()
BF16 = {0: 3}
OTHER = {"candidate_id": 2, "top1_equal": False}


def row(kl=1e-5, ulp=50.0, **fields):
    numbers = {"kl": kl, "margin": 1.0, "margin_ulp": ulp, "delta_logprob": 0.0}
    return {**numbers, "top1_equal": True, **fields}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (row(verdict="identical"), "identical"),
        (row(), Verdict.PASS),
        (row(kl=4e-3), Verdict.WARN),
        (row(kl=1.0), Verdict.FAIL),
        (row(**OTHER), "tie"),
        (row(kl=1.0, ulp=2.0, **OTHER), "tie"),
        (row(kl=1.0, **OTHER), "diverged"),
        (row(candidate_id=2), "diverged"),  # both prefer the same: one drew another
        ({"kl": None}, Verdict.PASS),
        ({"kl": None, "candidate_id": 2}, "diverged"),
        (row(verdict="truncated"), "truncated"),
    ],
)
def test_the_word_for_a_token(token, expected):
    (found,) = judge_tokens(tokens(token), BF16, LIMITS).column("verdict").to_pylist()
    assert found == expected


class TestTogether:
    def test_the_mean_divergence_has_a_limit(self):
        many = tokens(*(row(kl=1e-3) for _ in range(200)))
        verdict, rule, *_ = judge_logits(many, BF16, LIMITS)
        assert verdict == Verdict.FAIL
        assert rule == "mean KL 0.001 > 0.0003 (bfloat16)"

    def test_the_mean_over_few_tokens_has_a_wider_one(self):
        assert judge_logits(tokens(row(kl=1e-3)), BF16, LIMITS)[0] == Verdict.PASS

    def test_a_tie_is_no_disagreement(self):
        table = tokens(row(**OTHER, verdict="tie"), row())
        assert judge_logits(table, BF16, LIMITS)[0] == Verdict.PASS

    def test_other_first_choices_are(self):
        table = tokens(row(**OTHER, verdict="diverged"), row())
        assert "top-1 disagreement" in judge_logits(table, BF16, LIMITS)[1]

    def test_without_logits_there_is_nothing_to_judge(self):
        assert judge_logits(tokens({"kl": None}), BF16, LIMITS) is None


def test_a_narrow_margin_is_a_tie_also_where_the_tokens_are_given():
    given = row(top1_equal=False, margin_ulp=0.7, verdict="pass")
    assert judge_logits(tokens(given), BF16, LIMITS)[0] == Verdict.PASS


def test_a_wide_margin_is_none():
    given = row(top1_equal=False, margin_ulp=70.0, verdict="pass")
    assert judge_logits(tokens(given), BF16, LIMITS)[0] == Verdict.FAIL
