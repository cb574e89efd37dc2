"""Metrics of random and of unkind data against plain formulas, compiled and not."""

import math

import numpy as np
import pytest
import torch

from hf_dumper.compare import kernels
from hf_dumper.compare.blocks import BLOCK, pieces
from hf_dumper.compare.metrics import measure
from hf_dumper.compare.precision import narrower, precision

BF16, HALF, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PAIRS = [
    *((dtype, dtype) for dtype in (F64, F32, HALF, BF16, E4M3, E5M2)),
    *((dtype, dtype) for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool)),
    *((F32, BF16), (BF16, F32), (F32, HALF), (HALF, BF16), (F64, F32), (F64, BF16)),
    *((F32, E4M3), (torch.int64, torch.int32), (torch.int32, F32)),
]
VIEWS = {
    "contiguous": lambda t: t,
    "narrow": lambda t: t[:, 3:-2],
    "every other channel": lambda t: t[:, ::2],
    "every other position": lambda t: t[1::2],
    "heads": lambda t: t[:, :96].reshape(-1, 4, 24).transpose(1, 2),
    "channels first": lambda t: t.T.contiguous().T,
    "expanded": lambda t: t[:1].expand(7, -1),
    "four axes": lambda t: t[:, :96].reshape(-1, 2, 3, 16).permute(0, 3, 1, 2),
    "wide": lambda t: t.reshape(1, -1).repeat(1, 5),
}


@pytest.fixture(params=["plain", "compiled"])
def engine(request, monkeypatch):
    """Run a test with the kernels and without them."""
    if request.param == "plain":
        monkeypatch.setattr(kernels, "HAVE_KERNELS", False)
    elif not kernels.HAVE_KERNELS:
        pytest.skip("the kernels were not built: there was no compiler")
    return request.param


def random_pair(golden, candidate, rows=37, channels=700, seed=0):
    generator = torch.manual_seed(seed)
    values = 10 * torch.randn(rows, channels, generator=generator, dtype=F64)
    noise = 1 + 0.05 * torch.randn(rows, channels, generator=generator, dtype=F64)
    if golden is torch.bool:
        return values > 0, values * noise > 0.1
    return values.abs().to(golden), (values * noise).abs().to(candidate)


def naive(golden, candidate):
    """Return metrics by their formulas, of two-dimensional tensors."""
    g = golden.double().reshape(len(golden), -1).numpy()
    c = candidate.double().reshape(len(candidate), -1).numpy()
    d = c - g
    token = np.linalg.norm(d, axis=1) / np.linalg.norm(g, axis=1)
    rms = np.sqrt((g * g).mean(0))
    coarse = 2.0 ** (1 - precision(narrower(golden.dtype, candidate.dtype)).bits)
    least = max(coarse, 0.1 if len(g) < 8 else 0.0)
    usable = rms.min() > least * np.median(rms)  # else the metric has a floor, the formula none
    return {
        "max_abs": np.abs(d).max(),
        "mean_abs": np.abs(d).mean(),
        "rmse": np.sqrt((d * d).mean()),
        "rel_l2": np.linalg.norm(d) / np.linalg.norm(g),
        "nmse": (d * d).sum() / (g * g).sum(),
        "cosine": (g * c).sum() / np.linalg.norm(g) / np.linalg.norm(c),
        "snr_db": 10 * np.log10((g * g).sum() / (d * d).sum()),
        "psnr_db": 10 * np.log10(np.abs(g).max() ** 2 / (d * d).mean()),
        "rel_diff": 1 - 2 * (g * c).sum() / ((g * g).sum() + (c * c).sum()),
        "scale_fit": (g * c).sum() / (g * g).sum(),
        "token_rel_l2": token.max(),
        "token_rel_l2_p99": np.quantile(token, 0.99, method="inverted_cdf"),
        "channel_rel_l2": np.sqrt(((d / rms) ** 2).sum() / ((g / rms) ** 2).sum())
        if usable
        else None,
    }


def differing(found, expected, rel=1e-9):
    return {
        name: (found[name], value)
        for name, value in expected.items()
        if value is not None and found[name] != pytest.approx(value, rel=rel, abs=1e-12)
    }


@pytest.mark.parametrize(("golden", "candidate"), PAIRS)
def test_random_tensors_agree_with_the_formulas(engine, golden, candidate):
    pair = random_pair(golden, candidate)
    found = measure([pair], by_token=True).values
    if golden is not torch.bool:  # its dead channels would divide by 0
        assert not differing(found, naive(*pair))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [F32, BF16, torch.int32])
def test_strided_views_agree_with_the_formulas(engine, view, dtype):
    pair = [VIEWS[view](side) for side in random_pair(dtype, dtype)]
    assert not differing(measure([pair], by_token=True).values, naive(*pair))
    whole = measure([pair], by_token=False)
    flat = measure([[side.reshape(-1) for side in pair]], by_token=False)
    assert not differing(whole.values, flat.values, 1e-12)
    assert whole.worst == flat.worst


