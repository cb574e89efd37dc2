"""An assertion whose message is the verdict."""

import pytest
import torch

from hf_dumper.config import DumpConfig
from hf_dumper.model import register_hook
from hf_dumper.store import open_dump
from hf_dumper.testing import assert_aligned, turned_rotary

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def dumps(tiny_llama, tmp_path):
    """Return the paths of a golden dump and of one with a fault in the attention of layer 1."""
    paths = tmp_path / "golden", tmp_path / "broken"
    for path in paths:
        model = tiny_llama()
        with register_hook(model, DumpConfig(path)):
            if path.name == "golden":
                model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=1)
                continue
            with turned_rotary(model.model.layers[1].self_attn):
                model.generate(IDS, attention_mask=IDS > 0, max_new_tokens=1)
    return paths


def test_dumps_that_agree_raise_nothing(dumps):
    assert_aligned(dumps[0], dumps[0])


def test_readers_are_as_good_as_paths(dumps):
    with open_dump(dumps[0]) as reader:
        assert_aligned(reader, str(dumps[0]))


def test_the_message_names_the_module_the_kind_and_how_to_see_it(dumps):
    with pytest.raises(AssertionError) as raised:
        assert_aligned(*dumps)
    text = str(raised.value)
    assert text.startswith("FAIL: first at model.layers.1.self_attn output")
    assert "functional: its inputs and its children agree" in text
    assert "open_dump" in text


def test_wider_limits_let_more_pass(dumps):
    wide = {"float32": dict.fromkeys(("rel_l2", "token_rel_l2", "channel_rel_l2"), 1e9)}
    with pytest.raises(AssertionError):
        assert_aligned(*dumps)
    more = {"kl": 1e9, "delta_logprob": 1e9, "top1": 0.0}
    assert_aligned(*dumps, limits={"float32": wide["float32"] | more})
