"""Logits against values worked out by hand."""

import math

import pytest
import torch

from hf_dumper.compare.logits import LogitsMeasurement, measure_logits

INF, NAN = math.inf, math.nan
LN2 = math.log(2)


def one(golden, candidate, token=0, dtype=torch.float64, other=None):
    """Measure a single position."""
    sides = torch.tensor([golden], dtype=dtype), torch.tensor([candidate], dtype=other or dtype)
    return measure_logits(*sides, torch.tensor([token]))[0]


def test_identical_logits_have_no_distance():
    found = one([2.0, 1.0, 0.0], [2.0, 1.0, 0.0])
    assert found.js == pytest.approx(0, abs=1e-16)
    same = LogitsMeasurement(1.0, 2.0**51, 0.0, found.js, 0.0, 1.0, 1.0, True)
    assert found == same


def test_a_constant_shift_is_no_difference():
    found = one([2.0, 1.0, 0.0], [102.0, 101.0, 100.0])
    assert (found.kl, found.js, found.delta_logprob) == pytest.approx((0, 0, 0), abs=1e-13)


def test_divergences_of_two_small_distributions():
    # (1/2, 1/2) against (1/4, 3/4)
    found = one([0.0, 0.0], [0.0, math.log(3)])
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    js = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5))
    js += 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
    assert (found.kl, found.js) == pytest.approx((kl, js), rel=1e-12)
    assert found.delta_logprob == pytest.approx(-LN2)


def test_what_both_sides_rule_out_counts_for_nothing():
    found = one([0.0, 0.0, -INF], [0.0, 0.0, -INF], token=2)
    assert (found.kl, found.js, found.delta_logprob) == (0.0, 0.0, None)


def test_ruling_out_what_is_likely_is_infinitely_far():
    found = one([0.0, 0.0], [0.0, -INF], token=1)
    assert (found.kl, found.delta_logprob) == (INF, -INF)
    assert found.js == pytest.approx(0.75 * math.log(4 / 3))


def test_allowing_what_is_ruled_out_is_finitely_far():
    found = one([0.0, -INF], [0.0, 0.0], token=1)
    assert found.kl == pytest.approx(LN2)
    assert (found.margin, found.delta_logprob) == (INF, INF)


@pytest.mark.parametrize("bad", [[NAN, 0.0], [INF, 0.0], [-INF, -INF]])
def test_a_position_without_probabilities_has_no_numbers(bad):
    assert one([1.0, 0.0], bad) == LogitsMeasurement()
    assert one(bad, [1.0, 0.0]) == LogitsMeasurement()


def test_the_margin_is_in_units_of_the_narrower_type():
    found = one([4.0, 3.96875], [4.0, 3.0], dtype=torch.float32, other=torch.bfloat16)
    assert (found.margin, found.margin_ulp) == (0.03125, 1.0)


def test_top_tokens_are_compared_as_sets():
    golden = [float(i) for i in range(20)]
    candidate = [*golden[:10], 30.0, *golden[11:]]  # token 10 comes first, and drives out 15
    found = one(golden, candidate)
    assert found.top5_jaccard == 4 / 6
    assert found.top10_jaccard == 1.0
    assert found.top1_equal is False


def test_of_equal_logits_the_lower_token_counts_first():
    assert one([1.0] * 8, [1.0] * 5 + [0.0] * 3).top5_jaccard == 1.0


def test_a_vocabulary_of_one_has_no_margin():
    found = one([1.0], [2.0])
    assert (found.margin, found.kl, found.top10_jaccard) == (None, 0.0, 1.0)


def test_an_unknown_token_has_no_shift():
    assert one([1.0, 0.0], [1.0, 0.5], token=-1).delta_logprob is None


def test_every_position_is_measured_on_its_own():
    golden = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    candidate = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = measure_logits(golden, candidate, torch.tensor([1, 1]))
    assert [f.top1_equal for f in found] == [True, False]
    assert found[1].delta_logprob == pytest.approx(-1.0)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"not golden \[1, 2\], candidate \[1, 3\]"):
        measure_logits(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1))
