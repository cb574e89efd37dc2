"""Metrics of the user's own, and what goes wrong with them."""

import pytest
import torch

from hf_dumper.compare.metrics import measure
from hf_dumper.compare.registry import CustomMetric, load_metric
from hf_dumper.errors import ConfigError

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return path

    return write


def test_a_function_in_a_file_is_a_metric(script):
    path = script("def worst(golden, candidate):\n    return (candidate - golden).max()")
    metric = load_metric(f"{path}:worst")
    assert (metric.name, metric.higher_is_better) == ("worst", False)
    assert measure([(ONE, TWO)], by_token=False, extra={"worst": metric}).extra == {"worst": 1.0}


def test_a_file_may_say_which_way_is_better(script):
    path = script(
        "from hf_dumper.compare.registry import CustomMetric\n"
        "share = CustomMetric('share', lambda g, c: (g == c).double().mean(), True)"
    )
    assert load_metric(f"{path}:share").higher_is_better


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "x", "has no function 'x'"),
        ("x = 1", "y", "has no function 'y'"),
        ("x = 1 / 0", "x", "ZeroDivisionError: division by zero"),
        ("x = (", "x", "SyntaxError"),
    ],
)
def test_a_file_that_defines_no_metric_is_one_clear_line(script, text, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_metric(f"{script(text)}:{name}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file '.*none.py'"):
        load_metric(f"{tmp_path / 'none.py'}:f")


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="No metric named 'nothing'"):
        load_metric("nothing")


def fails(golden, candidate):
    raise IndexError


@pytest.mark.parametrize(
    ("function", "message"), [(fails, "'own' failed: IndexError"), (lambda g, c: None, "TypeError")]
)
def test_a_metric_that_fails_is_named(function, message):
    metric = CustomMetric("own", function)
    with pytest.raises(ConfigError, match=message):
        measure([(ONE, TWO)], by_token=False, extra={"own": metric})


def test_nan_and_nothing_to_measure_are_none():
    metric = {"own": lambda g, c: float("nan")}
    assert measure([(ONE, TWO)], by_token=False, extra=metric).extra == {"own": None}
    empty = torch.empty(0)
    assert measure([(empty, empty)], by_token=False, extra=metric).extra == {"own": None}
    nan = torch.tensor([float("nan")])
    assert measure([(nan, nan)], by_token=False, extra=metric).extra == {"own": None}
