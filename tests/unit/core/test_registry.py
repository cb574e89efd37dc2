"""Registries of named implementations."""

from types import SimpleNamespace

import pytest

from hf_dumper.core import registry as module
from hf_dumper.core.registry import Registry
from hf_dumper.errors import ConfigError


@pytest.fixture
def registry(monkeypatch):
    point = SimpleNamespace(name="outside", load=lambda: "loaded")
    taken = SimpleNamespace(name="mine", load=lambda: "theirs")
    monkeypatch.setattr(module, "entry_points", lambda group: [point, taken])
    made: Registry[str] = Registry("metric", "hf_dumper.metrics")
    made.register("mine")("ours")
    return made


def test_a_registered_member_is_found(registry):
    assert registry.get("mine") == "ours"


def test_register_returns_its_argument(registry):
    thing = object()
    assert registry.register("thing")(thing) is thing


def test_a_name_is_taken_once(registry):
    with pytest.raises(ConfigError, match="metric named 'mine' is registered already"):
        registry.register("mine")("again")


def test_an_entry_point_is_loaded_on_first_lookup(registry):
    assert registry.get("outside") == "loaded"


def test_an_entry_point_does_not_replace_a_member(registry):
    registry.get("outside")
    assert registry.get("mine") == "ours"


def test_iteration_shows_all(registry):
    assert dict(registry) == {"mine": "ours", "outside": "loaded"}


def test_an_unknown_name_is_answered_with_the_nearest(registry):
    with pytest.raises(ConfigError, match=r"No metric named 'mime'.*'mine'"):
        registry.get("mime")


def test_a_member_may_be_registered_while_iterating(registry):
    for name, _ in registry:
        registry.register(f"{name} again")("copy")
    assert registry.get("mine again") == "copy"
