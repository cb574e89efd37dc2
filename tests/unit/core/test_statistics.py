"""Statistics against values worked out by hand, and against NumPy in float64."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_dumper.core.compiled import PURE_PYTHON
from hf_dumper.core.statistics import COUNTS, FIELDS, Statistics, describe
from hf_dumper.core.sums import BLOCK, COMPILED, sums

pytestmark = pytest.mark.usefixtures("kind_of_sums")

INF, NAN = math.inf, math.nan
ROOT2 = math.sqrt(2)


def stats(count, values, sums, zeros=0, bad=(0, 0, 0)):
    """Build the expected value from (min, max, mean, std, absmax) and (l2, sum)."""
    low, high, mean, std, absmax = values
    return Statistics(count, low, high, mean, std, *sums, absmax, zeros, *bad)


NOTHING = (None,) * 5
HALF = torch.float16
# tensor -> expected, all by hand
TABLE = {
    "plain": (
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        stats(4, (1.0, 4.0, 2.5, math.sqrt(1.25), 4.0), (math.sqrt(30), 10.0)),
    ),
    "zero": (torch.zeros(2, 3), stats(6, (0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0), zeros=6)),
    "scalar": (torch.tensor(-3.0), stats(1, (-3.0, -3.0, -3.0, 0.0, 3.0), (3.0, -3.0))),
    "empty": (torch.empty(0, 5), stats(0, NOTHING, (0.0, 0.0))),
    "nan": (
        torch.tensor([NAN, 1.0, 0.0, NAN]),
        stats(4, (0.0, 1.0, 0.5, 0.5, 1.0), (1.0, 1.0), zeros=1, bad=(2, 0, 0)),
    ),
    "inf": (
        torch.tensor([INF, -INF, INF, 2.0]),
        stats(4, (2.0, 2.0, 2.0, 0.0, 2.0), (2.0, 2.0), bad=(0, 2, 1)),
    ),
    "only nan": (torch.tensor([NAN, NAN]), stats(2, NOTHING, (0.0, 0.0), bad=(2, 0, 0))),
    "only inf": (torch.tensor([INF]), stats(1, NOTHING, (0.0, 0.0), bad=(0, 1, 0))),
    "both infinities alone": (
        torch.tensor([INF, -INF]),
        stats(2, NOTHING, (0.0, 0.0), bad=(0, 1, 1)),
    ),
    "negative zero": (
        torch.tensor([-0.0, 0.0]),
        stats(2, (0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0), zeros=2),
    ),
    "bf16": (
        torch.tensor([1.0, -3.0], dtype=torch.bfloat16),
        stats(2, (-3.0, 1.0, -1.0, 2.0, 3.0), (math.sqrt(10), -2.0)),
    ),
    # sum and norm are far beyond 65504, where fp16 ends
    "fp16": (
        torch.full((10000,), 60000.0, dtype=HALF),
        stats(10000, (60000.0, 60000.0, 60000.0, 0.0, 60000.0), (6e6, 6e8)),
    ),
    "float8": (
        torch.tensor([1.5, -0.5]).to(torch.float8_e4m3fn),
        stats(2, (-0.5, 1.5, 0.5, 1.0, 1.5), (math.sqrt(2.5), 1.0)),
    ),
    "float64": (
        torch.tensor([1e300, -1e300], dtype=torch.float64),
        stats(2, (-1e300, 1e300, 0.0, INF, 1e300), (INF, 0.0)),
    ),
    "bool": (
        torch.tensor([True, False, True, True]),
        stats(4, (0, 1, 0.75, math.sqrt(0.1875), 1), (math.sqrt(3), 3), zeros=1),
    ),
    "uint8": (
        torch.tensor([255, 255], dtype=torch.uint8),
        stats(2, (255, 255, 255.0, 0.0, 255), (255 * ROOT2, 510)),
    ),
    "int8": (
        torch.tensor([-128, 127], dtype=torch.int8),
        stats(2, (-128, 127, -0.5, 127.5, 128), (math.sqrt(128**2 + 127**2), -1)),
    ),
    "uint64": (
        torch.tensor([2**63, 2**63], dtype=torch.uint64),
        stats(2, (2.0**63, 2.0**63, 2.0**63, 0.0, 2.0**63), (2.0**63 * ROOT2, 2.0**64)),
    ),
    "non-contiguous": (
        torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0],
        stats(2, (1.0, 2.0, 1.5, 0.5, 2.0), (math.sqrt(5), 3.0)),
    ),
    "expanded": (
        torch.tensor([2.0]).expand(3, 4),
        stats(12, (2.0, 2.0, 2.0, 0.0, 2.0), (math.sqrt(48), 24.0)),
    ),
}


def same(found, expected):
    return all(
        a is b if a is None or b is None else a == pytest.approx(b, rel=1e-12, abs=1e-15)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("case", TABLE)
def test_a_tensor_has_the_statistics_worked_out_by_hand(case):
    tensor, expected = TABLE[case]
    (found,) = describe([tensor])
    assert same(found, expected), (found, expected)


def test_a_mixture_in_one_call_gives_what_each_gives_alone():
    alone = [describe([tensor])[0] for tensor, _ in TABLE.values()]
    together = describe([tensor for tensor, _ in TABLE.values()])
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_a_norm_beyond_float64_does_not_make_the_deviation_nan():
    (found,) = describe([torch.tensor([1e200, 1e200], dtype=torch.float64)])
    assert (found.mean, found.std) == (1e200, 0.0)


def test_nothing_gives_nothing():
    assert describe([]) == []


def test_a_complex_tensor_has_none():
    found = describe([torch.ones(2), torch.ones(2, dtype=torch.complex64), torch.zeros(1)])
    assert [s is None for s in found] == [False, True, False]


def test_one_nan_does_not_hide_the_statistics_of_a_neighbour():
    _, clean = describe([torch.tensor([NAN]), torch.tensor([1.0, 2.0])])
    assert (clean.nan, clean.mean) == (0, 1.5)


def test_integers_beyond_53_bits_are_rounded_once_after_the_sum():
    (found,) = describe([torch.tensor([2**53 + 1, 2**53 + 1, 1])])
    assert found.sum == float(2**54 + 3)


def test_integers_keep_their_sum_beside_unsigned_ones():
    found = describe(
        [torch.tensor([2**53 + 1, 2**53 + 1, 1]), torch.tensor([2**63], dtype=torch.uint64)]
    )
    assert found[0].sum == float(2**54 + 3)


def test_the_smallest_integer_has_its_magnitude():
    (found,) = describe([torch.tensor([-(2**63)])])
    assert found.absmax == 2.0**63


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**53 + 1])
def test_every_field_but_the_counts_fits_a_column_of_float64(value):
    (found,) = describe([torch.tensor([value])])
    for name, number in zip(FIELDS, found, strict=True):
        pa.array([number], pa.int64() if name in COUNTS else pa.float64())


def test_a_large_mean_does_not_drown_a_small_deviation():
    values = 1e6 + torch.tensor([-0.25, 0.25], dtype=torch.float32).repeat(5000)
    (found,) = describe([values])
    assert found.std == pytest.approx(0.25, rel=1e-9)


def test_a_large_mean_does_not_drown_a_small_deviation_across_blocks():
    values = 1e6 + torch.tensor([-0.25, 0.25], dtype=torch.float32).repeat(BLOCK)
    (found,) = describe([values])
    assert found.std == pytest.approx(0.25, rel=1e-9)


def reference(tensor):
    """Compute the same over the finite values in float64, without any of our code."""
    values = tensor.double().numpy().ravel()
    finite = values[np.isfinite(values)]
    return Statistics(
        values.size,
        finite.min(),
        finite.max(),
        finite.mean(),
        finite.std(),
        np.sqrt(np.square(finite).sum()),
        finite.sum(),
        np.abs(finite).max(),
        int((finite == 0).sum()),
        int(np.isnan(values).sum()),
        int(np.isposinf(values).sum()),
        int(np.isneginf(values).sum()),
    )


def agree(found, expected):
    return found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF])
def test_a_large_tensor_agrees_with_numpy(size, dtype):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    assert agree(describe([tensor])[0], reference(tensor))


def test_bad_values_in_one_block_of_many_are_counted_and_left_out():
    tensor = torch.randn(2 * BLOCK + 3, generator=torch.Generator().manual_seed(1))
    tensor[5], tensor[BLOCK + 1], tensor[BLOCK + 2], tensor[-1] = NAN, INF, -INF, NAN
    assert agree(describe([tensor])[0], reference(tensor))


def test_a_large_unsigned_tensor_keeps_its_values():
    tensor = torch.full((BLOCK + 1,), 2**63, dtype=torch.uint64)
    (found,) = describe([tensor])
    assert (found.min, found.max, found.mean) == (2.0**63,) * 3


def test_many_small_tensors_agree_with_numpy():
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(1 + i % 37, generator=generator) for i in range(400)]
    assert all(agree(s, reference(t)) for s, t in zip(describe(tensors), tensors, strict=True))


def test_tensors_that_fill_several_blocks_together_agree_with_numpy():
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(BLOCK // 3 + i, generator=generator) for i in range(7)]
    assert all(agree(s, reference(t)) for s, t in zip(describe(tensors), tensors, strict=True))


def test_describing_leaves_the_tensor_as_it_was():
    tensor = torch.tensor([3.0, NAN, -INF])
    before = tensor.numpy().tobytes()
    describe([tensor])
    assert tensor.numpy().tobytes() == before


def test_an_unaligned_tensor_is_described():
    raw = torch.zeros(9, dtype=torch.uint8)
    raw[1:] = torch.tensor([1.0, 2.0]).view(torch.uint8)
    tensor = torch.frombuffer(bytearray(raw.numpy().tobytes()), dtype=torch.float32, offset=1)
    assert describe([tensor])[0].sum == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_and_plain_sums_agree(dtype, monkeypatch):
    values = (torch.randn(5000, dtype=torch.float64) * 1000 + 3).to(dtype)
    values[::7] = 0
    starts = np.array([0, 1, 17, 18, 40, 4000])
    found = sums(values, starts)
    monkeypatch.setenv(PURE_PYTHON, "1")
    for one, other in zip(found, sums(values, starts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_segments_that_do_not_fit_are_refused():
    if not COMPILED:
        pytest.skip("the compiled sums were not built here")
    from hf_dumper.core import _sums

    values, out = torch.ones(4), np.empty((2, 5))
    for starts in ([0, 5], [3, 1], [-1, 2]):
        with pytest.raises(ValueError, match="do not fit"):
            _sums.sums("float32", values.data_ptr(), 4, np.array(starts), out)
    with pytest.raises(ValueError, match="do not fit"):
        _sums.sums("float32", values.data_ptr(), 4, np.array([0]), out)