@pytest.mark.skipif(not kernels.HAVE_KERNELS, reason="the kernels were not built")
@pytest.mark.parametrize(("golden", "candidate"), PAIRS)
@pytest.mark.parametrize("view", VIEWS)
def test_compiled_and_plain_agree(golden, candidate, view, monkeypatch):
    segments = []
    for seed in (0, 1):
        pair = random_pair(golden, candidate, seed=seed)
        if golden.is_floating_point and golden not in (E4M3, E5M2):
            pair[0][3, 5], pair[1][3, 5] = math.nan, math.inf
            pair[0][5, 5] = pair[1][5, 5] = -math.inf
        segments.append([VIEWS[view](side) for side in pair])
    compiled = measure(segments, by_token=True)
    monkeypatch.setattr(kernels, "HAVE_KERNELS", False)
    plain = measure(segments, by_token=True)
    size = plain.values["mean_abs"]
    offset = compiled.values.pop("offset_fit"), plain.values.pop("offset_fit")
    assert offset[0] == pytest.approx(offset[1], abs=1e-12 * size)  # of a sum that cancels
    assert not differing(compiled.values, plain.values, 1e-12)
    for field in ("elements", "compared", "golden_nonfinite", "candidate_nonfinite", "worst_token"):
        assert getattr(compiled, field) == getattr(plain, field)
    assert repr((compiled.worst, compiled.first_mismatch, compiled.mask_mismatches)) == repr(
        (plain.worst, plain.first_mismatch, plain.mask_mismatches)
    )


def test_segments_add_up_to_the_whole(engine):
    golden, candidate = random_pair(F32, BF16)
    parts = [(golden[:10], candidate[:10]), (golden[10:], candidate[10:])]
    found, whole = (measure(s, by_token=True) for s in (parts, [(golden, candidate)]))
    assert not differing(found.values, whole.values, 1e-12)
    assert found.worst._replace(segment=0, position=0) == whole.worst._replace(position=0)


@pytest.mark.parametrize("dtype", [F64, F32])
def test_small_differences_of_large_values_do_not_cancel(engine, dtype):
    golden = (1e4 + 1e-3 * torch.randn(64, 512, generator=torch.manual_seed(0), dtype=F64)).to(
        dtype
    )
    candidate = golden + (2.0**-9 if dtype is F32 else 1e-9)
    found = measure([(golden, candidate)], by_token=True).values
    d = candidate.double() - golden.double()
    assert found["rel_l2"] == pytest.approx((d.norm() / golden.double().norm()).item(), rel=1e-9)
    assert found["rel_diff"] == pytest.approx(found["nmse"] / 2, rel=1e-5)
    assert found["offset_fit"] == pytest.approx(d.mean().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (F32, 1e38),
        (BF16, 1e38),
        (F32, 1e-42),
        (BF16, 1e-39),
        (HALF, 6e-8),
        (F64, 1e300),
        (F64, 1e-310),
    ],
)
def test_huge_and_subnormal_values_give_the_same_ratios(engine, dtype, size):
    golden = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=F64).mul(size).to(dtype)
    candidate = golden.clone()
    candidate[1, 1] = 0
    g, c = (side.double() / size for side in (golden, candidate))
    found = measure([(golden, candidate)], by_token=True).values
    assert found["rel_l2"] == pytest.approx(((c - g).norm() / g.norm()).item(), rel=1e-9)
    assert found["max_abs"] == pytest.approx(golden[1, 1].item(), rel=1e-12)
    assert not any(math.isnan(value) for value in found.values() if value is not None)


def test_ulp_percentile_is_within_an_eighth(engine):
    golden = torch.ones(1000, 10)
    bits = golden.view(torch.int32) + torch.arange(10_000, dtype=torch.int32).reshape(1000, 10)
    found = measure([(golden, bits.view(F32))], by_token=True).values
    assert found["ulp_max"] == 9999
    assert 9899 <= found["ulp_p99"] <= 9899 * 1.125


def test_rounding_that_overflows_is_infinitely_far(engine):
    golden, candidate = torch.tensor([[1e6, 1.0]]), torch.tensor([[65504.0, 1.0]], dtype=HALF)
    assert measure([(golden, candidate)], by_token=True).values["after_downcast"] == math.inf


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("by_token", [True, False])
def test_pieces_are_small_and_in_order(view, by_token):
    tensor = VIEWS[view](torch.arange(300 * 700).reshape(300, 700))
    cut = list(pieces((tensor, tensor), by_token=by_token))
    assert max(piece.golden.numel() for piece in cut) <= BLOCK
    assert torch.equal(torch.cat([piece.golden.flatten() for piece in cut]), tensor.flatten())
    width = tensor[0].numel() if by_token else tensor.numel()
    starts = [piece.position * width + piece.channel for piece in cut]
    sizes = [piece.golden.numel() for piece in cut]
    assert starts == [0, *np.cumsum(sizes)[:-1].tolist()]


def test_kernels_refuse_sums_of_another_size():
    if not kernels.HAVE_KERNELS:
        pytest.skip("the kernels were not built: there was no compiler")
    side, few = (0, 0, 2, 0, 2), np.zeros(1)
    with pytest.raises(ValueError, match="not the sizes of the segment"):
        kernels._kernels.accumulate(
            side, side, (1, 1, 1), 0, (1.0, 0.0, 0.0), 0, 0, few, few, few, few, few, few
        )


def test_over_few_positions_a_value_next_to_zero_decides_nothing(engine):
    golden = torch.ones(1, 100)
    golden[0, 7] = 1e-6
    candidate = golden + 1e-4
    found = measure([(golden, candidate)], by_token=True).values["channel_rel_l2"]
    assert found == pytest.approx(1e-4 * math.sqrt((99 + 100) / 99), rel=1e-2)


def test_over_one_position_noise_beside_a_massive_channel_is_seen(engine):
    generator = torch.manual_seed(1)
    golden, candidate = torch.randn(2, 1, 4096, generator=generator)
    golden[0, 0] = candidate[0, 0] = 1e4
    values = measure([(golden, candidate)], by_token=True).values
    assert values["rel_l2"] < 0.02
    assert values["channel_rel_l2"] > 1
