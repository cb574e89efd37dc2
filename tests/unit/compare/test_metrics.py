"""Metrics against values worked out by hand; property checks are in test_metrics_properties."""

import math

import pytest
import torch

from hf_dumper.compare.metrics import NonFinite, Place, Token, measure
from hf_dumper.core.verdicts import METRICS

INF, NAN = math.inf, math.nan
BF16, HALF = torch.bfloat16, torch.float16
T = torch.tensor
NONE_WITHOUT_TOKENS = ("token_rel_l2", "token_rel_l2_p99", "channel_rel_l2")

IDENTICAL = dict.fromkeys(METRICS, 0.0) | {
    "cosine": 1.0,
    "snr_db": INF,
    "psnr_db": INF,
    "scale_fit": 1.0,
    "sorted_equal": 1.0,
}
SCALED = {  # c = 1.5 g, g = [[3, 4], [0, 12]]: |g| = 13, d = g / 2
    "max_abs": 6.0,
    "mean_abs": 19 / 8,
    "rmse": 3.25,
    "max_rel": 0.5,
    "mean_rel": 0.375,
    "rel_l2": 0.5,
    "nmse": 0.25,
    "cosine": 1.0,
    "snr_db": 20 * math.log10(2),
    "psnr_db": 20 * math.log10(12 / 3.25),
    "rel_diff": 0.25 / (1 + 2.25),
    "token_rel_l2": 0.5,
    "token_rel_l2_p99": 0.5,
    "channel_rel_l2": 0.5,
    "ulp_max": 2.0**22 + 2.0**20,  # 3 to 4.5 crosses an octave: 2**22 steps to 4, 2**20 from there
    "ulp_p99": 2.0**22 + 2.0**20,
    "fraction_outside": 0.75,
    "after_downcast": 0.5,
    "scale_fit": 1.5,
    "offset_fit": 19 / 8,
    "sorted_equal": 0.0,
}
# name -> (golden, candidate, by_token, expected metrics)
TABLE = {
    "identical": (T([[3.0, 4.0], [0.0, 12.0]]),) * 2 + (True, IDENTICAL),
    "scaled": (
        T([[3.0, 4.0], [0.0, 12.0]]),
        T([[4.5, 6.0], [0.0, 18.0]]),
        True,
        SCALED,
    ),
    "both zero": (torch.zeros(2, 2),) * 2 + (True, IDENTICAL | {"scale_fit": None}),
    "golden zero": (
        torch.zeros(1, 2),
        T([[0.0, 2.0]]),
        True,
        {
            "max_abs": 2.0,
            "mean_abs": 1.0,
            "rel_l2": INF,
            "nmse": INF,
            "cosine": 0.0,
            "snr_db": -INF,
            "psnr_db": -INF,
            "rel_diff": 1.0,
            "token_rel_l2": INF,
            "channel_rel_l2": INF,
            "scale_fit": None,
            "offset_fit": 1.0,
            "fraction_outside": 0.5,
            "ulp_max": float(0x40000000),
        },
    ),
    "candidate zero": (
        T([[3.0, 4.0]]),
        torch.zeros(1, 2),
        True,
        {"rel_l2": 1.0, "cosine": 0.0, "rel_diff": 1.0, "scale_fit": 0.0, "max_rel": 1.0},
    ),
    "negated": (
        T([[3.0, 4.0]]),
        T([[-3.0, -4.0]]),
        True,
        {"rel_l2": 2.0, "cosine": -1.0, "rel_diff": 2.0, "scale_fit": -1.0, "offset_fit": -7.0},
    ),
    "zero signs": (T([0.0, -0.0]), T([-0.0, 0.0]), False, {"max_abs": 0.0, "ulp_max": 0.0}),
    "nan at equal places": (
        T([[NAN, 3.0, 4.0]]),
        T([[NAN, 3.0, 5.0]]),
        True,
        {"max_abs": 1.0, "mean_abs": 0.5, "rel_l2": 0.2, "fraction_outside": 0.5},
    ),
    "infinities at equal places": (
        T([[INF, -INF, 2.0]]),
        T([[INF, -INF, 3.0]]),
        True,
        {"max_abs": 1.0, "mean_abs": 1.0, "rel_l2": 0.5, "max_rel": 0.5},
    ),
    "one nan": (T([[NAN, 2.0]]), T([[1.0, 2.0]]), True, {"max_abs": 0.0, "rel_l2": 0.0}),
    "nan everywhere": (T([[NAN, NAN]]),) * 2 + (True, dict.fromkeys(METRICS)),
    "bf16": (  # 1 and 1 + 3 units of last place of 2**-7
        T([[1.0, 2.0]], dtype=BF16),
        T([[1.0234375, 2.0]], dtype=BF16),
        True,
        {"max_abs": 3 / 128, "ulp_max": 3.0, "ulp_p99": 3.0, "fraction_outside": 0.5},
    ),
    "fp16 beyond its own squares": (
        torch.full((2, 2), 60000.0, dtype=HALF),
        torch.full((2, 2), 30000.0, dtype=HALF),
        True,
        {"rel_l2": 0.5, "rmse": 30000.0, "ulp_max": 1024.0},
    ),
    "fp32 and bf16": (  # the golden side is what the candidate would be before rounding
        T([[1.001, 2.003]]),
        T([[1.0, 2.0]], dtype=BF16),
        True,
        {"ulp_max": 0.0, "after_downcast": 0.0, "fraction_outside": 0.0},
    ),
    "float8": (
        T([1.0, 2.0]).to(torch.float8_e4m3fn),
        T([1.125, 2.0]).to(torch.float8_e4m3fn),
        False,
        {"max_abs": 0.125, "ulp_max": 1.0, "rel_l2": 0.125 / math.sqrt(5)},
    ),
    "float64": (
        T([[1.0, 0.0]], dtype=torch.float64),
        T([[1.0 + 2**-52, 0.0]], dtype=torch.float64),
        True,
        {"ulp_max": 1.0, "max_abs": 2.0**-52},
    ),
    "bool": (
        T([True, False, True, True]),
        T([True, True, False, True]),
        False,
        {"max_abs": 1.0, "mean_abs": 0.5, "fraction_outside": 0.5, "ulp_max": 1.0}
        | {"max_rel": 0.5, "sorted_equal": 1.0, "offset_fit": 0.0},
    ),
    "integers": (
        T([[1, 2, 3]]),
        T([[1, 2, 5]]),
        True,
        {"max_abs": 2.0, "max_rel": 2 / 3, "ulp_max": 2.0, "ulp_p99": 2.0, "offset_fit": 2 / 3},
    ),
    "integers that differ beyond float64": (
        T([2**62]),
        T([2**62 + 1]),
        False,
        {"max_abs": 1.0, "fraction_outside": 1.0},
    ),
    "integers at both ends": (
        T([-(2**63)]),
        T([2**63 - 1]),
        False,
        {"max_abs": 2.0**64, "fraction_outside": 1.0},
    ),
    "uint8 below zero": (
        T([1], dtype=torch.uint8),
        T([2], dtype=torch.uint8),
        False,
        {"max_abs": 1.0, "offset_fit": 1.0},
    ),
    "complex": (
        T([3 + 4j]),
        T([3 + 5j]),
        False,
        {"max_abs": 1.0, "rel_l2": 0.2, "mean_abs": 0.5},
    ),
    "empty": (torch.empty(0, 4),) * 2 + (True, dict.fromkeys(METRICS)),
    "scalar": (T(2.0), T(3.0), False, {"max_abs": 1.0, "rel_l2": 0.5}),
    "swapped": (
        T([[1.0, 2.0]]),
        T([[2.0, 1.0]]),
        True,
        {"sorted_equal": 1.0, "offset_fit": 0.0, "scale_fit": 0.8},
    ),
    "one value twice instead of another": (
        T([1.0, 1.0, 3.0, 3.0]),
        T([1.0, 3.0, 3.0, 3.0]),
        False,
        {"sorted_equal": 0.0},
    ),
}


