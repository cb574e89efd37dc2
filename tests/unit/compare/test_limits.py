"""Limits are read from a file, and overridden key by key."""

import pytest

from hf_dumper.compare.limits import load_limits
from hf_dumper.errors import ConfigError


def test_a_mapping_overrides_single_keys():
    limits = load_limits({"float32": {"rel_l2": 0.5}})
    assert limits["float32"]["rel_l2"] == 0.5
    assert limits["float32"]["kl"] == load_limits()["float32"]["kl"]


def test_a_file_overrides_single_keys(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("warn = 5\n[bfloat16]\nkl = 1e-2\n")
    limits = load_limits(path)
    assert (limits["warn"], limits["bfloat16"]["kl"]) == (5.0, 0.01)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wern = 1.0", "unknown key 'wern'. Did you mean 'warn'"),
        ("[float32]\nrel_l3 = 1.0", r"Section \[float32\] of .* 'rel_l3'. Did you mean 'rel_l2'"),
        ("float32 = 1.0", "'float32' is a section"),
        ("warn = 'much'", "'warn' must be a number"),
        ("warn = -1.0", "'warn' must be a number"),
        ("warn = nan", "'warn' must be a number"),
        ("warn", "is no TOML file"),
    ],
)
def test_what_cannot_be_meant_is_one_line(content, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_limits(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read limits from .*absent.toml"):
        load_limits(tmp_path / "absent.toml")


def test_every_type_has_the_same_keys():
    sections = [value for value in load_limits().values() if isinstance(value, dict)]
    assert len({frozenset(section) for section in sections}) == 1
