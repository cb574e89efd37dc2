"""Sizes as they are typed."""

import pytest
import typer

from hf_dumper.cli.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("1000000", 1_000_000),
        ("500B", 500),
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("1.5kB", 1500),
        ("64KiB", 65536),
        ("1MiB", 1 << 20),
        ("3TB", 3 * 10**12),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_so_many_bytes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "2XB", "1,5MB", "2GB!", "nan"])
def test_anything_else_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no size"):
        parse_size(text)
