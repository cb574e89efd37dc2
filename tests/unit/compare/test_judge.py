"""Verdicts from numbers alone."""

import math

import pytest

from hf_dumper.compare.judge import judge_results
from hf_dumper.compare.limits import load_limits
from hf_dumper.core.verdicts import Verdict
from tests.unit.compare.tables import result, results, tokens

LIMITS = load_limits()


def judged(*rows, of=None, limits=LIMITS):
    table = judge_results(results(*rows), tokens() if of is None else of, limits)
    return list(
        zip(table.column("verdict").to_pylist(), table.column("rule").to_pylist(), strict=True)
    )


def verdict(*rows, **options):
    return judged(*rows, **options)[-1][0]


class TestRelative:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (0.0, Verdict.IDENTICAL),
            (1e-5, Verdict.PASS),
            (1.5e-5, Verdict.WARN),
            (3e-5, Verdict.FAIL),
            (math.inf, Verdict.FAIL),
        ],
    )
    def test_a_limit_has_a_pass_a_warning_and_a_fail(self, error, expected):
        assert verdict(result("m", error=error, token_rel_l2=0.0)) == expected

    def test_the_rule_names_metric_value_limit_and_type(self):
        assert judged(result("m", error=0.031, token_rel_l2=0.0))[0][1] == (
            "rel_l2 0.031 > 1e-05 (float32)"
        )

    def test_the_metric_that_exceeds_its_limit_most_decides(self):
        (found,) = judged(result("m", error=2e-6, token_rel_l2=0.5))
        assert found == (Verdict.FAIL, "token_rel_l2 0.5 > 0.0001 (float32)")

    def test_channels_beside_a_massive_one_decide(self):
        row = result("m", error=1e-7, channel_rel_l2=1.4)
        assert verdict(row) == Verdict.FAIL

    def test_a_scale_of_1_02_fails_in_float32(self):
        assert verdict(result("m", error=0.02)) == Verdict.FAIL

    def test_without_any_number_nothing_is_judged(self):
        row = result("m") | dict.fromkeys(("rel_l2", "token_rel_l2", "channel_rel_l2"))
        assert verdict(row) == Verdict.NOT_COMPUTABLE


class TestTypes:
    @pytest.mark.parametrize("side", ["dtype", "candidate_dtype"])
    def test_the_coarser_side_decides(self, side):
        assert verdict(result("m", error=0.03, **{side: "bfloat16"})) == Verdict.PASS
        assert verdict(result("m", error=0.03)) == Verdict.FAIL

    def test_what_was_rounded_once_stays_as_coarse(self):
        rounded = result("a", error=0.01, candidate_dtype="bfloat16")
        assert verdict(rounded, result("b", error=0.03)) == Verdict.PASS

    def test_what_came_before_is_not_forgiven(self):
        rounded = result("b", error=0.01, candidate_dtype="bfloat16")
        assert judged(result("a", error=0.03), rounded)[0][0] == Verdict.FAIL

    def test_another_run_is_not_forgiven(self):
        rounded = result("a", error=0.01, candidate_dtype="bfloat16")
        assert verdict(rounded, result("b", error=0.03, run=1)) == Verdict.FAIL


class TestIntegers:
    WHOLE = dict.fromkeys(("dtype", "candidate_dtype"), "int64")

    def test_they_are_equal_or_fail(self):
        row = result("m", "output", 1.0, fraction_outside=0.01, **self.WHOLE)
        assert verdict(row) == Verdict.FAIL

    def test_what_the_model_is_given_is_equal_after_coarse_numbers_too(self):
        coarse = result("a", error=0.01, dtype="bfloat16")
        row = result("root", "input.input_ids", 1.0, fraction_outside=0.01, **self.WHOLE)
        assert verdict(coarse, row) == Verdict.FAIL

    def test_a_module_may_choose_a_few_others_after_coarse_numbers(self):
        coarse = result("a", error=0.01, dtype="bfloat16")
        row = result("router", "output.1", 1.0, fraction_outside=0.01, **self.WHOLE)
        assert verdict(coarse, row) == Verdict.WARN
        assert verdict(row) == Verdict.FAIL

    def test_another_token_is_no_fault_where_it_is_a_tie(self):
        row = result("root", "token_ids", 3.0, fraction_outside=1.0, **self.WHOLE)
        assert verdict(row, of=tokens({"verdict": "tie"})) == Verdict.PASS
        assert verdict(row, of=tokens({"verdict": "diverged"})) == Verdict.FAIL


class TestFacts:
    @pytest.mark.parametrize("fact", [Verdict.NON_FINITE, Verdict.SHAPE, Verdict.NOT_COMPUTABLE])
    def test_no_limit_changes_a_fact(self, fact):
        assert verdict(result("m", verdict=fact)) == fact

    def test_statistics_are_held_against_the_same_limits(self):
        numbers = dict.fromkeys(("rel_l2", "token_rel_l2", "channel_rel_l2", "max_abs"))
        row = result("m") | numbers | {"extra": {"statistics.std": 0.02}}
        assert judged(row)[0] == (Verdict.FAIL, "statistics.std 0.02 > 1e-05 (float32)")


class TestJumps:
    def layers(self, errors):
        return [
            result(f"layers.{i}", error=error, candidate_dtype="bfloat16")
            for i, error in enumerate(errors)
        ]

    def test_a_step_far_above_the_median_is_a_warning(self):
        steady = [0.004 + 0.0005 * i for i in range(10)]
        jumped = steady[:6] + [error + 0.01 for error in steady[6:]]
        found = judged(*self.layers(jumped))
        assert [v for v, _ in found].index(Verdict.WARN) == 6
        assert found[6][1].startswith("rel_l2 grows 21 times the median step > 4")

    def test_steady_growth_is_none(self):
        steady = [0.004 + 0.0005 * i for i in range(10)]
        assert {v for v, _ in judged(*self.layers(steady))} == {Verdict.PASS}

    def test_few_layers_have_no_usual_step(self):
        found = judged(*self.layers([0.004, 0.0041, 0.03]))
        assert {v for v, _ in found} == {Verdict.PASS}
