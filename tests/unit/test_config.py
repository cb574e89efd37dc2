"""What a configuration accepts, refuses, and how it travels."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from torch import nn

from hf_dumper.config import DumpConfig
from hf_dumper.errors import ConfigError, NotYetError

LATER = {
    "api_list": ["softmax"],
    "mode": "api",
}
ACCEPTED = [
    {},
    {"dump_path": "folder"},
    {"token_range": [0, 2]},
    {"token_range": range(3)},
    {"token_range": (0, 2)},
    {"token_range": "0-3,8"},
    {"token_range": "all"},
    {"module_list": ["Linear"]},
    {"layer_name": "*.mlp"},
    {"layer_name": ["a", "b"]},
    {"tensor_part": 0},
    {"device_id": 0},
    {"dump_statistics_mode": 2},
    {"dump_last_logits": True},
    {"seed": 0},
    {"overwrite": True},
    {"max_bytes": 1},
    {"on_error": "raise"},
    {"durable": True},
    {"hash_weights": False},
    {"analyze": True},
    {"dump_weight": True},
    {"layout": "msit"},
]
REFUSED = [
    ({"dump_path": 3}, "dump_path must be a path"),
    ({"dump_path": b"bytes"}, "dump_path must be a path"),
    ({"token_range": []}, "token_range is empty"),
    ({"token_range": [-1]}, "start at 0"),
    ({"token_range": "x"}, "Cannot read token_range"),
    ({"token_range": 1}, "token_range must be"),
    ({"module_list": "Linear"}, "module_list must be a list"),
    ({"module_list": None}, "module_list must be a list"),
    ({"module_list": [3]}, "neither a name nor a class"),
    ({"module_list": [print]}, "neither a name nor a class"),
    ({"module_list": [nn.Linear(2, 2)]}, r"holds Linear\(.* which is neither a name nor a class"),
    ({"api_list": [3]}, "neither a name nor a function"),
    ({"api_list": "softmax"}, "api_list must be a list"),
    ({"mode": "modul"}, "mode must be 'module', 'api', or a list of both, not 'modul'"),
    ({"mode": []}, "mode must be"),
    ({"mode": ["module", "x"]}, "mode must be"),
    ({"mode": None}, "mode must be"),
    ({"layer_name": ""}, "layer_name must be"),
    ({"layer_name": []}, "layer_name must be"),
    ({"layer_name": [""]}, "layer_name must be"),
    ({"layer_name": 3}, "layer_name must be"),
    ({"layer_name": ["a", None]}, "layer_name must be"),
    ({"tensor_part": 3}, "tensor_part must be one of 0, 1, 2"),
    ({"tensor_part": True}, "tensor_part must be one of"),
    ({"tensor_part": None}, "tensor_part must be one of"),
    ({"dump_statistics_mode": -1}, "dump_statistics_mode must be one of"),
    ({"dump_statistics_mode": "both"}, "dump_statistics_mode must be one of"),
    ({"device_id": -1}, "device_id must be an integer from 0"),
    ({"device_id": "cuda:0"}, "device_id must be an integer from 0"),
    ({"device_id": True}, "device_id must be an integer from 0"),
    ({"seed": -1}, "seed must be an integer from 0"),
    ({"seed": 1.5}, "seed must be an integer from 0"),
    ({"seed": 2**64}, "seed must be an integer from 0"),
    ({"overwrite": 1}, "overwrite must be True or False"),
    ({"dump_last_logits": None}, "dump_last_logits must be True or False"),
    ({"layout": "elder"}, "layout must be 'native' or 'msit'"),
    ({"analyze": 1}, "analyze must be True or False"),
    ({"hash_weights": "no"}, "hash_weights must be True or False"),
    ({"max_bytes": 0}, "max_bytes must be a number of bytes above 0"),
    ({"max_bytes": True}, "max_bytes must be a number of bytes above 0"),
    ({"max_bytes": "2GB"}, "max_bytes must be a number of bytes above 0"),
    ({"on_error": "ignore"}, "on_error must be one of .warn., .raise."),
    ({"on_error": None}, "on_error must be one of"),
    ({"durable": 1}, "durable must be True or False"),
]


@pytest.mark.parametrize("values", ACCEPTED)
def test_a_configuration_survives_the_way_through_a_dict(values):
    config = DumpConfig(**values)
    assert DumpConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("values", ACCEPTED)
def test_the_dict_of_a_configuration_is_json(values):
    plain = DumpConfig(**values).to_dict()
    again = DumpConfig.from_dict(json.loads(json.dumps(plain)))
    assert again.to_dict() == json.loads(json.dumps(plain))


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_value_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DumpConfig(**values)


@pytest.mark.parametrize("name", LATER)
def test_an_option_of_a_later_release_says_so(name):
    with pytest.raises(NotYetError, match=f"{name}=.* not supported yet"):
        DumpConfig(**{name: LATER[name]})


@pytest.mark.parametrize("name", LATER)
def test_the_default_of_a_later_option_is_accepted(name):
    default = {f.name: f.default for f in fields(DumpConfig)}[name]
    assert getattr(DumpConfig(**{name: default}), name) == default


def test_an_empty_list_is_as_good_as_the_empty_default():
    assert DumpConfig(api_list=[], module_list=[]) == DumpConfig()


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown option 'token_rang'.*'token_range'"):
        DumpConfig.from_dict({"token_rang": [0]})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        DumpConfig().seed = 1


def test_a_path_becomes_a_path():
    assert DumpConfig("a/b").dump_path == Path("a/b")


def test_the_path_in_the_dict_is_text(tmp_path):
    assert DumpConfig(tmp_path).to_dict()["dump_path"] == str(tmp_path)


def test_classes_become_their_names_in_the_dict():
    config = DumpConfig(module_list=[nn.Linear, "Conv1d"])
    assert config.to_dict()["module_list"] == ["Linear", "Conv1d"]


def test_options_after_the_token_range_are_keywords():
    with pytest.raises(TypeError):
        DumpConfig("path", [0], ["Linear"])


def test_the_caller_keeps_the_list_it_gave():
    given = ["Linear"]
    config = DumpConfig(module_list=given)
    given.append("Conv1d")
    assert config.module_list == ("Linear",)


def test_a_mode_may_come_in_a_list_as_msit_has_it():
    assert DumpConfig(mode=["module"]) == DumpConfig()
    assert DumpConfig(mode=["module"]).to_dict() == DumpConfig().to_dict()
