"""Token ranges and module selections: what they mean, and what they refuse."""

import pytest
from torch import nn

from hf_dumper.core.names import near
from hf_dumper.core.selection import canonical, match_classes, match_names, parse_tokens
from hf_dumper.errors import ConfigError, SelectionError

NAMES = [
    "root",
    "model.layers.0.mlp",
    "model.layers.1.mlp",
    "model.layers.10.mlp",
    "model.layersX0.mlp",
    "odd[0].name",
    "lm_head",
]
CLASSES = {"root": nn.Sequential, "a": nn.Linear, "b": nn.Conv1d, "c": nn.Conv2d}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, {0}),
        ([0], {0}),
        ([3, 1, 3], {1, 3}),
        ((2, 4), {2, 4}),
        (range(3), {0, 1, 2}),
        (range(1, 8, 3), {1, 4, 7}),
        ("0", {0}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        (" 1 - 2 , 5 ", {1, 2, 5}),
        ("4-4", {4}),
    ],
)
def test_a_token_range_means_these_tokens(value, wanted):
    assert parse_tokens(value).wanted == wanted


@pytest.mark.parametrize("text", ["all", " all "])
def test_all_means_every_token(text):
    selection = parse_tokens(text)
    assert 10**9 in selection
    assert selection.missed(3) == []


@pytest.mark.parametrize("value", [[], (), range(0), range(3, 3)])
def test_an_empty_token_range_is_refused(value):
    with pytest.raises(ConfigError, match="empty"):
        parse_tokens(value)


@pytest.mark.parametrize("value", [[-1], [0, -3], range(-2, 1)])
def test_a_negative_token_is_refused(value):
    with pytest.raises(ConfigError, match="start at 0"):
        parse_tokens(value)


@pytest.mark.parametrize(
    "value", [True, [True], [0, False], 3, 1.0, [1.0], {1, 2}, {"a": 1}, [[0]]]
)
def test_what_is_no_list_of_integers_is_refused(value):
    with pytest.raises(ConfigError, match="token_range must be"):
        parse_tokens(value)


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "-1", "1--2", "1-2-3", "ALL", "0-", "1.5"])
def test_text_that_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match="Cannot read token_range"):
        parse_tokens(text)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ConfigError, match="'3-1' runs backwards"):
        parse_tokens("0,3-1")


def test_missed_tokens_are_those_from_the_end_on():
    assert parse_tokens([0, 2, 3, 9]).missed(3) == [3, 9]


def test_no_token_is_missed_when_all_were_reached():
    assert parse_tokens([0, 2]).missed(3) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.mlp", {n for n in NAMES if n.endswith(".mlp")}),
        ("model.layers.*.mlp", {f"model.layers.{i}.mlp" for i in (0, 1, 10)}),
        ("root.model.layers.0.mlp", {"model.layers.0.mlp"}),
        ("root", {"root"}),
        ("odd[0].name", {"odd[0].name"}),
        ("*", set(NAMES)),
        ("*layers.1*", {"model.layers.1.mlp", "model.layers.10.mlp"}),
        (["lm_head", "root"], {"lm_head", "root"}),
    ],
)
def test_a_pattern_matches_these_names(pattern, found):
    assert match_names(pattern, NAMES) == found


@pytest.mark.parametrize("pattern", ["odd?0?.name", "odd[0-9].name", "lm_hea.", "(lm_head)", "mlp"])
def test_only_the_star_is_special(pattern):
    with pytest.raises(SelectionError, match="No module matches"):
        match_names(pattern, NAMES)


def test_one_pattern_without_a_match_is_an_error_even_beside_a_good_one():
    with pytest.raises(SelectionError, match="'nowhere'"):
        match_names(["lm_head", "nowhere"], NAMES)


def test_a_name_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(SelectionError, match="Did you mean 'lm_head'"):
        match_names("root.lm_haed", NAMES)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([nn.Linear], {"a"}),
        (["Linear"], {"a"}),
        (["_ConvNd"], {"b", "c"}),
        ([nn.modules.conv._ConvNd], {"b", "c"}),
        ([nn.Module], set(CLASSES)),
        (["Linear", nn.Conv2d], {"a", "c"}),
    ],
)
def test_a_class_or_the_name_of_a_base_class_selects_its_instances(wanted, found):
    assert match_classes(wanted, CLASSES) == found


@pytest.mark.parametrize("wanted", ["Liner", nn.LSTM])
def test_a_class_without_an_instance_is_an_error(wanted):
    with pytest.raises(SelectionError, match="No module is a"):
        match_classes([wanted], CLASSES)


def test_a_class_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(SelectionError, match="'Linear'"):
        match_classes(["Liner"], CLASSES)


@pytest.mark.parametrize(
    ("name", "canonical_name"),
    [("root", "root"), ("root.a", "a"), ("a.root.b", "a.root.b"), ("rooted", "rooted")],
)
def test_a_leading_root_is_dropped_and_nothing_else(name, canonical_name):
    assert canonical(name) == canonical_name


def test_near_lists_a_few_known_names_when_none_is_close():
    assert near("zzz", ["a", "b"]) == " Known: 'a', 'b'."


def test_near_is_silent_when_nothing_is_close_and_there_is_much():
    assert near("zzz", map(str, range(100))) == ""


def test_near_names_the_closest():
    assert near("lm_heat", NAMES).startswith(" Did you mean 'lm_head'")