def agree(found, expected):
    """Tell whether both are None, or the same number within float64's rounding."""
    if found is None or expected is None:
        return found is expected
    return found == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("name", TABLE)
def test_metrics_are_those_worked_out_by_hand(name):
    golden, candidate, by_token, expected = TABLE[name]
    found = measure([(golden, candidate)], by_token=by_token).values
    wrong = {k: (found[k], v) for k, v in expected.items() if not agree(found[k], v)}
    assert not wrong


@pytest.mark.parametrize("name", TABLE)
def test_every_metric_has_a_name_and_no_nan(name):
    golden, candidate, by_token, _ = TABLE[name]
    found = measure([(golden, candidate)], by_token=by_token).values
    assert tuple(found) == METRICS
    assert not any(math.isnan(v) for v in found.values() if v is not None)


@pytest.mark.parametrize(
    ("golden", "candidate"),
    [((2, 3), (3, 2)), ((2, 3), (6,)), ((2, 3), (2, 3, 1)), ((0, 3), (0, 2))],
)
def test_unequal_shapes_are_refused(golden, candidate):
    with pytest.raises(ValueError, match="Shapes differ"):
        measure([(torch.zeros(golden), torch.zeros(candidate))], by_token=True)


def test_a_type_without_numbers_is_refused():
    packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(ValueError, match="float4_e2m1fn_x2 hold no numbers"):
        measure([(packed, packed)], by_token=False)


