"""Numbers as people read them."""

import pytest

from hf_dumper.report import numbers


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (None, "-"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_900, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_sizes(nbytes, shown):
    assert numbers.size(nbytes) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (3, "3"),
        (3.0, "3"),
        (-0.000123456, "-0.000123"),
        (1234.5, "1.23e+03"),
        (1e30, "1e+30"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value, shown):
    assert numbers.number(value) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("int64", "i64"),
        ("uint8", "u8"),
        ("bool", "bool"),
        ("float8_e4m3fn", "f8_e4m3fn"),
        (None, "-"),
        ("quint8", "quint8"),
    ],
)
def test_types(name, shown):
    assert numbers.dtype(name) == shown


def test_shapes():
    assert numbers.shape([1, 9]) == "(1, 9)"
    assert numbers.shape([9]) == "(9,)"
    assert numbers.shape(None) == "-"
    assert numbers.dims([1, 9]) == "1x9"
    assert numbers.dims([]) == "scalar"
    assert numbers.dims(None) == "-"
