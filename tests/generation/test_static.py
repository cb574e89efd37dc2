"""Static caches: their masks have four axes, or are not there, and their lengths are tensors."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, StaticCache

from hf_dumper import DumpConfig, open_dump, register_hook
from hf_dumper.capture.inputs import read_inputs

IDS = torch.randint(5, 128, (2, 7), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
NEW = 4
CALL = {"attention_mask": LEFT, "do_sample": False, "max_new_tokens": NEW}


def positions(path, run=0):
    with open_dump(path) as dump:
        assert dump.run_info(run)["complete"]
        table = dump.positions(run).to_pylist()
    found = {}
    for row in table:
        found.setdefault((row["forward"], row["row"]), []).append(row["position"])
    return found


def expected(rows=((3, 4), (0, 7))):
    """Positions of a prompt [padding, real tokens] per row in one forward, then of each token."""
    table = {}
    for row, (padding, real) in enumerate(rows):
        table[0, row] = [-1] * padding + list(range(real))
        table |= {(t, row): [real + t - 1] for t in range(1, NEW)}
    return table


def mistral(window):
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        pad_token_id=0,
        eos_token_id=None,
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_positions_come_from_the_masks_that_generate_makes(tiny_llama, tmp_path, attention):
    model = tiny_llama()
    model.set_attn_implementation(attention)
    plain = model.generate(IDS, **CALL, cache_implementation="static")
    with register_hook(model, DumpConfig(tmp_path, "all")):
        assert torch.equal(model.generate(IDS, **CALL, cache_implementation="static"), plain)
    assert positions(tmp_path) == expected()


def test_a_static_cache_object_is_followed_and_gone_on_with(tiny_llama, tmp_path):
    model = tiny_llama()

    def twice():
        cache = StaticCache(config=model.config, max_cache_len=32)
        first = model.generate(IDS, **CALL, past_key_values=cache)
        mask = torch.cat([LEFT, torch.ones(2, NEW, dtype=torch.long)], dim=1)
        call = CALL | {"attention_mask": mask}
        return first, model.generate(first, **call, past_key_values=cache)

    plain = twice()
    with register_hook(model, DumpConfig(tmp_path, "all")):
        assert all(map(torch.equal, twice(), plain))
    assert positions(tmp_path, 0) == expected()
    # The last token of the first run was chosen, but never fed.
    again = {(t, 0): [7 + t] for t in range(NEW)} | {(t, 1): [10 + t] for t in range(NEW)}
    assert positions(tmp_path, 1) == again


@pytest.mark.parametrize("window", [3, 5, 16])
def test_layers_that_slide_do_not_hide_what_is_padding(tmp_path, window):
    model = mistral(window)
    plain = model.generate(IDS, **CALL, cache_implementation="static")
    with register_hook(model, DumpConfig(tmp_path, "all", dump_kv_cache=True)):
        assert torch.equal(model.generate(IDS, **CALL, cache_implementation="static"), plain)
    assert positions(tmp_path) == expected()


def test_chunks_that_slide_have_unknown_positions_and_not_wrong_ones(tmp_path):
    call = CALL | {"cache_implementation": "static", "prefill_chunk_size": 4}
    model = mistral(3)
    with register_hook(model, DumpConfig(tmp_path, "all")):
        model.generate(IDS, **call)
    found = positions(tmp_path)
    assert found[0, 0] == [-1, -1, -1, 0]
    assert found[1, 0] == [None, None, None]
    assert found[2, 0] == [None]


def test_a_bare_forward_with_a_static_cache_has_positions(tiny_llama, tmp_path):
    model = tiny_llama()
    cache = StaticCache(config=model.config, max_cache_len=32)
    with register_hook(model, DumpConfig(tmp_path)), torch.no_grad():
        model(IDS[:, :4], past_key_values=cache)
        model(IDS[:, 4:], past_key_values=cache)
    assert positions(tmp_path, 0) == {(0, row): [0, 1, 2, 3] for row in (0, 1)}
    assert positions(tmp_path, 1) == {(0, row): [4, 5, 6] for row in (0, 1)}


def test_a_mask_of_four_axes_of_the_users_own_is_not_guessed_at(tiny_llama, tmp_path):
    model = tiny_llama()
    cache = StaticCache(config=model.config, max_cache_len=16)
    mask = torch.ones(2, 1, 7, 16, dtype=torch.bool).tril()
    with register_hook(model, DumpConfig(tmp_path)), torch.no_grad():
        model(IDS, attention_mask=mask, past_key_values=cache)
    assert positions(tmp_path) == {(0, row): [None] * 7 for row in (0, 1)}


class Unread:
    """A cache whose length lies on a device: to read it is to wait."""

    is_compileable = True

    def get_seq_length(self):
        return torch.tensor(3, device="meta")


def test_a_length_on_a_device_is_not_waited_for_where_it_is_known(tiny_llama):
    given = {"input_ids": IDS, "past_key_values": Unread()}
    assert read_inputs(tiny_llama(), (), given, seen=9).past == 9
    with pytest.raises(RuntimeError):  # a meta tensor cannot be read at all
        read_inputs(tiny_llama(), (), given)


def test_the_second_forward_of_a_run_does_not_read_the_length(tiny_llama, tmp_path, monkeypatch):
    asked = []
    model = tiny_llama()

    def item(tensor, *, _int=torch.Tensor.__int__):
        asked.append(tensor.shape)
        return _int(tensor)

    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
    from hf_dumper.capture import inputs

    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    monkeypatch.setattr(torch.Tensor, "__int__", item)
    assert inputs._past(cache, {}, 7) == 7
    assert asked == []
    assert inputs._past(cache, {}, None) == 7
    assert asked