def test_masks_are_counted_with_their_signs():
    golden = T([[NAN, INF, -INF, INF], [1.0, NAN, 2.0, INF]])
    candidate = T([[NAN, INF, INF, 0.0], [1.0, NAN, NAN, INF]])
    found = measure([(golden, candidate)], by_token=True)
    assert found.golden_nonfinite == NonFinite(nan=2, pos_inf=3, neg_inf=1)
    assert found.candidate_nonfinite == NonFinite(nan=3, pos_inf=3, neg_inf=0)
    assert (found.mask_mismatches, found.elements, found.compared) == (3, 8, 1)
    assert found.first_mismatch == Place(0, 0, 2, -INF, INF)


def test_nan_in_place_of_an_infinity_is_a_mismatch():
    found = measure([(T([INF]), T([NAN]))], by_token=False)
    assert found.mask_mismatches == 1
    assert not found.equal


def test_without_axes_token_and_channel_metrics_are_null():
    found = measure([(T([[1.0, 2.0]]), T([[1.0, 3.0]]))], by_token=False)
    assert [found.values[name] for name in NONE_WITHOUT_TOKENS] == [None] * 3
    assert found.worst == Place(0, None, 1, 2.0, 3.0)
    assert found.worst_token is None


def test_the_worst_place_counts_segments_positions_and_channels():
    golden = torch.ones(3, 2, 2)
    candidate = golden.clone()
    candidate[2, 1, 0] = 4
    found = measure([(golden, golden), (golden, candidate)], by_token=True)
    assert found.worst == Place(1, 2, 2, 1.0, 4.0)
    assert found.worst_token == Token(1, 2)


def test_identical_has_no_worst_place():
    found = measure([(torch.ones(2, 2), torch.ones(2, 2))], by_token=True)
    assert found.equal
    assert (found.worst, found.worst_token, found.first_mismatch) == (None, None, None)


def test_one_wrong_token_in_4096_is_visible():
    golden = torch.randn(4096, 64, generator=torch.manual_seed(0))
    candidate = golden.clone()
    candidate[1234] = golden[1235]
    found = measure([(golden, candidate)], by_token=True)
    assert found.values["rel_l2"] < 0.05
    assert found.values["token_rel_l2"] > 1
    assert found.values["token_rel_l2_p99"] == 0
    assert found.worst_token == Token(0, 1234)


@pytest.mark.parametrize("dtype", [torch.float32, BF16, HALF])
def test_random_channels_beside_a_massive_one_are_visible(dtype):
    generator = torch.manual_seed(0)
    golden = torch.randn(16, 4096, generator=generator).to(dtype)
    golden[:, 7] = 20000
    candidate = torch.randn(16, 4096, generator=generator).to(dtype)
    candidate[:, 7] = golden[:, 7]
    found = measure([(golden, candidate)], by_token=True).values
    assert found["rel_l2"] < 0.01
    assert found["cosine"] > 0.999
    assert found["channel_rel_l2"] > 1


def test_a_fault_in_a_dead_channel_is_not_hidden():
    golden = torch.ones(8, 128)
    golden[:, 3] = 0
    candidate = golden.clone()
    candidate[:, 3] = 0.01
    found = measure([(golden, candidate)], by_token=True).values
    assert found["channel_rel_l2"] > 100


def test_noise_in_a_dead_channel_is_no_alarm():
    golden = torch.ones(8, 128, dtype=BF16)
    golden[:, 3] = 0
    candidate = golden.clone()
    candidate[:, 3] = 2.0**-8  # half a unit of last place of the others
    found = measure([(golden, candidate)], by_token=True).values
    assert found["channel_rel_l2"] < 0.05


def test_a_scale_of_1_02_is_found_in_the_fit():
    golden = torch.randn(64, 64, generator=torch.manual_seed(0))
    found = measure([(golden, golden * 1.02)], by_token=True).values
    assert found["scale_fit"] == pytest.approx(1.02, rel=1e-6)
    assert found["rel_l2"] == pytest.approx(0.02, rel=1e-5)
    assert found["fraction_outside"] > 0.99


def test_a_metric_of_the_users_own_is_given_what_is_finite():
    golden, candidate = T([[1.0, NAN], [2.0, 3.0]]), T([[1.5, NAN], [INF, 4.0]])
    found = measure(
        [(golden, candidate)], by_token=True, extra={"last": lambda g, c: float(c[-1] - g[0])}
    )
    assert found.extra == {"last": 3.0}
